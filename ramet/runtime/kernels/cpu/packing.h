// Weights into the panels of linear.h, a block of 32 values of eight rows at a time.
//
// GGUF's types keep their integers. Those that divide 256 values into groups have scales of few bits under one fp16: the two are multiplied
// and rounded to fp16 (2⁻¹¹ of the product at most; exact where it is subnormal). Layouts: ggml-common.h of github.com/ggml-org/ggml.
#pragma once
#include <cstdlib>
#include "linear.h"
#include "transpose.h"

namespace ramet {

// A block of one row: integers as linear.h has them, but 6 bits as 0…63.
struct alignas(32) RowBlock {
  uint8_t q[kBlock];
  uint16_t d, m;  // of 6 bits: d of the first half, and d of the second
};

inline uint16_t to_half(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

inline uint16_t half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}

inline float float_at(const uint8_t* p) { return _cvtsh_ss(half_at(p)); }

// Word g of row c → to[32 g + 4 c]: four bytes of eight rows side by side.
inline void transpose_words(const RowBlock* rows, __m256i* to) {
  __m256 r[8];
  for (int c = 0; c < 8; ++c) r[c] = _mm256_load_ps(reinterpret_cast<const float*>(rows[c].q));
  transpose8(r);
  for (int g = 0; g < 8; ++g) to[g] = _mm256_castps_si256(r[g]);
}

inline void store32(uint8_t* to, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }

inline void put_record(int bits, const RowBlock* rows, uint8_t* record) {
  __m256i q[8];
  transpose_words(rows, q);
  uint8_t* scales = record + record_bytes(bits) - (bits == 8 ? 16 : 32);
  for (int c = 0; c < kPanel; ++c) {
    std::memcpy(scales + 2 * c, &rows[c].d, 2);
    if (bits != 8) std::memcpy(scales + 16 + 2 * c, &rows[c].m, 2);
  }
  if (bits == 8) {
    for (int g = 0; g < 8; ++g) store32(record + 32 * g, q[g]);
    return;
  }
  const __m256i low = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16), both = _mm256_set1_epi8(48);
  for (int g = 0; g < 4; ++g)
    store32(record + 32 * g, _mm256_or_si256(_mm256_and_si256(q[g], low), _mm256_slli_epi16(_mm256_and_si256(q[g + 4], low), 4)));
  if (bits == 5) {
    __m256i high = _mm256_setzero_si256();
    for (int g = 0; g < 8; ++g) {
      const __m256i bit = _mm256_and_si256(q[g], fifth);
      high = _mm256_or_si256(high, g < 4 ? _mm256_srli_epi16(bit, 4 - g) : _mm256_slli_epi16(bit, g - 4));
    }
    store32(record + 128, high);
  }
  if (bits == 6)
    for (int h = 0; h < 2; ++h) {
      __m256i high = _mm256_setzero_si256();
      for (int g = 0; g < 4; ++g) {
        const __m256i two = _mm256_and_si256(q[4 * h + g], both);
        high = _mm256_or_si256(high, g < 2 ? _mm256_srli_epi16(two, 4 - 2 * g) : _mm256_slli_epi16(two, 2 * g - 4));
      }
      store32(record + 128 + 32 * h, high);
    }
}

// Panel p of a matrix [·, k] with one integer per byte, d and m [·, k/32] fp16 (m unused for 8 bits); 4 or 8 bits.
inline void pack_panel(int bits, int64_t k, int64_t p, const int8_t* q, const uint16_t* d, const uint16_t* m, uint8_t* out) {
  const int64_t blocks = k / kBlock;
  uint8_t* record = out + p * blocks * record_bytes(bits);
  for (int64_t b = 0; b < blocks; ++b, record += record_bytes(bits)) {
    RowBlock rows[kPanel];
    for (int c = 0; c < kPanel; ++c) {
      const int64_t at = (p * kPanel + c) * blocks + b;
      std::memcpy(rows[c].q, q + at * kBlock, kBlock);
      rows[c].d = d[at], rows[c].m = bits == 8 ? 0 : m[at];
    }
    put_record(bits, rows, record);
  }
}

// 16 bytes of two values each: all low halves, then all high ones.
inline __m256i nibbles16(const uint8_t* p) {
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), low = _mm_set1_epi8(15);
  return _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(both, 4), low), _mm_and_si128(both, low));
}

// 32 bytes' bits shift … shift+3 (MASK 15) or fewer.
template <int MASK>
inline __m256i bits_at(const uint8_t* p, int shift) {
  return _mm256_and_si256(_mm256_srl_epi16(bytes32(p), _mm_cvtsi32_si128(shift)), _mm256_set1_epi8(MASK));
}

// 16 where bit i of the word is set, for 32 values i.
inline __m256i fifths_of(const uint8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
  const __m256i set = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of), bit);
  return _mm256_and_si256(_mm256_cmpeq_epi8(set, bit), _mm256_set1_epi8(16));
}

// IQ4's sixteen values, as bytes.
inline __m256i curved(__m256i nibbles) {
  const __m128i values = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), nibbles);
}

// By GGUF's numbers.
enum GgufType : int {
  Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23
};

struct StoredType {
  int bits, values, bytes;  // of a panel; values and bytes of one of the file's blocks
};

inline StoredType stored_type(GgufType type) {
  switch (type) {
    case Q4_0: return {4, 32, 18};
    case Q4_1: return {4, 32, 20};
    case Q5_0: return {5, 32, 22};
    case Q5_1: return {5, 32, 24};
    case Q8_0: return {8, 32, 34};
    case Q3_K: return {6, 256, 110};
    case Q4_K: return {4, 256, 144};
    case Q5_K: return {5, 256, 176};
    case Q6_K: return {6, 256, 210};
    case IQ4_NL: return {8, 32, 18};
    case IQ4_XS: return {8, 256, 136};
  }
  std::abort();
}

// The fp16 at p times a number of few bits.
inline uint16_t times(const uint8_t* p, int number) { return to_half(float_at(p) * float(number)); }

// Third bits, two low bits, 6-bit scales of 16 values (four bits, then two), d.
inline __m256i unpack_q3_k(const uint8_t* p, int g, RowBlock& to) {
  const uint8_t* scales = p + 96;
  const auto scale = [&](int i) { return ((scales[i % 8] >> (i / 8 * 4) & 15) | (scales[8 + i % 4] >> (i / 4 * 2) & 3) << 4) - 32; };
  to.d = times(p + 108, scale(2 * g)), to.m = times(p + 108, scale(2 * g + 1));
  const __m256i third = _mm256_slli_epi16(bits_at<1>(p, g), 2), low = bits_at<3>(p + 32 + g / 4 * 32, g % 4 * 2);
  return _mm256_add_epi8(_mm256_or_si256(third, low), _mm256_set1_epi8(32 - 4));  // 0…7 for −4…3
}

// d and dmin, and for each group 6 bits of scale and of minimum in twelve bytes: what Q4_K and Q5_K begin with.
inline void unpack_scales(const uint8_t* p, int g, RowBlock& to) {
  const uint8_t* six = p + 4;
  const int scale = g < 4 ? six[g] & 63 : (six[g + 4] & 15) | (six[g - 4] >> 6) << 4;
  const int minimum = g < 4 ? six[g + 4] & 63 : six[g + 4] >> 4 | (six[g] >> 6) << 4;
  to.d = times(p, scale), to.m = times(p + 2, -minimum);
}

inline __m256i unpack_q4_k(const uint8_t* p, int g, RowBlock& to) {
  unpack_scales(p, g, to);
  return bits_at<15>(p + 16 + g / 2 * 32, g % 2 * 4);
}

inline __m256i unpack_q5_k(const uint8_t* p, int g, RowBlock& to) {
  unpack_scales(p, g, to);
  return _mm256_or_si256(bits_at<15>(p + 48 + g / 2 * 32, g % 2 * 4), _mm256_slli_epi16(bits_at<1>(p + 16, g), 4));
}

// Four low bits, two high bits, 8-bit scales of 16 values, d.
inline __m256i unpack_q6_k(const uint8_t* p, int g, RowBlock& to) {
  const int8_t* scales = reinterpret_cast<const int8_t*>(p + 192);
  to.d = times(p + 208, scales[2 * g]), to.m = times(p + 208, scales[2 * g + 1]);
  const int half = g / 4, quarter = g % 4;
  const __m256i low = bits_at<15>(p + 64 * half + quarter % 2 * 32, quarter / 2 * 4), high = bits_at<3>(p + 128 + 32 * half, 2 * quarter);
  return _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
}

// d, 6-bit scales of the groups (two high bits, then four), nibbles.
inline __m256i unpack_iq4_xs(const uint8_t* p, int g, RowBlock& to) {
  const int scale = (p[4 + g / 2] >> (g % 2 * 4) & 15) | (half_at(p + 2) >> (2 * g) & 3) << 4;
  to.d = times(p, scale - 32);
  return curved(nibbles16(p + 8 + 16 * g));
}

// Codes of group g of 32 values of the block at p; its scales into `to`.
inline __m256i unpack_group(GgufType type, const uint8_t* p, int g, RowBlock& to) {
  to.d = half_at(p), to.m = 0;
  switch (type) {
    case Q4_0: to.m = times(p, -8); return nibbles16(p + 2);
    case Q4_1: to.m = half_at(p + 2); return nibbles16(p + 4);
    case Q5_0: to.m = times(p, -16); return _mm256_or_si256(nibbles16(p + 6), fifths_of(p + 2));
    case Q5_1: to.m = half_at(p + 2); return _mm256_or_si256(nibbles16(p + 8), fifths_of(p + 4));
    case Q8_0: return bytes32(p + 2);
    case Q3_K: return unpack_q3_k(p, g, to);
    case Q4_K: return unpack_q4_k(p, g, to);
    case Q5_K: return unpack_q5_k(p, g, to);
    case Q6_K: return unpack_q6_k(p, g, to);
    case IQ4_NL: return curved(nibbles16(p + 2));
    case IQ4_XS: return unpack_iq4_xs(p, g, to);
  }
  std::abort();
}

inline void unpack(GgufType type, const uint8_t* p, int g, RowBlock& to) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(to.q), unpack_group(type, p, g, to));
}

// The numbers of an unpacked block.
inline void put_floats(int bits, const RowBlock& from, float* to) {
  const __m256 d = _mm256_set1_ps(_cvtsh_ss(from.d)), m = _mm256_set1_ps(_cvtsh_ss(from.m)), offset = _mm256_set1_ps(32.0f);
  for (int i = 0; i < kBlock; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from.q + i));
    const __m256 q = _mm256_cvtepi32_ps(bits == 8 ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
    __m256 x = _mm256_mul_ps(d, q);
    if (bits == 6) x = _mm256_mul_ps(i < kBlock / 2 ? d : m, _mm256_sub_ps(q, offset));
    else if (bits != 8) x = _mm256_add_ps(x, m);
    _mm256_storeu_ps(to + i, x);
  }
}

// A row of k numbers as GGUF stores it.
inline void unpack_row(GgufType type, const uint8_t* row, int k, float* to) {
  const StoredType stored = stored_type(type);
  const int groups = stored.values / kBlock;
  for (int b = 0; b < k / kBlock; ++b) {
    RowBlock block;
    unpack(type, row + int64_t(b / groups) * stored.bytes, b % groups, block);
    put_floats(stored.bits, block, to + b * kBlock);
  }
}

// One panel from eight rows as GGUF stores them.
inline void pack_stored_panel(GgufType type, int64_t k, const uint8_t* rows, int64_t row_bytes, uint8_t* to) {
  const StoredType stored = stored_type(type);
  const int groups = stored.values / kBlock;
  for (int64_t b = 0; b < k / kBlock; ++b, to += record_bytes(stored.bits)) {
    RowBlock unpacked[kPanel];
    for (int c = 0; c < kPanel; ++c) unpack(type, rows + c * row_bytes + b / groups * stored.bytes, int(b % groups), unpacked[c]);
    put_record(stored.bits, unpacked, to);
  }
}

}  // namespace ramet
