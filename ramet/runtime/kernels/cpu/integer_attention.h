// Attention of many queries of one row over its context, in 16-bit integers: the same tiles and running softmax as in prefill_attention.h, with
// both matrix products by vpmaddwd, which multiplies twice as many numbers as an FMA. For keys and values that are kept in 16 bits anyway.
//
// Queries, like keys, have length 32,700 before rounding: by Cauchy and Schwarz every partial sum of their product is below 32,767² < 2³⁰.
// With scores s_j in powers of two and values v_j = σ_j·u_j, a tile weighs its values with 2^(s_j)·σ_j = 2^(s_j + log₂ σ_j), rounded to integers
// p_j ≤ 4,096, of which the largest is 4,096; 64 · 4,096 · 8,191 < 2³¹. So with t = max(s_j + log₂ σ_j)
//
//   Σ 2^(s_j) v_j  ≈  2^(t−12) · Σ p_j u_j          Σ 2^(s_j)  =  2^(t−12) · Σ 2^(s_j + log₂ σ_j − t + 12) / σ_j     (the latter not rounded)
//
// and tiles are added in float32, relative to the largest t so far. What a query does not see counts exactly nothing, and tiles begin at
// multiples of 64: no number depends on other queries, or on how the context was cut into steps.
#pragma once
#include "key_tiles.h"

namespace ramet {

constexpr int kGroup = 24;  // rows (a head of a query each) that meet a tile together: their scores stay in the first-level cache
constexpr int kRows = 6;    // of these, multiplied at a time
constexpr float kWeightBits = 12.0f;
constexpr float kUnseen = -1e30f, kLowest = -1e29f;  // score of a key that a query does not see; the least that a maximum can be

// put(i, sums): of row i and sixteen columns, as floats, a[6, pairs] b[pairs, 16] in pairs of 16-bit integers. Not inlined, since the sums then
// stay in registers.
template <class Put>
[[gnu::noinline]] void multiply(const int32_t* a, int lda, const int32_t* b, int pairs, const Put& put) {
  __m256i acc[kRows][2];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
  for (int d = 0; d < pairs; ++d, ++a, b += 16) {
    const __m256i b0 = bytes32(b), b1 = bytes32(b + 8);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m256i v = broadcast4(reinterpret_cast<const int8_t*>(a + int64_t(i) * lda));
      const __m256i p0 = _mm256_madd_epi16(v, b0), p1 = _mm256_madd_epi16(v, b1);
      asm("vpaddd %1, %0, %0" : "+x"(acc[i][0]) : "x"(p0));  // from intrinsics the compiler makes a copy of each sum
      asm("vpaddd %1, %0, %0" : "+x"(acc[i][1]) : "x"(p1));
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) put(i, _mm256_cvtepi32_ps(acc[i][0]), _mm256_cvtepi32_ps(acc[i][1]));
}

// Per-thread buffers. Rows, kQueries · G of them rounded up to whole groups, are one head of one query each.
struct IntegerScratch {
  Aligned<int16_t> q, p;                       // [rows, d]; [kGroup, 64]
  Aligned<float> q_scale, m, sum, o;           // [rows]: of one unit of q; largest t so far; [rows, 8]: Σ 2^(s), in eight parts; [rows, d]
  Aligned<float> s, top, keep, weight;         // of a tile: [kGroup, 64]; [kGroup]: its t, what earlier tiles and it count
  void resize(const Shape& shape) {
    const size_t rows = size_t(kQueries * shape.group() + kGroup - 1) / kGroup * kGroup, d = shape.head_dim;
    q.resize(rows * d), p.resize(kGroup * kKeys), q_scale.resize(rows), m.resize(rows), sum.resize(rows * 8), o.resize(rows * d);
    s.resize(kGroup * kKeys), top.resize(kGroup), keep.resize(kGroup), weight.resize(kGroup);
  }
};

// 2^x for x ≤ kWeightBits, relative error 3e-6; exactly 0 for x ≤ −127.
inline __m256 weight8(__m256 x) {
  x = _mm256_max_ps(x, _mm256_set1_ps(-127.0f));
  const __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm256_sub_ps(x, n);
  __m256 p = _mm256_set1_ps(9.582851161e-3f);
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.590643153e-2f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.402409869e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.931241924e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}

struct IntegerAttention {
  const Batch& batch;
  const Shape& shape;
  const KeyTiles& tiles;
  const float* query;  // [tokens, query_stride], heads first
  int64_t query_stride;
  float* out;  // [tokens, heads, head_dim]

  void run(const PrefillUnit& u, IntegerScratch& t) const {
    const int d = shape.head_dim, rows = (u.num_queries * shape.group() + kGroup - 1) / kGroup * kGroup;
    load_queries(u, t, rows);
    std::fill_n(t.o.begin(), rows * d, 0.0f);
    std::fill_n(t.sum.begin(), rows * 8, 0.0f);
    std::fill_n(t.m.begin(), rows, kLowest);
    for (int key = u.first_key; key < u.num_keys; key += kKeys) {
      const Tile tile = tiles.at(u, key);
      for (int r = 0; r < rows; r += kGroup) {
        const int seen = seen_by(u, r + kGroup - 1, key);
        if (seen > 0) add_tile(u, tile, key, r, (seen + 15) / 16 * 16, t);
      }
    }
    store(u, t);
  }

 private:
  // How many keys of the tile that begins at `key` row r sees; what lies behind the last row sees what that does.
  int seen_by(const PrefillUnit& u, int r, int key) const {
    const int q = u.query + std::min(r / shape.group(), u.num_queries - 1);
    return int(std::clamp<int64_t>(batch.positions[q] + 1 - key, 0, kKeys));
  }

  // How many of the tile's keys lie before row r's window.
  int passed_by(const PrefillUnit& u, int r, int key) const {
    const int q = u.query + std::min(r / shape.group(), u.num_queries - 1);
    return std::clamp(first_seen(int(batch.positions[q]) + 1, shape.window) - key, 0, kKeys);
  }

  void load_queries(const PrefillUnit& u, IntegerScratch& t, int rows) const {
    const int g = shape.group(), d = shape.head_dim, last = u.num_queries * g - 1;
    for (int i = 0; i < rows; ++i) {
      const int r = std::min(i, last);
      const float* from = query + (u.query + r / g) * query_stride + (u.kv_head * g + r % g) * d;
      t.q_scale[i] = shape.scale * kLog2E * put_unit([&](int c) { return _mm256_loadu_ps(from + c); }, d, &t.q[i * d]);
    }
  }

  // Rows r … r + kGroup - 1 against the first n keys of a tile.
  void add_tile(const PrefillUnit& u, const Tile& tile, int key, int r, int n, IntegerScratch& t) const {
    const int d = shape.head_dim;
    put_scores(tile, &t.q[r * d], &t.q_scale[r], n, d, t.s.data());
    if (seen_by(u, r, key) < n)
      for (int i = 0; i < kGroup; ++i) std::fill(&t.s[i * kKeys + seen_by(u, r + i, key)], &t.s[i * kKeys + n], kUnseen);
    if (passed_by(u, r + kGroup - 1, key) > 0)
      for (int i = 0; i < kGroup; ++i) std::fill_n(&t.s[i * kKeys], std::min(passed_by(u, r + i, key), n), kUnseen);
    put_factors(t.s.data(), n, &t.m[r], t.top.data(), t.keep.data(), t.weight.data());
    for (int i = 0; i < kGroup; ++i) {
      float* sum = &t.sum[(r + i) * 8];
      const __m256 total = put_weights(&t.s[i * kKeys], tile.value_inverse, t.top[i], n, &t.p[i * kKeys]);
      const __m256 before = _mm256_mul_ps(_mm256_loadu_ps(sum), _mm256_broadcast_ss(&t.keep[i]));
      _mm256_storeu_ps(sum, _mm256_fmadd_ps(total, _mm256_broadcast_ss(&t.weight[i]), before));
    }
    add_values(tile, t.p.data(), t.keep.data(), t.weight.data(), n, d, &t.o[r * d]);
  }

  static void put_scores(const Tile& tile, const int16_t* q, const float* q_scale, int n, int d, float* s) {
    const float *scale = tile.key_scale, *log = tile.value_log;
    const int32_t *pairs = reinterpret_cast<const int32_t*>(q), *keys = tile.keys;
    for (int r = 0; r < kGroup; r += kRows)
      for (int j = 0; j < n; j += 16) {
        const auto put = [by = scale + j, plus = log + j, row_scale = q_scale + r, to = s + r * kKeys + j](int i, __m256 low, __m256 high) {
          const __m256 f = _mm256_broadcast_ss(row_scale + i);
          _mm256_storeu_ps(to + i * kKeys, _mm256_fmadd_ps(_mm256_mul_ps(_mm256_loadu_ps(by), low), f, _mm256_loadu_ps(plus)));
          _mm256_storeu_ps(to + i * kKeys + 8, _mm256_fmadd_ps(_mm256_mul_ps(_mm256_loadu_ps(by + 8), high), f, _mm256_loadu_ps(plus + 8)));
        };
        multiply(pairs + r * (d / 2), d / 2, keys + j * (d / 2), d / 2, put);
      }
  }

  // Each row's largest score here and so far (m), and what earlier tiles and this one count beside the larger of them.
  static void put_factors(const float* s, int n, float* m, float* top, float* keep, float* weight) {
    for (int r = 0; r < kGroup; r += 8) {
      __m256 most[8];
      for (int i = 0; i < 8; ++i) {
        const float* row = s + (r + i) * kKeys;
        most[i] = _mm256_set1_ps(kLowest);
        for (int j = 0; j < n; j += 8) most[i] = _mm256_max_ps(most[i], _mm256_loadu_ps(row + j));
      }
      transpose8(most);
      __m256 here = most[0];
      for (int i = 1; i < 8; ++i) here = _mm256_max_ps(here, most[i]);
      const __m256 before = _mm256_loadu_ps(m + r), after = _mm256_max_ps(before, here);
      _mm256_storeu_ps(top + r, here);
      _mm256_storeu_ps(m + r, after);
      _mm256_storeu_ps(keep + r, power_of_two8(_mm256_sub_ps(before, after)));
      _mm256_storeu_ps(weight + r, power_of_two8(_mm256_sub_ps(here, after)));
    }
  }

  // One row's integers; gives back Σ_j p_j / σ_j, before rounding.
  static __m256 put_weights(const float* s, const float* inverse, float top, int n, int16_t* p) {
    const __m256 shift = _mm256_set1_ps(top - kWeightBits);
    __m256 total = _mm256_setzero_ps();
    for (int j = 0; j < n; j += 16) {
      const __m256 a = weight8(_mm256_sub_ps(_mm256_loadu_ps(s + j), shift)), b = weight8(_mm256_sub_ps(_mm256_loadu_ps(s + j + 8), shift));
      total = _mm256_fmadd_ps(a, _mm256_loadu_ps(inverse + j), total);
      total = _mm256_fmadd_ps(b, _mm256_loadu_ps(inverse + j + 8), total);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + j), _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)));
    }
    return total;
  }

  static void add_values(const Tile& tile, const int16_t* p, const float* keep, const float* weight, int n, int d, float* o) {
    const int32_t *pairs = reinterpret_cast<const int32_t*>(p), *values = tile.values;
    for (int r = 0; r < kGroup; r += kRows)
      for (int c = 0; c < d; c += 16) {
        const auto put = [d, old = keep + r, now = weight + r, to = o + r * d + c](int i, __m256 low, __m256 high) {
          const __m256 k = _mm256_broadcast_ss(old + i), w = _mm256_broadcast_ss(now + i);
          float* at = to + i * d;
          _mm256_storeu_ps(at, _mm256_fmadd_ps(w, low, _mm256_mul_ps(k, _mm256_loadu_ps(at))));
          _mm256_storeu_ps(at + 8, _mm256_fmadd_ps(w, high, _mm256_mul_ps(k, _mm256_loadu_ps(at + 8))));
        };
        multiply(pairs + r * (kKeys / 2), kKeys / 2, values + c * (kKeys / 2), n / 2, put);
      }
  }

  void store(const PrefillUnit& u, const IntegerScratch& t) const {
    const int g = shape.group(), d = shape.head_dim;
    for (int r = 0; r < u.num_queries * g; ++r) {
      float* to = out + (int64_t(u.query + r / g) * shape.heads + u.kv_head * g + r % g) * d;
      put_scaled(&t.o[r * d], 1.0f / sum_of(_mm256_loadu_ps(&t.sum[r * 8])), d, to);
    }
  }
};

}  // namespace ramet
