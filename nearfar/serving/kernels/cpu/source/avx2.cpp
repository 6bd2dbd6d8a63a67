// The kernel with AVX2: 8 outputs in the lanes of a register, nibbles times int8 added up in 16 bits.
//
// A vpmaddubsw adds two products in 16 bits. Nibbles keep it and the sum of all four fields of a tile in range:
// 4 * 2 * 15 * 127 < 2^15. Codes of more than four bits are two nibbles with a sum each.

#include <immintrin.h>

#include "kernel.h"
#include "rows.h"

namespace nearfar {
namespace {

constexpr int kLanes = 8;

inline __m256i masked(__m256i value, int mask) {
  return _mm256_and_si256(value, _mm256_set1_epi8(static_cast<char>(mask)));
}

// Nibbles of the four fields out of two neighbouring planes.
inline void nibbles(__m256i upper, __m256i lower, __m256i fields[4]) {
  const __m256i even = _mm256_or_si256(masked(_mm256_slli_epi16(upper, 2), 0xcc), masked(lower, 0x33));
  const __m256i odd = _mm256_or_si256(masked(upper, 0xcc), masked(_mm256_srli_epi16(lower, 2), 0x33));
  fields[0] = masked(even, 0x0f);
  fields[1] = masked(odd, 0x0f);
  fields[2] = masked(_mm256_srli_epi16(even, 4), 0x0f);
  fields[3] = masked(_mm256_srli_epi16(odd, 4), 0x0f);
}

template <int Planes>
inline void unpack(const std::uint8_t* tile, std::int64_t stride, __m256i last_mask, __m256i fields[2][4]) {
  __m256i plane[4] = {};
  for (int p = 0; p < Planes; ++p) {
    plane[p] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + p * stride));
  }
  plane[Planes - 1] = _mm256_and_si256(plane[Planes - 1], last_mask);
  if constexpr (Planes == 1) {
    for (int f = 0; f < 4; ++f) fields[0][f] = masked(_mm256_srli_epi16(plane[0], 2 * f), 3);
    return;
  } else {
    nibbles(plane[0], plane[1], fields[0]);
    if constexpr (Planes > 2) nibbles(plane[2], plane[3], fields[1]);
  }
}

inline __m256i dot(const __m256i fields[4], const std::int8_t* x) {
  __m256i narrow = _mm256_setzero_si256();
  for (int f = 0; f < 4; ++f) {
    std::int32_t four;
    std::memcpy(&four, x + 4 * f, sizeof(four));
    narrow = _mm256_add_epi16(narrow, _mm256_maddubs_epi16(fields[f], _mm256_set1_epi32(four)));
  }
  return _mm256_madd_epi16(narrow, _mm256_set1_epi16(1));
}

template <int Planes, int Rows>
void half(const Pass& job, int lane) {
  constexpr int kSums = Planes > 2 ? 2 : 1;
  constexpr float kStep = Planes == 1 ? 1.0f / 4 : Planes == 2 ? 1.0f / 16 : 1.0f / 256;
  const float middle = 0.5f / static_cast<float>(1 << job.width) - 0.5f;
  const __m256i last_mask = _mm256_set1_epi8(static_cast<char>(job.width % 2 ? 0xaa : 0xff));
  __m256 total[Rows];
  for (int r = 0; r < Rows; ++r) total[r] = _mm256_setzero_ps();
  std::int64_t tile = 0;
  for (std::int64_t group = 0; tile < job.tiles; ++group) {
    const std::int64_t end = tile + job.group_tiles < job.tiles ? tile + job.group_tiles : job.tiles;
    __m256i sum[Rows][kSums];
    for (int r = 0; r < Rows; ++r) {
      for (int s = 0; s < kSums; ++s) sum[r][s] = _mm256_setzero_si256();
    }
    for (; tile < end; ++tile) {
      __m256i fields[2][4];
      unpack<Planes>(job.planes + tile * 64 + 4 * lane, job.plane_stride, last_mask, fields);
      for (int r = 0; r < Rows; ++r) {
        for (int s = 0; s < kSums; ++s) {
          sum[r][s] = _mm256_add_epi32(sum[r][s], dot(fields[s], job.x + (tile * Rows + r) * kTile));
        }
      }
    }
    const std::int64_t at = group * kTile + lane;
    const auto eight = [at](const auto* from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + at)); };
    const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(job.scales + at)));
    const __m256 zero = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(job.zeros)));
    __m256 slope = _mm256_set1_ps(kStep);
    __m256 offset = _mm256_set1_ps(middle);
    if (job.refits != nullptr) {
      const __m256i refit = _mm256_cvtepu8_epi32(eight(job.refits));
      const __m256 upper = _mm256_cvtepi32_ps(_mm256_srli_epi32(refit, 4));
      const __m256 lower = _mm256_cvtepi32_ps(_mm256_and_si256(refit, _mm256_set1_epi32(15)));
      slope = _mm256_fmadd_ps(upper, _mm256_set1_ps(job.range[1] * kStep), _mm256_set1_ps(job.range[0] * kStep));
      offset = _mm256_fmadd_ps(lower, _mm256_set1_ps(job.range[3]), _mm256_set1_ps(job.range[2]));
      offset = _mm256_fmadd_ps(slope, _mm256_set1_ps(middle / kStep), offset);
    }
    offset = _mm256_fmadd_ps(zero, _mm256_set1_ps(1.0f / 256), offset);
    for (int r = 0; r < Rows; ++r) {
      __m256i whole = sum[r][0];
      if constexpr (kSums == 2) whole = _mm256_add_epi32(_mm256_slli_epi32(whole, 4), sum[r][1]);
      const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), slope);
      const __m256 value = _mm256_fmadd_ps(offset, _mm256_set1_ps(job.sums[group * Rows + r]), product);
      const __m256 step = _mm256_set1_ps(job.steps[group * Rows + r]);
      total[r] = _mm256_fmadd_ps(scale, _mm256_mul_ps(value, step), total[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) _mm256_storeu_ps(job.out + r * kTile + lane, total[r]);
}

template <int Planes, int Rows>
void pass(const Pass& job) {
  half<Planes, Rows>(job, 0);
  half<Planes, Rows>(job, kLanes);
}

template <int Rows>
void run(const Pass& job) {
  switch ((job.width + 1) / 2) {
    case 1:
      return pass<1, Rows>(job);
    case 2:
      return pass<2, Rows>(job);
    case 3:
      return pass<3, Rows>(job);
    default:
      return pass<4, Rows>(job);
  }
}

}  // namespace

const Instructions kAvx2 = {
    quantize, {run<1>, run<2>, run<3>, run<4>, run<5>, run<6>, run<7>, run<8>}, store};

}  // namespace nearfar
