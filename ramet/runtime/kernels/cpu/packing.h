// Weights into the panels of linear.h.
#pragma once
#include "linear.h"
#include "transpose.h"

namespace ramet {

// Puts eight rows' block of 32 values (already integers) into a panel record.
inline void put_block(int bits, const int8_t (*q)[kBlock], const uint16_t* d, const uint16_t* m, uint8_t* record) {
  if (bits == 4) {
    for (int g = 0; g < 4; ++g)
      for (int c = 0; c < kPanel; ++c)
        for (int i = 0; i < 4; ++i) record[32 * g + 4 * c + i] = uint8_t(q[c][4 * g + i] | q[c][4 * (g + 4) + i] << 4);
    std::memcpy(record + 128, d, 16), std::memcpy(record + 144, m, 16);
  } else {
    for (int g = 0; g < 8; ++g)
      for (int c = 0; c < kPanel; ++c)
        for (int i = 0; i < 4; ++i) record[32 * g + 4 * c + i] = uint8_t(q[c][4 * g + i]);
    std::memcpy(record + 256, d, 16);
  }
}

// Panel p of a matrix [·, k] with one integer per byte, d and m [·, k/32] fp16 (m unused for 8 bits).
inline void pack_panel(int bits, int64_t k, int64_t p, const int8_t* q, const uint16_t* d, const uint16_t* m, uint8_t* out) {
  const int64_t blocks = k / kBlock, record = bits == 4 ? kRecord4 : kRecord8;
  for (int64_t b = 0; b < blocks; ++b) {
    int8_t tile[kPanel][kBlock];
    uint16_t scale[kPanel], low[kPanel] = {};
    for (int c = 0; c < kPanel; ++c) {
      const int64_t row = p * kPanel + c;
      std::memcpy(tile[c], q + row * k + b * kBlock, kBlock);
      scale[c] = d[row * blocks + b];
      if (bits == 4) low[c] = m[row * blocks + b];
    }
    put_block(bits, tile, scale, low, out + (p * blocks + b) * record);
  }
}

// Words of four bytes of eight rows, 4 or 8 each: word g of row c → to[32 g + 4 c].
inline void transpose_words(const uint8_t* from, int64_t row_bytes, int words, uint8_t* to) {
  __m256 r[8];
  if (words == 8) {
    for (int c = 0; c < 8; ++c) r[c] = _mm256_loadu_ps(reinterpret_cast<const float*>(from + c * row_bytes));
    transpose8(r);
  } else {
    const auto half = [&](int c) { return _mm_loadu_ps(reinterpret_cast<const float*>(from + c * row_bytes)); };
    __m256 pair[4];
    for (int c = 0; c < 4; ++c) pair[c] = _mm256_set_m128(half(c + 4), half(c));
    for (int h = 0; h < 2; ++h) {
      const __m256 a = h ? _mm256_unpackhi_ps(pair[0], pair[1]) : _mm256_unpacklo_ps(pair[0], pair[1]);
      const __m256 b = h ? _mm256_unpackhi_ps(pair[2], pair[3]) : _mm256_unpacklo_ps(pair[2], pair[3]);
      r[2 * h] = _mm256_shuffle_ps(a, b, 0x44), r[2 * h + 1] = _mm256_shuffle_ps(a, b, 0xee);
    }
  }
  for (int g = 0; g < words; ++g) _mm256_storeu_ps(reinterpret_cast<float*>(to + 32 * g), r[g]);
}

// One panel from eight rows as GGUF stores them, blocks of: d (fp16), for Q4_1 m (fp16), then 16 bytes of which byte j holds values j and
// j + 16; or for Q8_0 32 bytes. Bytes of four consecutive values lie as a panel wants them already.
inline void pack_stored_panel(int bits, bool has_minimum, int64_t k, const uint8_t* rows, int64_t row_bytes, uint8_t* to) {
  const int head = has_minimum ? 4 : 2, words = bits == 4 ? 4 : 8;
  for (int64_t b = 0; b < k / kBlock; ++b, rows += head + 4 * words, to += bits == 4 ? kRecord4 : kRecord8) {
    transpose_words(rows + head, row_bytes, words, to);
    for (int c = 0; c < kPanel; ++c) {
      uint16_t d, m;
      std::memcpy(&d, rows + c * row_bytes, 2);
      std::memcpy(to + 32 * words + 2 * c, &d, 2);
      if (bits == 8) continue;
      if (has_minimum) std::memcpy(&m, rows + c * row_bytes + 2, 2);
      else m = _cvtss_sh(-8.0f * _cvtsh_ss(d), _MM_FROUND_TO_NEAREST_INT);
      std::memcpy(to + 32 * words + 16 + 2 * c, &m, 2);
    }
  }
}

}  // namespace ramet
