// The quantised product of linear.h for many rows: the same numbers, bit for bit.
//
// Weights are unpacked to bytes once for kTile rows, sixteen columns at a time, and stay in the first-level cache while the rows pass by in fours.
// A product costs one vpmaddubsw and one vpaddw per 32 multiplications and shares its loads, two vectors of weights and four broadcasts, with
// seven others. What is broadcast together lies side by side, for which the rows are packed: from four lines it costs a tenth more.
#pragma once
#include <vector>
#include "aligned.h"
#include "linear.h"

namespace ramet {

constexpr int kTile = 256;   // rows that share one unpacking of weights: their activations stay in the second-level cache
constexpr int kTogether = 4;  // rows that pass by at a time

struct alignas(64) UnpackedBlock {  // 32 k of eight columns
  uint8_t q[8][kPanel][4];
  float d[kPanel], m[kPanel];
};

struct alignas(32) RowPanel {  // 32 k of four rows
  int8_t a[8][kTogether][4];
  float scale[kTogether], sum[kTogether];
};

// Rows 4p … of x, of which there are `rows`, into panels[p · blocks …]; what lies behind the last row repeats it.
inline void pack_rows(const Activations& x, int blocks, int64_t p, int64_t rows, RowPanel* panels) {
  int64_t row[kTogether];
  for (int i = 0; i < kTogether; ++i) row[i] = std::min(p * kTogether + i, rows - 1) * blocks;
  for (int b = 0; b < blocks; ++b) {
    RowPanel& to = panels[p * blocks + b];
    __m256i r[kTogether], t[kTogether];
    for (int i = 0; i < kTogether; ++i) {
      r[i] = bytes32(x.a + (row[i] + b) * kBlock);
      to.scale[i] = x.scale[row[i] + b], to.sum[i] = x.sum[row[i] + b];
    }
    for (int i = 0; i < 2; ++i) t[i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]), t[i + 2] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    for (int g = 0; g < 4; ++g) {  // groups g and g + 4
      const __m256i both = g % 2 ? _mm256_unpackhi_epi64(t[g & 2], t[(g & 2) + 1]) : _mm256_unpacklo_epi64(t[g & 2], t[(g & 2) + 1]);
      _mm256_storeu2_m128i(reinterpret_cast<__m128i*>(to.a[g + 4]), reinterpret_cast<__m128i*>(to.a[g]), both);
    }
  }
}

// A packed panel, whose blocks go `stride` apart.
inline void unpack_panel(const uint8_t* w, int blocks, UnpackedBlock* out, int stride) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int b = 0; b < blocks; ++b, w += kRecord4, out += stride) {
    for (int j = 0; j < 4; ++j) {
      const __m256i packed = bytes32(w + 32 * j);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out->q[j]), _mm256_and_si256(packed, low));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out->q[j + 4]), _mm256_and_si256(_mm256_srli_epi16(packed, 4), low));
    }
    _mm256_store_ps(out->d, half8(w + 128)), _mm256_store_ps(out->m, half8(w + 144));
  }
}

// acc[4 · PANELS] += four rows × the columns of PANELS panels, whose blocks alternate. `next`: packed panels to fetch meanwhile, or null.
// Not inlined, since the sums then stay in registers.
template <int PANELS>
[[gnu::noinline]] void tile4(const UnpackedBlock* w, int blocks, const RowPanel* x, __m256* acc, const uint8_t* next) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 total[kTogether][PANELS];
#pragma GCC unroll 4
  for (int r = 0; r < kTogether; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) total[r][p] = acc[r * PANELS + p];
  for (int b = 0; b < blocks; ++b, w += PANELS, ++x) {
    asm("" : "+r"(w), "+r"(x));  // else the compiler keeps a pointer per address, on the stack
    if (next) prefetch<PANELS * kRecord4>(next + b * PANELS * kRecord4);
    __m256i s[kTogether][PANELS];
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      __m256i q[PANELS];
#pragma GCC unroll 2
      for (int p = 0; p < PANELS; ++p) {
        q[p] = bytes32(w[p].q[g]);
        asm("" : "+x"(q[p]));  // else the compiler loads it again for every row
      }
#pragma GCC unroll 4
      for (int r = 0; r < kTogether; ++r) {
        const __m256i four = broadcast4(x->a[g][r]);
#pragma GCC unroll 2
        for (int p = 0; p < PANELS; ++p) {
          const __m256i pairs = _mm256_maddubs_epi16(q[p], four);
          if (g == 0) s[r][p] = pairs;
          else asm("vpaddw %1, %0, %0" : "+x"(s[r][p]) : "x"(pairs));  // from intrinsics the compiler makes copies
        }
      }
    }
    __m256 d[PANELS], m[PANELS];
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) {
      d[p] = _mm256_load_ps(w[p].d), m[p] = _mm256_load_ps(w[p].m);
      asm("" : "+x"(d[p]), "+x"(m[p]));
    }
#pragma GCC unroll 4
    for (int r = 0; r < kTogether; ++r) {
      const __m256 scale = _mm256_broadcast_ss(x->scale + r), sum = _mm256_broadcast_ss(x->sum + r);
#pragma GCC unroll 2
      for (int p = 0; p < PANELS; ++p) {
        const __m256 dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(s[r][p], ones));
        total[r][p] = _mm256_fmadd_ps(dot, _mm256_mul_ps(d[p], scale), total[r][p]);
        total[r][p] = _mm256_fmadd_ps(m[p], sum, total[r][p]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kTogether; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) acc[r * PANELS + p] = total[r][p];
}

// Rows begin … end-1 (begin a multiple of four) of PANELS weight panels from p on. `next`: the packed panels that come afterwards.
template <int PANELS>
inline void batched_panels(const Linear& w, int p, UnpackedBlock* unpacked, const RowPanel* x, int64_t begin, int64_t end, float* y, bool add, const uint8_t* next) {
  const int blocks = w.k / kBlock;
  __m256 start[PANELS], acc[kTogether * PANELS];
  for (int i = 0; i < PANELS; ++i) {
    unpack_panel(w.panel(p + i), blocks, unpacked + i, PANELS);
    start[i] = w.bias ? _mm256_loadu_ps(w.bias + (p + i) * kPanel) : _mm256_setzero_ps();
  }
  for (int64_t row = begin; row < end; row += kTogether) {
    for (int i = 0; i < kTogether * PANELS; ++i) acc[i] = start[i % PANELS];
    tile4<PANELS>(unpacked, blocks, x + row / kTogether * blocks, acc, row == begin ? next : nullptr);
    for (int r = 0; r < std::min<int64_t>(kTogether, end - row); ++r)
      for (int i = 0; i < PANELS; ++i) {
        float* out = y + (row + r) * w.n + (p + i) * kPanel;
        const __m256 result = acc[r * PANELS + i];
        _mm256_storeu_ps(out, add ? _mm256_add_ps(_mm256_loadu_ps(out), result) : result);
      }
  }
}

// What `linear` writes between its input and its output.
struct LinearRoom {
  int batched_from = kPanel;  // rows from which products are batched; a matter of speed alone
  Aligned<RowPanel> rows;
  std::vector<Aligned<UnpackedBlock>> unpacked;  // by thread

  void reserve(size_t panels, size_t blocks, int threads) {
    if (rows.size() < panels * blocks) rows.resize(panels * blocks);
    unpacked.resize(threads);
    for (auto& u : unpacked)
      if (u.size() < 2 * blocks) u.resize(2 * blocks);
  }
};

// All rows of weight panels first … last-1. `next`: the panel with which this thread probably goes on.
inline void batched_range(const Linear& w, int first, int last, int64_t rows, const RowPanel* x, UnpackedBlock* unpacked, float* y, bool add, int next) {
  for (int64_t begin = 0; begin < rows; begin += kTile) {
    const int64_t end = std::min(rows, begin + kTile);
    int p = first;
    const auto after = [&](int panel) { return w.panel(panel < last ? panel : end < rows ? first : next); };
    for (; p + 2 <= last; p += 2) batched_panels<2>(w, p, unpacked, x, begin, end, y, add, after(p + 2));
    if (p < last) batched_panels<1>(w, p, unpacked, x, begin, end, y, add, after(p + 1));
  }
}

inline void batched_linear(Pool& pool, const Linear& w, const Activations& x, int64_t rows, float* y, bool add, LinearRoom& room) {
  const int64_t row_panels = (rows + kTogether - 1) / kTogether;
  const int blocks = w.k / kBlock, threads = pool.num_threads(), panels = w.n / kPanel;
  room.reserve(row_panels, blocks, threads);
  pool.share(row_panels, threads * 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) pack_rows(x, blocks, p, rows, room.rows.data());
  });
  constexpr int64_t kMany = 128;  // rows for which sixteen columns are enough for a piece: the threads' ends come together
  pool.share((panels + 1) / 2, rows >= kMany ? panels : threads * 8, [&](int begin, int end, int thread) {
    const int first = 2 * begin, last = std::min(2 * end, panels), next = last + (threads - 1) * (last - first);
    batched_range(w, first, last, rows, room.rows.data(), room.unpacked[thread].data(), y, add, std::min(next, panels - 1));
  });
}

// y [rows, n] = or += x wᵀ + bias.
inline void linear(Pool& pool, const Linear& w, const Activations& x, int64_t rows, float* y, bool add, LinearRoom& room) {
  if (w.bits == 4 && rows >= room.batched_from) return batched_linear(pool, w, x, rows, y, add, room);
  pool.share(w.n / kPanel, pool.num_threads() * 8, [&](int first, int last, int) { rows_range(w, first, last, x, 0, rows, y, add); });
}

}  // namespace ramet
