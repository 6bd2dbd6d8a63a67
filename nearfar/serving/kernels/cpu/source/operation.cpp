// The operation nearfar::packed_linear on CPUs: rows of a batch, each at its own width, through a packed matrix.
//
// Written against torch's stable ABI, and run on torch's own threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernel.h"

namespace nearfar {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The head of a packed matrix; linear.py writes it.
struct Head {
  std::int64_t magic;
  std::int64_t num_bytes;  // of the whole buffer
  std::int64_t outputs;
  std::int64_t columns;
  std::int64_t group_tiles;
  std::int64_t groups;
  std::int64_t num_widths;
  std::int64_t num_parts;
  std::int64_t blocks;  // of 16 outputs; a part begins with a new one
  std::int64_t parts_at;  // bytes from the start: for each part its first block and output, then the ends
  std::int64_t ranges_at;  // [part][width but the largest][4]
  std::int64_t planes_at;  // [plane][block][tile][64]
  std::int64_t scales_at;  // [block][group][16]
  std::int64_t zeros_at;   // [block][group][16]
  std::int64_t refits_at;  // [width but the largest][block][group][16]
  std::int64_t widths[8];  // ascending
};

constexpr std::int64_t kMagic = 0x31305f7261666e65;

const Instructions* supported() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni")) {
    return &kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return &kAvx2;
  return nullptr;
}

const Instructions* chosen = supported();

// Rows of the batch of one width that go through the planes together.
struct Chunk {
  std::int64_t place;  // of the width
  std::vector<std::int64_t> rows;
  std::vector<std::int8_t> x;
  std::vector<float> sums, steps;  // [group][row]
};

std::vector<Chunk> chunks_of(const std::int32_t* row_widths, std::int64_t rows, const Head& head) {
  std::vector<Chunk> chunks;
  std::int64_t found = 0;
  for (std::int64_t place = 0; place < head.num_widths; ++place) {
    bool is_open = false;
    for (std::int64_t row = 0; row < rows; ++row) {
      if (row_widths[row] != head.widths[place]) continue;
      if (!is_open || chunks.back().rows.size() == kMostRows) {
        chunks.push_back({place, {}, {}, {}, {}});
        is_open = true;
      }
      chunks.back().rows.push_back(row);
      ++found;
    }
  }
  STD_TORCH_CHECK(found == rows, "a row asks for a width that was not stored");
  return chunks;
}

Tensor packed_linear(const Tensor& x, const Tensor& row_widths, const Tensor& packed, std::int64_t num_outputs) {
  STD_TORCH_CHECK(chosen != nullptr, "this processor has neither AVX2 nor AVX-512 with VNNI");
  const auto* base = static_cast<const std::uint8_t*>(packed.const_data_ptr());
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.numel() >= static_cast<std::int64_t>(sizeof(Head)) &&
                      reinterpret_cast<std::uintptr_t>(base) % alignof(Head) == 0,
                  "the packed matrix is no contiguous, aligned tensor of bytes");
  const Head& head = *reinterpret_cast<const Head*>(base);
  STD_TORCH_CHECK(head.magic == kMagic && head.num_bytes == packed.numel(), "the packed matrix was packed otherwise");
  STD_TORCH_CHECK(head.outputs == num_outputs, "the packed matrix has another number of outputs");
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == head.columns, "x does not have the matrix's columns");
  const std::int64_t rows = x.size(0);
  STD_TORCH_CHECK(row_widths.dim() == 1 && row_widths.size(0) == rows && row_widths.scalar_type() == ScalarType::Int,
                  "row_widths is not one int32 for each row of x");
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "x is neither float32 nor bfloat16 nor float16");
  const int kind = type == ScalarType::Float ? kFloat32 : type == ScalarType::BFloat16 ? kBFloat16 : kFloat16;
  const std::int64_t item = kind == kFloat32 ? 4 : 2;
  const Tensor dense = x.stride(1) == 1 || head.columns == 1 ? x : torch::stable::contiguous(x);
  const Tensor widths = torch::stable::contiguous(row_widths);
  Tensor out = torch::stable::new_empty(x, {rows, head.outputs});

  std::vector<Chunk> chunks = chunks_of(static_cast<const std::int32_t*>(widths.const_data_ptr()), rows, head);
  const std::int64_t tiles = (head.columns + kTile - 1) / kTile;
  const auto* x_data = static_cast<const std::uint8_t*>(dense.const_data_ptr());
  const std::int64_t x_stride = dense.stride(0) * item;
  for (Chunk& chunk : chunks) {
    chunk.x.resize(tiles * chunk.rows.size() * kTile);
    chunk.sums.resize(head.groups * chunk.rows.size());
    chunk.steps.resize(head.groups * chunk.rows.size());
  }
  const auto quantize = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin; at < end; ++at) {
      Chunk& chunk = chunks[at];
      const std::int64_t count = chunk.rows.size();
      for (std::int64_t i = 0; i < count; ++i) {
        chosen->quantize(x_data + chunk.rows[i] * x_stride, kind, head.columns, head.group_tiles,
                         chunk.x.data() + i * kTile, count * kTile, chunk.sums.data() + i, chunk.steps.data() + i,
                         count);
      }
    }
  };
  if (chunks.size() > 1) {
    torch::stable::parallel_for(0, chunks.size(), 1, quantize);
  } else {
    quantize(0, chunks.size());
  }

  const auto* parts = reinterpret_cast<const std::int64_t*>(base + head.parts_at);
  const auto* ranges = reinterpret_cast<const float*>(base + head.ranges_at);
  const std::int64_t lower = head.num_widths - 1;
  const std::int64_t block_groups = head.groups * kTile;
  auto* out_data = static_cast<std::uint8_t*>(out.mutable_data_ptr());
  const auto multiply = [&](std::int64_t begin, std::int64_t end) {
    alignas(64) float made[kMostRows * kTile];
    std::int64_t part = 0;
    for (std::int64_t block = begin; block < end; ++block) {
      while (block >= parts[2 * part + 2]) ++part;
      const std::int64_t first = parts[2 * part + 1] + (block - parts[2 * part]) * kTile;
      const int count = static_cast<int>(std::min<std::int64_t>(kTile, parts[2 * part + 3] - first));
      for (const Chunk& chunk : chunks) {
        const bool is_top = chunk.place == lower;
        Pass job = {};
        job.planes = base + head.planes_at + block * tiles * 64;
        job.plane_stride = head.blocks * tiles * 64;
        job.scales = reinterpret_cast<const std::uint16_t*>(base + head.scales_at) + block * block_groups;
        job.zeros = reinterpret_cast<const std::int8_t*>(base + head.zeros_at) + block * block_groups;
        if (!is_top) {
          job.refits = base + head.refits_at + (chunk.place * head.blocks + block) * block_groups;
          std::memcpy(job.range, ranges + (part * lower + chunk.place) * 4, sizeof(job.range));
        }
        job.tiles = tiles;
        job.group_tiles = head.group_tiles;
        job.width = static_cast<int>(head.widths[chunk.place]);
        job.x = chunk.x.data();
        job.sums = chunk.sums.data();
        job.steps = chunk.steps.data();
        job.out = made;
        chosen->run[chunk.rows.size() - 1](job);
        for (std::size_t i = 0; i < chunk.rows.size(); ++i) {
          chosen->store(made + i * kTile, count, kind, out_data + (chunk.rows[i] * head.outputs + first) * item);
        }
      }
    }
  };
  // A thread is worth waking for about 32 KiB of codes.
  const std::int64_t work = tiles * 64 * std::max<std::int64_t>(rows, 1);
  torch::stable::parallel_for(0, head.blocks, std::max<std::int64_t>(1, (1 << 15) / work), multiply);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(nearfar, CPU, library) { library.impl("packed_linear", TORCH_BOX(&packed_linear)); }

}  // namespace
}  // namespace nearfar

// Runs with what `wanted` names (0: the best there is, 1: AVX2, 2: AVX-512) where the processor has it; returns what
// it runs with, and 0 for nothing.
extern "C" __attribute__((visibility("default"))) int nearfar_instructions(int wanted) {
  const nearfar::Instructions* best = nearfar::supported();
  nearfar::chosen = best != nullptr && wanted == 1 ? &nearfar::kAvx2 : best;
  return nearfar::chosen == &nearfar::kAvx512 ? 2 : nearfar::chosen == &nearfar::kAvx2 ? 1 : 0;
}
