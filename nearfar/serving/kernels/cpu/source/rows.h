// Rows of a batch to int8 and results to their type; compiled once for each instruction set.
//
// The step of a group of a row is its largest magnitude over 127, and an entry is rounded to the nearest step, ties to
// even.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernel.h"

namespace nearfar {
namespace {

inline float from_half(std::uint16_t bits) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }

inline void load(const void* row, int kind, std::int64_t from, int count, float* to) {
  if (kind == kFloat32) {
    std::memcpy(to, static_cast<const float*>(row) + from, count * sizeof(float));
  } else if (kind == kBFloat16) {
    const auto* bits = static_cast<const std::uint16_t*>(row) + from;
    for (int i = 0; i < count; ++i) {
      const std::uint32_t wide = static_cast<std::uint32_t>(bits[i]) << 16;
      std::memcpy(to + i, &wide, sizeof(wide));
    }
  } else {
    const auto* bits = static_cast<const std::uint16_t*>(row) + from;
    for (int i = 0; i < count; ++i) to[i] = from_half(bits[i]);
  }
}

inline std::uint32_t largest(const float* values, int count, std::uint32_t most) {
  for (int i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return most;
}

void quantize(const void* row, int kind, std::int64_t columns, std::int64_t group_tiles, std::int8_t* x,
              std::int64_t tile_stride, float* sums, float* steps, std::int64_t group_stride) {
  constexpr int kPiece = 256;
  const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const std::int64_t group_columns = group_tiles * kTile;
  for (std::int64_t first = 0, group = 0; first < columns; first += group_columns, ++group) {
    const std::int64_t end = columns - first < group_columns ? columns : first + group_columns;
    std::uint32_t most = 0;
    for (std::int64_t at = first; at < end; at += kPiece) {
      float values[kPiece];
      const int count = end - at < kPiece ? static_cast<int>(end - at) : kPiece;
      load(row, kind, at, count, values);
      most = largest(values, count, most);
    }
    float top;
    std::memcpy(&top, &most, sizeof(top));
    const bool is_finite = most < 0x7f800000;
    // Below this the step has no reciprocal in float32, and no output would be told from 0.
    const bool is_zero = is_finite && top < 1e-30f;
    const float inverse = is_finite && !is_zero ? 127.0f / top : 0.0f;
    std::int32_t sum = 0;
    for (std::int64_t at = first; at < end; at += kTile) {
      const int count = end - at < kTile ? static_cast<int>(end - at) : kTile;
      float sixteen[kTile] = {};
      if (is_finite) load(row, kind, at, count, sixteen);
      alignas(16) std::int8_t bytes[kTile];
      for (int i = 0; i < kTile; ++i) {
        // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, ties to even.
        const float whole = (sixteen[i] * inverse + 12582912.0f) - 12582912.0f;
        const std::int32_t step = static_cast<std::int32_t>(whole);
        bytes[i] = static_cast<std::int8_t>(step);
        sum += step;
      }
      const __m128i shuffled = _mm_shuffle_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)), transposed);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(x + at / kTile * tile_stride), shuffled);
    }
    sums[group * group_stride] = static_cast<float>(sum);
    steps[group * group_stride] = !is_finite ? std::nanf("") : is_zero ? 0.0f : top / 127.0f;
  }
}

void store(const float* from, int count, int kind, void* to) {
  if (kind == kFloat32) {
    std::memcpy(to, from, count * sizeof(float));
  } else if (kind == kBFloat16) {
    auto* bits = static_cast<std::uint16_t*>(to);
    for (int i = 0; i < count; ++i) {
      std::uint32_t wide;
      std::memcpy(&wide, from + i, sizeof(wide));
      const std::uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
      bits[i] = static_cast<std::uint16_t>((wide & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
    }
  } else {
    auto* bits = static_cast<std::uint16_t*>(to);
    for (int i = 0; i < count; ++i) {
      bits[i] = static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(from[i]), 0)));
    }
  }
}

}  // namespace
}  // namespace nearfar
