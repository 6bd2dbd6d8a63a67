// What the operation and the kernels of each instruction set agree on.
//
// A tile is 16 outputs (rows of the matrix) by 16 columns: 64 bytes of each plane. The dword of an output has its 16
// columns as the format has them, four bytes of four two-bit fields. Field f of all 64 bytes is therefore columns
// f, 4 + f, 8 + f and 12 + f of each output, which meet bytes 4f to 4f + 3 of the quantized row.

#pragma once

#include <cstdint>

namespace nearfar {

constexpr int kTile = 16;
constexpr int kMostRows = 8;  // of a batch, that share one pass over the planes

enum Kind : int { kFloat32, kBFloat16, kFloat16 };

// Up to kMostRows rows of a batch at one width, against 16 outputs.
struct Pass {
  const std::uint8_t* planes;        // of the outputs' first tile
  std::int64_t plane_stride;         // bytes from a plane to the next
  const std::uint16_t* scales;       // float16, 16 to a group
  const std::int8_t* zeros;          // 16 to a group
  const std::uint8_t* refits;        // 16 to a group; null at the largest width
  float range[4];                    // a, alpha, c, gamma of the format
  std::int64_t tiles;                // of a row
  std::int64_t group_tiles;          // of a group; the last one of a row may have fewer
  int width;                         // bits
  const std::int8_t* x;              // [tile][row][16]
  const float* sums;                 // [group][row], of the row's integers
  const float* steps;                // [group][row], what an integer is worth
  float* out;                        // [row][16]
};

struct Instructions {
  // Writes a row of `columns` numbers as int8 into every `tile_stride`-th byte of `x`, 16 at a time, and each group's
  // sum and step into every `group_stride`-th float of `sums` and `steps`. A group with a NaN or an infinity has step
  // NaN, and with it every output of the row.
  void (*quantize)(const void* row, int kind, std::int64_t columns, std::int64_t group_tiles, std::int8_t* x,
                   std::int64_t tile_stride, float* sums, float* steps, std::int64_t group_stride);
  void (*run[kMostRows])(const Pass&);  // by the number of rows, less one
  void (*store)(const float* from, int count, int kind, void* to);
};

extern const Instructions kAvx2;
extern const Instructions kAvx512;

}  // namespace nearfar
