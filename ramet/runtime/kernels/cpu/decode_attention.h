// Attention of single queries over a segment of the paged KV pool, read in place.
//
// Scores of the whole segment first, one softmax, then the values: keys and values pass through the cache once. The G query heads of a KV
// head, and the queries of all rows that share the segment, meet each converted key and value together, up to three at a time,
// which is what sixteen registers hold beside four keys or four vectors of a value. How many meet changes no number.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>
#include "aligned.h"
#include "kv.h"
#include "linear.h"
#include "schedule.h"

namespace ramet {

struct Shape {
  int32_t heads, kv_heads, head_dim;
  float scale;
  int32_t window = 0;  // keys that a query sees, itself included; 0: all
  int group() const { return heads / kv_heads; }
  int64_t slot() const { return int64_t(kv_heads) * head_dim; }  // elements of the pool
};

// Per-thread buffers. A row is one head of one query; rows of a KV head lie together.
struct DecodeScratch {
  Aligned<float> q, s, total;   // [rows, head_dim], [rows, kSegment], [rows]
  std::vector<int64_t> places;  // of the segment's slots in the pool, in elements
  void resize(const Shape& shape) {
    const size_t rows = size_t(kSharers) * shape.heads;
    q.resize(rows * shape.head_dim), s.resize(rows * kSegment), total.resize(rows);
    places.resize(kSegment);
  }
};

// to[0 … d-1] = factor · from
inline void put_scaled(const float* from, float factor, int d, float* to) {
  const __m256 f = _mm256_set1_ps(factor);
  for (int i = 0; i < d; i += 8) _mm256_storeu_ps(to + i, _mm256_mul_ps(f, _mm256_loadu_ps(from + i)));
}

// Sums of four vectors, in order.
inline __m128 sums_of(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

// s[row · kSegment … +3] = q[row] · four keys, for ROWS rows.
template <class KV, int ROWS>
inline void score(const typename KV::Store* const* key, const float* q, int d, float* s) {
  __m256 acc[ROWS][4];
#pragma GCC unroll 3
  for (int r = 0; r < ROWS; ++r) acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = _mm256_setzero_ps();
  for (int c = 0; c < d; c += 8) {
    __m256 x[ROWS];
#pragma GCC unroll 3
    for (int r = 0; r < ROWS; ++r) x[r] = _mm256_loadu_ps(q + r * d + c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256 k = KV::load8(key[i] + c);
#pragma GCC unroll 3
      for (int r = 0; r < ROWS; ++r) acc[r][i] = _mm256_fmadd_ps(x[r], k, acc[r][i]);
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < ROWS; ++r) _mm_storeu_ps(s + r * kSegment, sums_of(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
}

// to[row][c … c+8·WIDTH-1] = Σ p[row][key] · value[key] / total[row], for ROWS rows.
template <class KV, int ROWS, int WIDTH>
inline void weigh(const typename KV::Store* values, const int64_t* places, int count, const float* p, const float* total, int c, float* const* to) {
  __m256 acc[ROWS][WIDTH];
#pragma GCC unroll 3
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int w = 0; w < WIDTH; ++w) acc[r][w] = _mm256_setzero_ps();
  for (int key = 0; key < count; ++key) {
    const typename KV::Store* value = values + places[key] + c;
    __m256 weight[ROWS];
#pragma GCC unroll 3
    for (int r = 0; r < ROWS; ++r) weight[r] = _mm256_broadcast_ss(p + r * kSegment + key);
    const char* next = reinterpret_cast<const char*>(value + 8 * WIDTH);  // read by the next call
    for (int b = 0; b < 8 * WIDTH * int(sizeof(*value)); b += 64) _mm_prefetch(next + b, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int w = 0; w < WIDTH; ++w) {
      const __m256 v = KV::load8(value + 8 * w);
#pragma GCC unroll 3
      for (int r = 0; r < ROWS; ++r) acc[r][w] = _mm256_fmadd_ps(weight[r], v, acc[r][w]);
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < ROWS; ++r) {
    const __m256 inverse = _mm256_set1_ps(1.0f / total[r]);
#pragma GCC unroll 4
    for (int w = 0; w < WIDTH; ++w) _mm256_storeu_ps(to[r] + c + 8 * w, _mm256_mul_ps(inverse, acc[r][w]));
  }
}

template <class KV>
struct DecodeAttention {
  using Store = typename KV::Store;
  const Batch& batch;
  const Shape& shape;
  const Store *keys, *values;  // this layer's pool, [slots, kv_heads, head_dim]
  const float* query;          // [tokens, query_stride], heads first
  int64_t query_stride;
  float* out;                  // [tokens, heads, head_dim]
  float *part_out, *part_lse;  // [parts, heads, head_dim], [parts, heads]

  void run(const Member* members, int count, DecodeScratch& t) const {
    const int rows = count * shape.group(), num_keys = members[0].num_keys;  // rows of one KV head
    batch.find_places(members[0].row, members[0].begin, num_keys, shape.slot(), 0, t.places.data());
    load_queries(members, count, t);
    for (int key = 0; key < num_keys; key += 4) {
      fetch(t, key, num_keys);
      for (int h = 0; h < shape.kv_heads; ++h) score_keys(h, key, num_keys, rows, t);
    }
    softmax(members, count, num_keys, t);
    for (int h = 0; h < shape.kv_heads; ++h) weigh_values(members, h, num_keys, rows, t);
  }

  // The parts of one query's result, [heads, head_dim].
  void merge(const Parts& parts, float* to) const {
    const int d = shape.head_dim;
    for (int h = 0; h < shape.heads; ++h, to += d) {
      const float* lse = part_lse + int64_t(parts.first) * shape.heads + h;
      float top = lse[0], total = 0;
      for (int p = 1; p < parts.count; ++p) top = std::max(top, lse[int64_t(p) * shape.heads]);
      std::fill(to, to + d, 0.0f);
      for (int p = 0; p < parts.count; ++p) {
        const float weight = std::exp(lse[int64_t(p) * shape.heads] - top);
        const float* from = part_out + (int64_t(parts.first + p) * shape.heads + h) * d;
        total += weight;
        for (int i = 0; i < d; ++i) to[i] += weight * from[i];
      }
      for (int i = 0; i < d; ++i) to[i] /= total;
    }
  }

 private:
  void load_queries(const Member* members, int count, DecodeScratch& t) const {
    const int g = shape.group(), d = shape.head_dim;
    for (int h = 0; h < shape.kv_heads; ++h)
      for (int m = 0; m < count; ++m)
        for (int j = 0; j < g; ++j)
          put_scaled(query + members[m].query * query_stride + (h * g + j) * d, shape.scale, d, &t.q[((h * count + m) * g + j) * d]);
  }

  // Keys some way ahead, and of these keys' values what is read first; `weigh` fetches the rest, so that memory is never idle.
  void fetch(const DecodeScratch& t, int key, int num_keys) const {
    constexpr int kAheadKeys = 16;
    const int bytes = shape.kv_heads * shape.head_dim * int(sizeof(Store));
    for (int i = key; i < std::min(key + 4, num_keys); ++i) {
      const char* value = reinterpret_cast<const char*>(values + t.places[i]);
      const char* ahead = reinterpret_cast<const char*>(keys + t.places[std::min(i + kAheadKeys, num_keys - 1)]);
      for (int b = 0; b < bytes; b += 64) _mm_prefetch(ahead + b, _MM_HINT_T0);
      for (int b = 0; b < 32 * int(sizeof(Store)); b += 64) _mm_prefetch(value + b, _MM_HINT_T1);
    }
  }

  // Four keys (the last one repeated where there are fewer) against all rows of a KV head.
  void score_keys(int h, int key, int num_keys, int rows, DecodeScratch& t) const {
    const int d = shape.head_dim;
    const Store* from[4];
    for (int i = 0; i < 4; ++i) from[i] = keys + t.places[std::min(key + i, num_keys - 1)] + h * d;
    const float* q = &t.q[h * rows * d];
    float* s = &t.s[h * rows * kSegment + key];
    int r = 0;
    for (; rows - r == 3 || rows - r >= 5; r += 3) score<KV, 3>(from, q + r * d, d, s + r * kSegment);
    for (; rows - r >= 2; r += 2) score<KV, 2>(from, q + r * d, d, s + r * kSegment);
    for (; r < rows; ++r) score<KV, 1>(from, q + r * d, d, s + r * kSegment);
  }

  // Scores → exp(score − max), their sums, and for parts the log-sum-exp.
  void softmax(const Member* members, int count, int num_keys, DecodeScratch& t) const {
    const int g = shape.group(), padded = (num_keys + 7) / 8 * 8;
    for (int r = 0; r < count * shape.heads; ++r) {
      float* s = &t.s[r * kSegment];
      std::fill(s + num_keys, s + padded, -std::numeric_limits<float>::infinity());
      __m256 top = _mm256_loadu_ps(s);
      for (int j = 8; j < padded; j += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(s + j));
      const float largest = max_of(top);
      __m256 total = _mm256_setzero_ps();
      for (int j = 0; j < padded; j += 8) {
        __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(s + j), _mm256_set1_ps(largest)));
        if (j + 8 > num_keys) e = _mm256_and_ps(e, first_lanes(num_keys - j));  // e⁻⁸⁷ is not nothing
        _mm256_storeu_ps(s + j, e);
        total = _mm256_add_ps(total, e);
      }
      t.total[r] = sum_of(total);
      const Member& m = members[r / g % count];
      if (m.part >= 0) part_lse[int64_t(m.part) * shape.heads + r / (count * g) * g + r % g] = largest + std::log(t.total[r]);
    }
  }

  static __m256 first_lanes(int n) {
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
  }

  void weigh_values(const Member* members, int h, int num_keys, int rows, DecodeScratch& t) const {
    const int g = shape.group();
    for (int r = 0; r < rows;) {
      const int left = rows - r, n = left == 3 || left >= 5 ? 3 : std::min(left, 2);
      float* to[3];
      for (int i = 0; i < n; ++i) {
        const Member& m = members[(r + i) / g];
        to[i] = (m.part >= 0 ? part_out + int64_t(m.part) * shape.heads * shape.head_dim : out + int64_t(m.query) * shape.heads * shape.head_dim) +
                (h * g + (r + i) % g) * shape.head_dim;
      }
      const int64_t row = int64_t(h) * rows + r;
      if (n == 3) weigh_rows<3>(h, num_keys, row, to, t);
      else if (n == 2) weigh_rows<2>(h, num_keys, row, to, t);
      else weigh_rows<1>(h, num_keys, row, to, t);
      r += n;
    }
  }

  template <int ROWS>
  void weigh_rows(int h, int num_keys, int64_t row, float* const* to, const DecodeScratch& t) const {
    const int d = shape.head_dim;
    const Store* from = values + h * d;
    const float *p = &t.s[row * kSegment], *total = &t.total[row];
    int c = 0;
    for (; c + 32 <= d; c += 32) weigh<KV, ROWS, 4>(from, t.places.data(), num_keys, p, total, c, to);
    for (; c < d; c += 8) weigh<KV, ROWS, 1>(from, t.places.data(), num_keys, p, total, c, to);
  }
};

}  // namespace ramet
