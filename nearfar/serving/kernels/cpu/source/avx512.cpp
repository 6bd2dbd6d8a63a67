// The kernel with AVX-512 and VNNI: 16 outputs in the lanes of a register, four columns to a vpdpbusd.

#include <immintrin.h>

#include "kernel.h"
#include "rows.h"

namespace nearfar {
namespace {

// How far the streams are fetched ahead: the time to memory is that of about ten groups of 64 columns.
constexpr int kAheadTiles = 48;
constexpr int kAheadGroups = 16;

inline void ahead(const void* stream, std::int64_t bytes) {
  _mm_prefetch(static_cast<const char*>(stream) + bytes, _MM_HINT_T0);
}

inline __m512i select(int mask, __m512i where_one, __m512i where_zero) {
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(mask)), where_one, where_zero, 0xca);
}

inline __m512i masked(__m512i value, int mask) {
  return _mm512_and_si512(value, _mm512_set1_epi8(static_cast<char>(mask)));
}

// Fields of two neighbouring planes beside each other: nibbles of fields 0 and 2, and of fields 1 and 3.
inline void merge(__m512i upper, __m512i lower, __m512i& even, __m512i& odd) {
  even = select(0x33, lower, _mm512_slli_epi16(upper, 2));
  odd = select(0xcc, upper, _mm512_srli_epi16(lower, 2));
}

// The four fields of a tile as bytes. With one and two planes and `InPlace`, field f is shifted[f] bits too high.
template <int Planes, bool InPlace>
inline void unpack(const std::uint8_t* tile, std::int64_t stride, __m512i last_mask, __m512i fields[4]) {
  __m512i plane[Planes];
  for (int p = 0; p < Planes; ++p) {
    plane[p] = _mm512_loadu_si512(tile + p * stride);
    ahead(tile + p * stride, kAheadTiles * 64);
  }
  plane[Planes - 1] = _mm512_and_si512(plane[Planes - 1], last_mask);
  if constexpr (Planes == 1) {
    for (int f = 0; f < 4; ++f) {
      fields[f] = InPlace ? masked(plane[0], 3 << 2 * f) : masked(_mm512_srli_epi16(plane[0], 2 * f), 3);
    }
    return;
  } else {
    __m512i even, odd;
    merge(plane[0], plane[1], even, odd);
    if constexpr (Planes == 2) {
      fields[0] = masked(even, 0x0f);
      fields[1] = masked(odd, 0x0f);
      fields[2] = InPlace ? masked(even, 0xf0) : masked(_mm512_srli_epi16(even, 4), 0x0f);
      fields[3] = InPlace ? masked(odd, 0xf0) : masked(_mm512_srli_epi16(odd, 4), 0x0f);
      return;
    } else {
      __m512i low_even, low_odd;
      if constexpr (Planes == 4) {
        merge(plane[2], plane[3], low_even, low_odd);
      } else {
        low_even = masked(_mm512_slli_epi16(plane[2], 2), 0xcc);
        low_odd = masked(plane[2], 0xcc);
      }
      fields[0] = select(0xf0, _mm512_slli_epi16(even, 4), low_even);
      fields[1] = select(0xf0, _mm512_slli_epi16(odd, 4), low_odd);
      fields[2] = select(0xf0, even, _mm512_srli_epi16(low_even, 4));
      fields[3] = select(0xf0, odd, _mm512_srli_epi16(low_odd, 4));
    }
  }
}

inline __m512i four(const std::int8_t* x) {
  std::int32_t bytes;
  std::memcpy(&bytes, x, sizeof(bytes));
  return _mm512_set1_epi32(bytes);
}

template <int Planes, bool IsTop, int Rows>
void pass(const Pass& job) {
  // A lone row has four sums, so that no vpdpbusd waits for the one before; they also take fields where they are.
  constexpr int kSums = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  constexpr bool kInPlace = Rows == 1 && Planes <= 2;
  constexpr float kStep = Planes == 1 ? 1.0f / 4 : Planes == 2 ? 1.0f / 16 : 1.0f / 256;
  const float middle = 0.5f / static_cast<float>(1 << job.width) - 0.5f;
  const __m512i last_mask = _mm512_set1_epi8(static_cast<char>(job.width % 2 ? 0xaa : 0xff));
  const __m512 sixteenth = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 slopes =
      _mm512_fmadd_ps(sixteenth, _mm512_set1_ps(job.range[1] * kStep), _mm512_set1_ps(job.range[0] * kStep));
  const __m512 offsets = _mm512_fmadd_ps(sixteenth, _mm512_set1_ps(job.range[3]), _mm512_set1_ps(job.range[2]));
  __m512 total[Rows];
  for (int r = 0; r < Rows; ++r) total[r] = _mm512_setzero_ps();
  std::int64_t tile = 0;
  for (std::int64_t group = 0; tile < job.tiles; ++group) {
    const std::int64_t end = tile + job.group_tiles < job.tiles ? tile + job.group_tiles : job.tiles;
    __m512i sum[Rows][kSums];
    for (int r = 0; r < Rows; ++r) {
      for (int s = 0; s < kSums; ++s) sum[r][s] = _mm512_setzero_si512();
    }
    for (; tile < end; ++tile) {
      __m512i fields[4];
      unpack<Planes, kInPlace>(job.planes + tile * 64, job.plane_stride, last_mask, fields);
      const std::int8_t* x = job.x + tile * Rows * kTile;
      for (int r = 0; r < Rows; ++r) {
        for (int f = 0; f < 4; ++f) {
          __m512i& into = sum[r][f % kSums];
          into = _mm512_dpbusd_epi32(into, fields[f], four(x + r * kTile + 4 * f));
        }
      }
    }
    ahead(job.scales + group * kTile, kAheadGroups * kTile * 2);
    ahead(job.zeros + group * kTile, kAheadGroups * kTile);
    const __m512 scale =
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(job.scales + group * kTile)));
    const __m512 zero = _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(job.zeros + group * kTile))));
    __m512 slope = _mm512_set1_ps(kStep);
    __m512 offset = _mm512_set1_ps(middle);
    if constexpr (!IsTop) {
      ahead(job.refits + group * kTile, kAheadGroups * kTile);
      const __m512i refit =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(job.refits + group * kTile)));
      slope = _mm512_permutexvar_ps(_mm512_srli_epi32(refit, 4), slopes);
      offset = _mm512_fmadd_ps(slope, _mm512_set1_ps(middle / kStep), _mm512_permutexvar_ps(refit, offsets));
    }
    offset = _mm512_fmadd_ps(zero, _mm512_set1_ps(1.0f / 256), offset);
    for (int r = 0; r < Rows; ++r) {
      __m512i whole = sum[r][0];
      if constexpr (kSums == 2) whole = _mm512_add_epi32(whole, sum[r][1]);
      if constexpr (kSums == 4) {
        constexpr int kShift[4] = {0, Planes == 1 ? 2 : 0, Planes == 1 ? 4 : kInPlace ? 4 : 0,
                                   Planes == 1 ? 6 : kInPlace ? 4 : 0};
        const __m512i second = _mm512_srai_epi32(sum[r][1], kShift[1]);
        const __m512i third = _mm512_srai_epi32(sum[r][2], kShift[2]);
        const __m512i fourth = _mm512_srai_epi32(sum[r][3], kShift[3]);
        whole = _mm512_add_epi32(_mm512_add_epi32(whole, second), _mm512_add_epi32(third, fourth));
      }
      const __m512 dot = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), slope);
      const __m512 value = _mm512_fmadd_ps(offset, _mm512_set1_ps(job.sums[group * Rows + r]), dot);
      const __m512 step = _mm512_set1_ps(job.steps[group * Rows + r]);
      total[r] = _mm512_fmadd_ps(scale, _mm512_mul_ps(value, step), total[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) _mm512_storeu_ps(job.out + r * kTile, total[r]);
}

template <int Planes, int Rows>
void at_planes(const Pass& job) {
  if (job.refits == nullptr) {
    pass<Planes, true, Rows>(job);
  } else {
    pass<Planes, false, Rows>(job);
  }
}

template <int Rows>
void run(const Pass& job) {
  switch ((job.width + 1) / 2) {
    case 1:
      return at_planes<1, Rows>(job);
    case 2:
      return at_planes<2, Rows>(job);
    case 3:
      return at_planes<3, Rows>(job);
    default:
      return at_planes<4, Rows>(job);
  }
}

}  // namespace

const Instructions kAvx512 = {
    quantize, {run<1>, run<2>, run<3>, run<4>, run<5>, run<6>, run<7>, run<8>}, store};

}  // namespace nearfar
