// The quantised product of linear.h for many rows: the same numbers, bit for bit.
//
// Weights are unpacked to bytes once for kTile rows, sixteen columns at a time, and stay in the first-level cache while the rows pass by in
// fours. A product costs one vpmaddubsw and one vpaddw per 32 multiplications (with signs more) and shares its loads, two vectors
// of weights and four broadcasts, with seven others. What is broadcast together lies side by side, for which the rows are packed: from
// four lines it costs a tenth more.
#pragma once
#include <vector>
#include "aligned.h"
#include "kv.h"
#include "linear.h"

namespace ramet {

constexpr int kTile = 256;   // rows that share one unpacking of weights: their activations stay in the second-level cache
constexpr int kTogether = 4;  // rows that pass by at a time

struct alignas(64) UnpackedBlock {  // 32 k of eight columns
  uint8_t q[8][kPanel][4];         // for 6 bits with signs
  float d[kPanel], m[kPanel];      // for 6 bits m is d of the second half
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
    for (int i = 0; i < 2; ++i) {
      t[i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
      t[i + 2] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int g = 0; g < 4; ++g) {  // groups g and g + 4
      const __m256i both = g % 2 ? _mm256_unpackhi_epi64(t[g & 2], t[(g & 2) + 1]) : _mm256_unpacklo_epi64(t[g & 2], t[(g & 2) + 1]);
      _mm256_storeu2_m128i(reinterpret_cast<__m128i*>(to.a[g + 4]), reinterpret_cast<__m128i*>(to.a[g]), both);
    }
  }
}

// A packed panel, whose blocks go `stride` apart.
template <int BITS>
inline void unpack_panel(const uint8_t* w, int blocks, UnpackedBlock* out, int stride) {
  for (int b = 0; b < blocks; ++b, w += record_bytes(BITS), out += stride) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) _mm256_store_si256(reinterpret_cast<__m256i*>(out->q[j]), group_of<BITS>(w, j));
    _mm256_store_ps(out->d, scales_of<BITS>(w, 0)), _mm256_store_ps(out->m, minima_of<BITS>(w));
  }
}

// acc[4 · PANELS] += four rows × the columns of PANELS panels, whose blocks alternate. `next`: packed panels to fetch meanwhile, or null.
// Not inlined, since the sums then stay in registers.
template <int BITS, int PANELS>
[[gnu::noinline]] void tile4(const UnpackedBlock* w, int blocks, const RowPanel* x, __m256* acc, const uint8_t* const* next) {
  __m256 total[kTogether][PANELS];
#pragma GCC unroll 4
  for (int r = 0; r < kTogether; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) total[r][p] = acc[r * PANELS + p];
  for (int b = 0; b < blocks; ++b, w += PANELS, ++x) {
    asm("" : "+r"(w), "+r"(x));  // else the compiler keeps a pointer per address, on the stack
    if (next)
      for (int p = 0; p < PANELS; ++p) prefetch<record_bytes(BITS)>(next[p] + b * record_bytes(BITS));
#pragma GCC unroll 2
    for (int first = 0; first < 8; first += kChain<BITS>) {
      __m256i s[kTogether][PANELS];
#pragma GCC unroll 8
      for (int g = first; g < first + kChain<BITS>; ++g) {
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
            const __m256i own = products<BITS>(q[p], _mm256_abs_epi8(q[p]), four);
            if (g == first) s[r][p] = own;
            else if constexpr (BITS == 8) asm("vpaddd %1, %0, %0" : "+x"(s[r][p]) : "x"(own));
            else asm("vpaddw %1, %0, %0" : "+x"(s[r][p]) : "x"(own));  // from intrinsics the compiler makes copies
          }
        }
      }
      __m256 d[PANELS];
#pragma GCC unroll 2
      for (int p = 0; p < PANELS; ++p) {
        d[p] = _mm256_load_ps(BITS == 6 && first ? w[p].m : w[p].d);
        asm("" : "+x"(d[p]));
      }
#pragma GCC unroll 4
      for (int r = 0; r < kTogether; ++r) {
        const __m256 scale = _mm256_broadcast_ss(x->scale + r);
#pragma GCC unroll 2
        for (int p = 0; p < PANELS; ++p) {
          total[r][p] = _mm256_fmadd_ps(widened<BITS>(s[r][p]), _mm256_mul_ps(d[p], scale), total[r][p]);
        }
      }
    }
    if constexpr (!has_minima(BITS)) continue;
    __m256 m[PANELS];
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) {
      m[p] = _mm256_load_ps(w[p].m);
      asm("" : "+x"(m[p]));
    }
#pragma GCC unroll 4
    for (int r = 0; r < kTogether; ++r) {
      const __m256 sum = _mm256_broadcast_ss(x->sum + r);
#pragma GCC unroll 2
      for (int p = 0; p < PANELS; ++p) total[r][p] = _mm256_fmadd_ps(m[p], sum, total[r][p]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kTogether; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) acc[r * PANELS + p] = total[r][p];
}

// What `batched` writes between its input and its output.
struct LinearRoom {
  int batched_from = kPanel;  // rows from which products are batched; a matter of speed alone
  Aligned<RowPanel> rows;
  std::vector<Aligned<UnpackedBlock>> unpacked;  // by thread

  bool batches(int64_t num_rows) const { return num_rows >= batched_from; }

  void reserve(size_t panels, size_t blocks, int threads) {
    if (rows.size() < panels * blocks) rows.resize(panels * blocks);
    unpacked.resize(threads);
    for (auto& u : unpacked)
      if (u.size() < 2 * blocks) u.resize(2 * blocks);
  }
};

struct PanelPair {
  int first, second;  // second −1: there is no other panel
};

// Rows begin … end-1 (begin a multiple of four) of weight panels: PANELS of `pair`. `next`: which probably comes afterwards.
template <int BITS, int PANELS, class Fetch, class Put>
inline void batched_panels(const Linear& w, PanelPair pair, PanelPair next, UnpackedBlock* unpacked, const RowPanel* x, int64_t begin,
                           int64_t end, const Fetch& fetch, const Put& put) {
  const int blocks = w.k / kBlock, panels[2] = {pair.first, pair.second};
  const uint8_t* fetched[2] = {w.panel(next.first), w.panel(std::max(next.second, 0))};
  __m256 start[PANELS], acc[kTogether * PANELS];
  for (int i = 0; i < PANELS; ++i) {
    unpack_panel<BITS>(w.panel(panels[i]), blocks, unpacked + i, PANELS);
    start[i] = w.bias ? _mm256_loadu_ps(w.bias + panels[i] * kPanel) : _mm256_setzero_ps();
  }
  for (int64_t row = begin; row < end; row += kTogether) {
    for (int i = 0; i < kTogether * PANELS; ++i) acc[i] = start[i % PANELS];
    for (int r = 0; r < std::min<int64_t>(kTogether, end - row); ++r) fetch(row + r, pair);
    tile4<BITS, PANELS>(unpacked, blocks, x + row / kTogether * blocks, acc, row == begin ? fetched : nullptr);
    for (int r = 0; r < std::min<int64_t>(kTogether, end - row); ++r) put(row + r, pair, acc + r * PANELS);
  }
}

// put(row, pair, sums) for every row and each of `pairs` pairs of panels, where pair_at(i) is the i-th; sums: of the pair's columns, eight
// a vector. fetch(row, pair) comes first: where put will write lies beyond the second-level cache.
template <class PairAt, class Fetch, class Put>
inline void batched(Pool& pool, const Linear& w, const Activations& x, int64_t rows, LinearRoom& room, int pairs, const PairAt& pair_at,
                    const Fetch& fetch, const Put& put) {
  constexpr int64_t kMany = 128;  // rows for which one pair is enough for a piece: the threads' ends come together
  const int64_t row_panels = (rows + kTogether - 1) / kTogether;
  const int blocks = w.k / kBlock, threads = pool.num_threads();
  room.reserve(row_panels, blocks, threads);
  const RowPanel* packed = room.rows.data();
  pool.share(row_panels, threads * 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) pack_rows(x, blocks, p, rows, room.rows.data());
  });
  pool.share(pairs, rows >= kMany ? pairs : threads * 8, [&](int first, int last, int thread) {
    const int other = std::min(last + (threads - 1) * (last - first), pairs - 1);  // with which this thread probably goes on
    for (int64_t begin = 0; begin < rows; begin += kTile) {
      const int64_t end = std::min(rows, begin + kTile);
      for (int i = first; i < last; ++i) {
        const PanelPair pair = pair_at(i), next = pair_at(i + 1 < last ? i + 1 : end < rows ? first : other);
        with_bits(w.bits, [&]<int BITS>(std::integral_constant<int, BITS>) {
          UnpackedBlock* unpacked = room.unpacked[thread].data();
          if (pair.second < 0) batched_panels<BITS, 1>(w, pair, next, unpacked, packed, begin, end, fetch, put);
          else batched_panels<BITS, 2>(w, pair, next, unpacked, packed, begin, end, fetch, put);
        });
      }
    }
  });
}

// out = or += x wᵀ + bias.
inline void linear(Pool& pool, const Linear& w, const Activations& x, int64_t rows, const Output& out, LinearRoom& room) {
  const int panels = w.n / kPanel;
  if (!room.batches(rows))
    return pool.share(panels, pool.num_threads() * 8, [&](int first, int last, int) { rows_range(w, first, last, x, 0, rows, out); });
  const auto pair_at = [&](int i) { return PanelPair{2 * i, 2 * i + 1 < panels ? 2 * i + 1 : -1}; };
  const auto fetch = [&](int64_t row, PanelPair pair) { __builtin_prefetch(out.y + row * out.stride + pair.first * kPanel, 1); };
  batched(pool, w, x, rows, room, (panels + 1) / 2, pair_at, fetch, [&](int64_t row, PanelPair pair, const __m256* sums) {
    out.put8(row, pair.first, sums[0]);
    if (pair.second >= 0) out.put8(row, pair.second, sums[1]);
  });
}

// y [rows, n/2] = activation(gate) ∘ up, where x wᵀ + bias = [gate, up]; for rows that `room` batches.
inline void gated_linear(Pool& pool, const Linear& w, const Activations& x, int64_t rows, float* y, int activation, LinearRoom& room) {
  const int pairs = w.n / kPanel / 2;
  const auto fetch = [&](int64_t row, PanelPair pair) { __builtin_prefetch(y + row * (w.n / 2) + pair.first * kPanel, 1); };
  const auto pair_at = [&](int i) { return PanelPair{i, i + pairs}; };
  batched(pool, w, x, rows, room, pairs, pair_at, fetch, [&](int64_t row, PanelPair pair, const __m256* sums) {
    _mm256_storeu_ps(y + row * (w.n / 2) + pair.first * kPanel, gated8(sums[0], sums[1], activation));
  });
}

}  // namespace ramet
