// Attention of many queries of one row over its context in the paged KV pool: tiles of keys, gathered and transposed once, against a block
// of queries, as two small matrix products with a running softmax between them.
#pragma once
#include "decode_attention.h"
#include "transpose.h"

namespace ramet {

constexpr float kNever = -1e30f;                // the score of a key that a query does not see

// c[rows, n] (=|+=) a[rows, depth] b[depth, n], n a multiple of 16; six rows at a time (a short last group repeats its last row).
template <bool ADD>
inline void small_gemm(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int rows, int n, int depth) {
  constexpr int kRows = 6;
  for (int r = 0; r < rows; r += kRows) {
    const int last = std::min(kRows, rows - r) - 1;
    const float* x[kRows];
    for (int i = 0; i < kRows; ++i) x[i] = a + int64_t(r + std::min(i, last)) * lda;
    for (int j = 0; j < n; j += 16) {
      __m256 acc[kRows][2];
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
      for (int d = 0; d < depth; ++d) {
        const __m256 b0 = _mm256_loadu_ps(b + int64_t(d) * ldb + j), b1 = _mm256_loadu_ps(b + int64_t(d) * ldb + j + 8);
#pragma GCC unroll 6
        for (int i = 0; i < kRows; ++i) {
          const __m256 v = _mm256_broadcast_ss(x[i] + d);
          acc[i][0] = _mm256_fmadd_ps(v, b0, acc[i][0]);
          acc[i][1] = _mm256_fmadd_ps(v, b1, acc[i][1]);
        }
      }
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        if (i > last) continue;
        float* out = c + int64_t(r + i) * ldc + j;
        if (ADD) acc[i][0] = _mm256_add_ps(acc[i][0], _mm256_loadu_ps(out)), acc[i][1] = _mm256_add_ps(acc[i][1], _mm256_loadu_ps(out + 8));
        _mm256_storeu_ps(out, acc[i][0]);
        _mm256_storeu_ps(out + 8, acc[i][1]);
      }
    }
  }
}

// Per-thread buffers; rows = kQueries · G.
struct PrefillScratch {
  Aligned<float> q, k, v, s, o, m, l, top, total;  // m and l: each row's maximum and sum so far; top and total: the tile's
  std::vector<int64_t> places;  // of the unit's keys in the pool, in elements
  void resize(const Shape& shape) {
    const size_t rows = size_t(kQueries) * shape.group(), d = shape.head_dim;
    q.resize(rows * d), o.resize(rows * d), s.resize(rows * kKeys), m.resize(rows), l.resize(rows);
    top.resize(rows), total.resize(rows);
    k.resize(d * kKeys), v.resize(kKeys * d);
  }
};

template <class KV>
struct PrefillAttention {
  using Store = typename KV::Store;
  const Batch& batch;
  const Shape& shape;
  const Store *keys, *values;  // this layer's pool, [slots, kv_heads, head_dim]
  const float* query;          // [tokens, query_stride], heads first
  int64_t query_stride;
  float* out;  // [tokens, heads, head_dim]

  void run(const PrefillUnit& u, PrefillScratch& t) const {
    const int d = shape.head_dim, rows = u.num_queries * shape.group();
    t.places.resize(u.num_keys);
    batch.find_places(u.row, 0, u.num_keys, shape.slot(), int64_t(u.kv_head) * d, t.places.data());
    load_queries(u, t, rows);
    std::fill_n(t.o.begin(), rows * d, 0.0f);
    std::fill_n(t.m.begin(), rows, kNever);
    std::fill_n(t.l.begin(), rows, 0.0f);
    for (int key = u.first_key; key < u.num_keys; key += kKeys) {
      const int count = std::min(kKeys, u.num_keys - key);
      load_keys(&t.places[key], count, t);
      small_gemm<false>(t.q.data(), d, t.k.data(), kKeys, t.s.data(), kKeys, rows, kKeys, d);
      softmax_tile(u, key, count, t, rows);
      small_gemm<true>(t.s.data(), kKeys, t.v.data(), d, t.o.data(), d, rows, d, count);
    }
    store(u, t, rows);
  }

 private:
  void load_queries(const PrefillUnit& u, PrefillScratch& t, int rows) const {
    const int g = shape.group(), d = shape.head_dim;
    for (int r = 0; r < rows; ++r) put_scaled(query + (u.query + r / g) * query_stride + (u.kv_head * g + r % g) * d, shape.scale * kLog2E, d, &t.q[r * d]);
  }

  void load_keys(const int64_t* places, int count, PrefillScratch& t) const {
    const int d = shape.head_dim;
    for (int j = 0; j < kKeys; j += 8) {
      const Store* from[8];
      for (int i = 0; i < 8; ++i) from[i] = keys + places[std::min(j + i, count - 1)];
      for (int c = 0; c < d; c += 8) {
        __m256 square[8];
        for (int i = 0; i < 8; ++i) square[i] = KV::load8(from[i] + c);
        transpose8(square);
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(&t.k[(c + i) * kKeys + j], square[i]);
      }
      if (j + 8 >= count) break;
    }
    for (int i = 0; i < count; ++i) {
      const Store* from = values + places[i];
      for (int c = 0; c < d; c += 8) _mm256_storeu_ps(&t.v[i * d + c], KV::load8(from + c));
    }
  }

  // Scores → probabilities of this tile; rescales what earlier tiles brought. In passes over all rows, since one row's steps wait for each
  // other: from maximum to exponentials to sum.
  void softmax_tile(const PrefillUnit& u, int key, int count, PrefillScratch& t, int rows) const {
    const int g = shape.group(), d = shape.head_dim;
    for (int r = 0; r < rows; ++r) {
      float* s = &t.s[r * kKeys];
      const int visible = int(std::clamp<int64_t>(batch.positions[u.query + r / g] + 1 - key, 0, count));
      if (visible < kKeys) std::fill(s + visible, s + kKeys, kNever);
      std::fill_n(s, std::clamp(first_seen(int(batch.positions[u.query + r / g]) + 1, shape.window) - key, 0, kKeys), kNever);
      t.top[r] = std::max(t.m[r], largest(s));
    }
    for (int r = 0; r < rows; ++r) t.total[r] = exponentials(&t.s[r * kKeys], t.top[r]);
    for (int r = 0; r < rows; ++r) {
      if (t.top[r] != t.m[r]) {
        const float keep = std::exp2(t.m[r] - t.top[r]);
        t.m[r] = t.top[r];
        t.l[r] *= keep;
        put_scaled(&t.o[r * d], keep, d, &t.o[r * d]);
      }
      t.l[r] += t.total[r];
    }
  }

  static float largest(const float* s) {
    __m256 top = _mm256_loadu_ps(s);
    for (int j = 8; j < kKeys; j += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(s + j));
    return max_of(top);
  }

  // s → 2^(s − top), and their sum; nothing, where none was seen so far.
  static float exponentials(float* s, float top) {
    if (top == kNever) return std::fill_n(s, kKeys, 0.0f), 0.0f;
    const __m256 shift = _mm256_set1_ps(top);
    __m256 total = _mm256_setzero_ps();
    for (int j = 0; j < kKeys; j += 8) {
      const __m256 e = power_of_two8(_mm256_sub_ps(_mm256_loadu_ps(s + j), shift));
      _mm256_storeu_ps(s + j, e);
      total = _mm256_add_ps(total, e);
    }
    return sum_of(total);
  }

  void store(const PrefillUnit& u, const PrefillScratch& t, int rows) const {
    const int g = shape.group(), d = shape.head_dim;
    for (int r = 0; r < rows; ++r) {
      float* to = out + (int64_t(u.query + r / g) * shape.heads + u.kv_head * g + r % g) * d;
      put_scaled(&t.o[r * d], 1.0f / t.l[r], d, to);
    }
  }
};

}  // namespace ramet
