// Quantised linear layers: y[t, n] = Σ_k w[n, k] x[t, k], weights of 4, 5, 6 or 8 bits, activations quantised to 8 bits on the way in.
//
// Weights, in blocks of 32 along k:  4 and 5 bits  w = d·q + m, q in 0…15 or 0…31 (symmetric types have m = −8d or −16d)
//                                    8 bits        w = d·q, q in −128…127
//                                    6 bits        w = d·q, q in −32…31, one d for each half of the block
// Activations, same blocks:          x ≈ s·a, a in −127…127, s = max|x| / 127
//
//   y = Σ_blocks  d·s·Σ q·a  +  m·s·Σ a
//
// Eight output columns form a panel. Within a block a panel holds eight groups of four consecutive k: one 32-byte vector per group,
// byte 4·column + k. One broadcast of four activations then feeds eight columns with one vpmaddubsw. As many groups are summed in 16 bits
// before they are widened as fit: for 4 bits a product pair is at most 2·15·127 = 3810, so all eight (30480 < 32767); for 5 and 6 bits four
// (4·7874 and 4·8128); for 8 bits one (2·128·127). Each (t, n) is summed over the blocks in the same order whatever the batch: a row's
// result does not depend on its neighbours.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <type_traits>
#include "pool.h"

namespace ramet {

constexpr int kBlock = 32, kPanel = 8;
constexpr int64_t kRecord4 = 128 + 16 + 16;       // groups j and j + 4 in the nibbles of a byte, d[8] fp16, m[8] fp16
constexpr int64_t kRecord5 = 128 + 32 + 16 + 16;  // the same, and group j's fifth bits as bit j of 32 bytes
constexpr int64_t kRecord6 = 128 + 64 + 16 + 16;  // the same of q + 32, groups j and j + 4 with bits 2j of 32 bytes each; d[8] of either half
constexpr int64_t kRecord8 = 256 + 16;            // bytes, d[8] fp16

constexpr int64_t record_bytes(int bits) { return bits == 4 ? kRecord4 : bits == 5 ? kRecord5 : bits == 6 ? kRecord6 : kRecord8; }

struct Linear {
  int32_t n, k, bits;  // n and k: multiples of 8 and 32
  const uint8_t* packed;
  const float* bias;  // [n] or null
  const uint8_t* panel(int p) const { return packed + int64_t(p) * (k / kBlock) * record_bytes(bits); }
};

// Where a product goes: y [rows, n] within lines of `stride`; added to what is there, or written.
struct Output {
  float* y;
  int64_t stride;
  bool add = false;

  void put8(int64_t row, int panel, __m256 sum) const {
    float* out = y + row * stride + panel * kPanel;
    _mm256_storeu_ps(out, add ? _mm256_add_ps(_mm256_loadu_ps(out), sum) : sum);
  }
};

// Activations of `rows` rows: a [rows, k], scale and sum [rows, k/32] (sum = s·Σa).
struct Activations {
  int8_t* a;
  float* scale;
  float* sum;
};

inline float max_of(__m256 v) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}

inline float sum_of(__m256 v) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}

inline void quantize_block(const float* x, int8_t* a, float* scale, float* sum) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 v[4], largest = _mm256_setzero_ps();
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_loadu_ps(x + 8 * i);
    largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, v[i]));
  }
  const float m = max_of(largest);
  *scale = m / 127.0f;
  const __m256 inverse = _mm256_set1_ps(m > 0 ? 127.0f / m : 0.0f);
  __m256i q[4];
  for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
  const __m256i total = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
  *sum = *scale * sum_of(_mm256_cvtepi32_ps(total));
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(a), _mm256_permutevar8x32_epi32(bytes, order));
}

inline void quantize_row(const float* x, int k, int64_t row, const Activations& out) {
  const int blocks = k / kBlock;
  for (int b = 0; b < blocks; ++b) {
    const int64_t at = row * blocks + b;
    quantize_block(x + b * kBlock, out.a + at * kBlock, out.scale + at, out.sum + at);
  }
}

inline __m256 half8(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline __m256i bytes32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i broadcast4(const int8_t* p) {  // one load, no shuffle
  return _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const float*>(p)));
}

constexpr int kAhead = 1280;  // bytes of weights between what is multiplied and what is fetched

template <int BYTES>
inline void prefetch(const uint8_t* w) {
  for (int i = 0; i < BYTES; i += 64) _mm_prefetch(reinterpret_cast<const char*>(w + i), _MM_HINT_T0);
}

// Group j of a record's block, a byte each; 6 bits as −32…31.
template <int BITS>
inline __m256i group_of(const uint8_t* w, int j) {
  if constexpr (BITS == 8) return bytes32(w + 32 * j);
  const __m256i packed = bytes32(w + 32 * (j & 3));
  __m256i q = _mm256_and_si256(j < 4 ? packed : _mm256_srli_epi16(packed, 4), _mm256_set1_epi8(15));
  if constexpr (BITS == 5) {
    const __m256i high = bytes32(w + 128), moved = j < 4 ? _mm256_slli_epi16(high, 4 - j) : _mm256_srli_epi16(high, j - 4);
    q = _mm256_or_si256(q, _mm256_and_si256(moved, _mm256_set1_epi8(16)));
  }
  if constexpr (BITS == 6) {
    const int i = j & 3;
    const __m256i high = bytes32(w + 128 + 32 * (j / 4));
    const __m256i moved = i < 2 ? _mm256_slli_epi16(high, 4 - 2 * i) : _mm256_srli_epi16(high, 2 * i - 4);
    q = _mm256_sub_epi8(_mm256_or_si256(q, _mm256_and_si256(moved, _mm256_set1_epi8(48))), _mm256_set1_epi8(32));
  }
  return q;
}

// Groups whose products are summed before they are widened: in 16 bits, and of 8 bits, which are widened at once, in 32.
template <int BITS>
constexpr int kChain = BITS == 5 || BITS == 6 ? 4 : 8;

// q·a of a group, where `magnitude` is |q| of numbers that have signs.
template <int BITS>
inline __m256i products(__m256i q, __m256i magnitude, __m256i a) {
  if constexpr (BITS < 6) return _mm256_maddubs_epi16(q, a);
  const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, q));
  return BITS == 6 ? pairs : _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

template <int BITS>
inline __m256i plus(__m256i s, __m256i products) {
  return BITS == 8 ? _mm256_add_epi32(s, products) : _mm256_add_epi16(s, products);
}

template <int BITS>
inline __m256 widened(__m256i s) {
  return _mm256_cvtepi32_ps(BITS == 8 ? s : _mm256_madd_epi16(s, _mm256_set1_epi16(1)));
}

// d of a record's block whose chain begins with group `first`, and m.
template <int BITS>
inline __m256 scales_of(const uint8_t* w, int first) {
  return half8(w + record_bytes(BITS) - (BITS == 8 || (BITS == 6 && first) ? 16 : 32));
}

template <int BITS>
inline __m256 minima_of(const uint8_t* w) {
  return half8(w + record_bytes(BITS) - 16);
}

constexpr bool has_minima(int bits) { return bits < 6; }

// One panel of eight columns for ROWS rows of activations.
template <int BITS, int ROWS>
inline void panel(const uint8_t* w, int blocks, const int8_t* a, const float* scale, const float* sum, __m256* acc) {
  const int64_t k = int64_t(blocks) * kBlock;
  for (int b = 0; b < blocks; ++b, w += record_bytes(BITS)) {
    prefetch<record_bytes(BITS)>(w + kAhead);
#pragma GCC unroll 2
    for (int first = 0; first < 8; first += kChain<BITS>) {
      __m256i s[ROWS];
      for (int r = 0; r < ROWS; ++r) s[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int j = first; j < first + kChain<BITS>; ++j) {
        const __m256i q = group_of<BITS>(w, j), magnitude = _mm256_abs_epi8(q);
        for (int r = 0; r < ROWS; ++r) s[r] = plus<BITS>(s[r], products<BITS>(q, magnitude, broadcast4(a + r * k + b * kBlock + 4 * j)));
      }
      const __m256 d = scales_of<BITS>(w, first);
      for (int r = 0; r < ROWS; ++r)
        acc[r] = _mm256_fmadd_ps(widened<BITS>(s[r]), _mm256_mul_ps(d, _mm256_broadcast_ss(scale + int64_t(r) * blocks + b)), acc[r]);
    }
    if constexpr (has_minima(BITS))
      for (int r = 0; r < ROWS; ++r)
        acc[r] = _mm256_fmadd_ps(minima_of<BITS>(w), _mm256_broadcast_ss(sum + int64_t(r) * blocks + b), acc[r]);
  }
}

// body(BITS)
template <class Body>
inline void with_bits(int bits, const Body& body) {
  if (bits == 4) body(std::integral_constant<int, 4>());
  else if (bits == 5) body(std::integral_constant<int, 5>());
  else if (bits == 6) body(std::integral_constant<int, 6>());
  else body(std::integral_constant<int, 8>());
}

template <int ROWS>
inline void panel_rows(const Linear& w, int p, const Activations& x, int64_t row, const Output& out) {
  const int blocks = w.k / kBlock;
  __m256 acc[ROWS];
  const __m256 start = w.bias ? _mm256_loadu_ps(w.bias + p * kPanel) : _mm256_setzero_ps();
  for (int r = 0; r < ROWS; ++r) acc[r] = start;
  const int8_t* a = x.a + row * w.k;
  const float *scale = x.scale + row * blocks, *sum = x.sum + row * blocks;
  with_bits(w.bits, [&]<int BITS>(std::integral_constant<int, BITS>) { panel<BITS, ROWS>(w.panel(p), blocks, a, scale, sum, acc); });
  for (int r = 0; r < ROWS; ++r) out.put8(row + r, p, acc[r]);
}

// Rows begin … end-1 of weight panels first … last-1.
inline void rows_range(const Linear& w, int first, int last, const Activations& x, int64_t begin, int64_t end, const Output& out) {
  for (int p = first; p < last; ++p) {
    int64_t row = begin;
    for (; row + 4 <= end; row += 4) panel_rows<4>(w, p, x, row, out);
    if (end - row >= 2) panel_rows<2>(w, p, x, row, out), row += 2;
    if (end - row >= 1) panel_rows<1>(w, p, x, row, out);
  }
}

}  // namespace ramet
