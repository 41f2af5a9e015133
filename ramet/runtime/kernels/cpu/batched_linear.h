// The quantised product of linear.h for many rows: the same numbers, bit for bit, with the roles of weights and activations exchanged.
//
// Eight rows of activations form a panel (one 32-byte vector per group of four k: byte 4·row + i), and four consecutive nibbles of one
// column are broadcast. Weights are unpacked to bytes once for kTile rows, so that a product costs one vpmaddubsw and one vpaddw per
// 32 multiplications and shares its two loads with seven others.
#pragma once
#include <vector>
#include "linear.h"
#include "transpose.h"

namespace ramet {

constexpr int kTile = 128;  // rows that share one unpacking of a weight panel: their activations stay in the second-level cache

struct alignas(64) UnpackedBlock {  // 32 k of eight columns
  uint8_t q[8][kPanel][4];
  float d[kPanel], m[kPanel];
};

struct alignas(64) RowPanel {  // 32 k of eight rows
  int8_t a[8][kPanel][4];
  float scale[kPanel], sum[kPanel];
};

// Rows 8p … 8p+7 of x into panels[p · blocks …].
inline void pack_rows(const Activations& x, int blocks, int64_t p, RowPanel* panels) {
  const int64_t k = int64_t(blocks) * kBlock;
  for (int b = 0; b < blocks; ++b) {
    RowPanel& to = panels[p * blocks + b];
    __m256 square[kPanel];
    for (int i = 0; i < kPanel; ++i) {
      const int64_t row = p * kPanel + i;
      square[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(x.a + row * k + b * kBlock));
      to.scale[i] = x.scale[row * blocks + b], to.sum[i] = x.sum[row * blocks + b];
    }
    transpose8(square);
    for (int g = 0; g < 8; ++g) _mm256_storeu_ps(reinterpret_cast<float*>(to.a[g]), square[g]);
  }
}

inline void unpack_panel(const uint8_t* w, int blocks, UnpackedBlock* out) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int b = 0; b < blocks; ++b, w += kRecord4, ++out) {
    for (int j = 0; j < 4; ++j) {
      const __m256i packed = bytes32(w + 32 * j);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out->q[j]), _mm256_and_si256(packed, low));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out->q[j + 4]), _mm256_and_si256(_mm256_srli_epi16(packed, 4), low));
    }
    _mm256_storeu_ps(out->d, half8(w + 128)), _mm256_storeu_ps(out->m, half8(w + 144));
  }
}

// acc[COLUMNS · PANELS] += w's columns from `first` × the rows of PANELS panels, whose blocks lie `stride` apart. `next`: the packed panel
// to fetch meanwhile.
template <int PANELS, int COLUMNS>
inline void tile4(const UnpackedBlock* w, int first, int blocks, const RowPanel* x, int64_t stride, __m256* acc, const uint8_t* next) {
  const __m256i ones = _mm256_set1_epi16(1);
  const uint8_t* q = w->q[0][first];
  for (int b = 0; b < blocks; ++b, ++w, ++x, q += sizeof(UnpackedBlock)) {
    asm("" : "+r"(q), "+r"(x), "+r"(w));  // else the compiler keeps a pointer per address, on the stack
    prefetch<kRecord4>(next + b * kRecord4);
    __m256i s[COLUMNS][PANELS];
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      __m256i a[PANELS];
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) {
        a[p] = bytes32(x[p * stride].a[g]);
        asm("" : "+x"(a[p]));  // else the compiler loads it again for every column
      }
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; ++c) {
        const __m256i four = broadcast4(reinterpret_cast<const int8_t*>(q + (g * kPanel + c) * 4));
#pragma GCC unroll 8
        for (int p = 0; p < PANELS; ++p) {
          const __m256i pairs = _mm256_maddubs_epi16(four, a[p]);
          s[c][p] = g == 0 ? pairs : _mm256_add_epi16(s[c][p], pairs);
        }
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) {
      const __m256 d = _mm256_broadcast_ss(w->d + first + c), m = _mm256_broadcast_ss(w->m + first + c);
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) {
        const __m256 dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(s[c][p], ones));
        const __m256 before = _mm256_fmadd_ps(dot, _mm256_mul_ps(d, _mm256_loadu_ps(x[p * stride].scale)), acc[c * PANELS + p]);
        acc[c * PANELS + p] = _mm256_fmadd_ps(m, _mm256_loadu_ps(x[p * stride].sum), before);
      }
    }
  }
}

// Eight columns of eight rows each, acc[column · PANELS + p] → y.
inline void put_tile(__m256* square, float* y, int64_t n, bool add) {
  transpose8(square);
  for (int i = 0; i < kPanel; ++i) {
    float* out = y + i * n;
    _mm256_storeu_ps(out, add ? _mm256_add_ps(_mm256_loadu_ps(out), square[i]) : square[i]);
  }
}

template <int PANELS>
inline void batched_panels(const Linear& w, int p, const UnpackedBlock* unpacked, const RowPanel* x, int64_t row, float* y, bool add) {
  const int blocks = w.k / kBlock;
  __m256 acc[PANELS][kPanel];
  constexpr int kColumns = kPanel / PANELS;
  for (int first = 0; first < kPanel; first += kColumns) {
    __m256 part[kPanel];
    for (int c = 0; c < kColumns; ++c)
      for (int i = 0; i < PANELS; ++i) part[c * PANELS + i] = _mm256_set1_ps(w.bias ? w.bias[p * kPanel + first + c] : 0.0f);
    tile4<PANELS, kColumns>(unpacked, first, blocks, x, blocks, part, w.panel(p + 1));
    for (int c = 0; c < kColumns; ++c)
      for (int i = 0; i < PANELS; ++i) acc[i][first + c] = part[c * PANELS + i];
  }
  for (int i = 0; i < PANELS; ++i) put_tile(acc[i], y + (row + i * kPanel) * w.n + p * kPanel, w.n, add);
}

// What `linear` writes between its input and its output.
struct LinearRoom {
  int batched_from = kPanel;  // rows from which products are batched; a matter of speed alone
  std::vector<RowPanel> rows;
  std::vector<std::vector<UnpackedBlock>> unpacked;  // by thread

  void reserve(size_t panels, size_t blocks, int threads) {
    if (rows.size() < panels * blocks) rows.resize(panels * blocks);
    unpacked.resize(threads);
    for (auto& u : unpacked)
      if (u.size() < blocks) u.resize(blocks);
  }
};

// Rows 0 … 8·row_panels-1 of weight panels first … last-1.
inline void batched_range(const Linear& w, int first, int last, int row_panels, const RowPanel* x, UnpackedBlock* unpacked, float* y, bool add) {
  const int blocks = w.k / kBlock;
  for (int begin = 0; begin < row_panels; begin += kTile / kPanel) {
    const int end = std::min(row_panels, begin + kTile / kPanel);
    for (int p = first; p < last; ++p) {
      unpack_panel(w.panel(p), blocks, unpacked);
      int r = begin;
      for (; r + 2 <= end; r += 2) batched_panels<2>(w, p, unpacked, x + int64_t(r) * blocks, int64_t(r) * kPanel, y, add);
      if (r < end) batched_panels<1>(w, p, unpacked, x + int64_t(r) * blocks, int64_t(r) * kPanel, y, add);
    }
  }
}

// y [rows, n] = or += x wᵀ + bias.
inline void linear(Pool& pool, const Linear& w, const Activations& x, int64_t rows, float* y, bool add, LinearRoom& room) {
  const int panels = w.n / kPanel, blocks = w.k / kBlock, row_panels = w.bits == 4 && rows >= room.batched_from ? int(rows / kPanel) : 0;
  if (row_panels) {
    room.reserve(row_panels, blocks, pool.num_threads());
    pool.share(row_panels, pool.num_threads() * 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t p = begin; p < end; ++p) pack_rows(x, blocks, p, room.rows.data());
    });
  }
  pool.share(panels, pool.num_threads() * 8, [&](int first, int last, int thread) {
    if (row_panels) batched_range(w, first, last, row_panels, room.rows.data(), room.unpacked[thread].data(), y, add);
    rows_range(w, first, last, x, int64_t(row_panels) * kPanel, rows, y, add);
  });
}

}  // namespace ramet
