// Causal attention over a paged KV pool, read in place: the page table is followed tile by tile, nothing is gathered to memory.
//
// A unit of work is (row, KV head, some queries, some keys). The G query heads that share a KV head go together, so each key and value is
// read once for all of them. Prefill units take kQueries queries and all keys; the tile of keys is transposed and
// multiplied as a small matrix. Decode units take one query and at most kSplit keys; a long context thus spreads over the threads, and
// the parts are merged by their log-sum-exp. The split depends on the row alone, never on the batch.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>
#include "kv.h"
#include "linear.h"
#include "pool.h"

namespace ramet {

constexpr int kKeys = 64;      // keys of a tile
constexpr int kQueries = 32;   // queries of a prefill unit
constexpr int kSplit = 512;    // keys of a decode unit
constexpr int kSmall = 4;      // units with fewer queries than this are treated query by query

struct Batch {  // one step; see ForwardBatch
  int32_t num_tokens, num_rows, num_logits, max_pages, page_size;
  const int64_t *token_ids, *positions, *kv_slots;
  const int32_t *query_starts, *kv_lens, *page_table;
  const int64_t* logit_indices;
};

struct Shape {
  int32_t heads, kv_heads, head_dim;
  float scale;
};

struct Unit {
  int32_t row, kv_head, query, num_queries, key_begin, key_end, part;  // part: index of the partial result, −1: the whole context
};

struct Merge {
  int32_t query, kv_head, first_part, num_parts;
};

struct Schedule {
  std::vector<Unit> units;
  std::vector<Merge> merges;
  int num_parts = 0;
};

inline Schedule make_schedule(const Batch& batch, const Shape& shape) {
  Schedule s;
  for (int r = 0; r < batch.num_rows; ++r) {
    const int begin = batch.query_starts[r], count = batch.query_starts[r + 1] - begin, length = batch.kv_lens[r];
    for (int h = 0; h < shape.kv_heads; ++h) {
      if (count <= kQueries) {  // bit for bit what as many decode steps compute: forced tokens must not change what follows
        for (int q = 0; q < count; ++q) {
          const int keys = length - count + q + 1;
          const int parts = (keys + kSplit - 1) / kSplit;
          if (parts > 1) s.merges.push_back({begin + q, h, s.num_parts, parts});
          for (int p = 0; p < parts; ++p)
            s.units.push_back({r, h, begin + q, 1, p * kSplit, std::min(keys, (p + 1) * kSplit), parts > 1 ? s.num_parts++ : -1});
        }
      } else {
        for (int q = 0; q < count; q += kQueries) {
          const int n = std::min(kQueries, count - q);
          s.units.push_back({r, h, begin + q, n, 0, length - count + q + n, -1});
        }
      }
    }
  }
  std::stable_sort(s.units.begin(), s.units.end(), [](const Unit& a, const Unit& b) {
    return int64_t(a.key_end - a.key_begin) * a.num_queries > int64_t(b.key_end - b.key_begin) * b.num_queries;
  });
  return s;
}

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

// Sums of eight vectors, in order.
inline __m256 sums_of(const __m256* v) {
  const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

inline void transpose8(__m256* r) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44), u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44), u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

// Per-thread buffers; rows = kQueries * G.
struct Scratch {
  std::vector<float> q, k, v, s, o, m, l;
  std::vector<int64_t> places;  // of the unit's keys in the pool, in elements
  void resize(const Shape& shape) {
    const size_t rows = size_t(kQueries) * (shape.heads / shape.kv_heads), d = shape.head_dim;
    q.resize(rows * d), o.resize(rows * d), s.resize(rows * kKeys), m.resize(rows), l.resize(rows);
    k.resize(d * kKeys), v.resize(kKeys * d);
  }
};

template <class KV>
struct Attention {
  using Store = typename KV::Store;
  const Batch& batch;
  const Shape& shape;
  const Store *keys, *values;  // this layer's pool, [slots, kv_heads, head_dim]
  const float* query;          // [tokens, query_stride], heads first
  int64_t query_stride;
  float* out;                  // [tokens, heads * head_dim]
  float *part_out, *part_lse;  // [parts, G, head_dim], [parts, G]

  int group() const { return shape.heads / shape.kv_heads; }

  // Follows the page table once per unit.
  void find_places(const Unit& u, Scratch& t) const {
    t.places.resize(u.key_end - u.key_begin);
    const int32_t* table = batch.page_table + int64_t(u.row) * batch.max_pages;
    const int64_t stride = int64_t(shape.kv_heads) * shape.head_dim, head = int64_t(u.kv_head) * shape.head_dim;
    for (int key = u.key_begin; key < u.key_end;) {
      const int page = key / batch.page_size, end = std::min(u.key_end, (page + 1) * batch.page_size);
      int64_t at = (int64_t(table[page]) * batch.page_size + key % batch.page_size) * stride + head;
      for (; key < end; ++key, at += stride) t.places[key - u.key_begin] = at;
    }
  }

  void run(const Unit& u, Scratch& t) const {
    const int g = group(), d = shape.head_dim, rows = u.num_queries * g;
    find_places(u, t);
    load_queries(u, t, rows);
    std::fill_n(t.o.begin(), rows * d, 0.0f);
    std::fill_n(t.m.begin(), rows, -std::numeric_limits<float>::infinity());
    std::fill_n(t.l.begin(), rows, 0.0f);
    for (int key = u.key_begin; key < u.key_end; key += kKeys) {
      const int count = std::min(kKeys, u.key_end - key);
      if (u.num_queries < kSmall) dot_tile(u, key, count, t, rows);
      else matrix_tile(u, key, count, t, rows);
    }
    store(u, t, rows);
  }

  void load_queries(const Unit& u, Scratch& t, int rows) const {
    const int g = group(), d = shape.head_dim;
    const __m256 scale = _mm256_set1_ps(shape.scale);
    for (int r = 0; r < rows; ++r) {
      const float* from = query + (u.query + r / g) * query_stride + (u.kv_head * g + r % g) * d;
      for (int i = 0; i < d; i += 8) _mm256_storeu_ps(&t.q[r * d + i], _mm256_mul_ps(scale, _mm256_loadu_ps(from + i)));
    }
  }

  // Many queries: keys transposed once, then two small matrix products.
  void matrix_tile(const Unit& u, int key, int count, Scratch& t, int rows) const {
    const int d = shape.head_dim;
    load_keys(&t.places[key - u.key_begin], count, t);
    small_gemm<false>(t.q.data(), d, t.k.data(), kKeys, t.s.data(), kKeys, rows, kKeys, d);
    softmax_tile(u, key, count, t, rows);
    small_gemm<true>(t.s.data(), kKeys, t.v.data(), d, t.o.data(), d, rows, d, count);
  }

  // One query: each key meets the G heads of its group where it lies; the next tile is fetched meanwhile.
  void dot_tile(const Unit& u, int key, int count, Scratch& t, int rows) const {
    const int d = shape.head_dim;
    const float* from[kKeys];
    const int64_t* places = &t.places[key - u.key_begin];
    prefetch(places + count, std::min(kKeys, u.key_end - key - count));
    const int padded = find_rows(keys, places, count, t.k.data(), from);
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < padded; j += 8) {
        __m256 acc[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) acc[i] = _mm256_setzero_ps();
        for (int c = 0; c < d; c += 8) {
          const __m256 q = _mm256_loadu_ps(&t.q[r * d + c]);
#pragma GCC unroll 8
          for (int i = 0; i < 8; ++i) acc[i] = _mm256_fmadd_ps(q, _mm256_loadu_ps(from[j + i] + c), acc[i]);
        }
        _mm256_storeu_ps(&t.s[r * kKeys + j], sums_of(acc));
      }
    softmax_tile(u, key, count, t, rows);
    find_rows(values, places, count, t.v.data(), from);
    for (int r = 0; r < rows; ++r)
      add_values(&t.s[r * kKeys], from, count, &t.o[r * d]);
  }

  // o += Σ p·value, 64 or 16 numbers of the head at a time.
  void add_values(const float* p, const float* const* from, int count, float* o) const {
    const int d = shape.head_dim;
    int c = 0;
    for (; c + 64 <= d; c += 64) add_columns<8>(p, from, c, count, o);
    for (; c < d; c += 16) add_columns<2>(p, from, c, count, o);
  }

  template <int WIDTH>
  static void add_columns(const float* p, const float* const* from, int c, int count, float* o) {
    __m256 acc[WIDTH];
#pragma GCC unroll 8
    for (int w = 0; w < WIDTH; ++w) acc[w] = _mm256_loadu_ps(o + c + 8 * w);
    for (int i = 0; i < count; ++i) {
      const __m256 weight = _mm256_broadcast_ss(p + i);
#pragma GCC unroll 8
      for (int w = 0; w < WIDTH; ++w) acc[w] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(from[i] + c + 8 * w), acc[w]);
    }
#pragma GCC unroll 8
    for (int w = 0; w < WIDTH; ++w) _mm256_storeu_ps(o + c + 8 * w, acc[w]);
  }

  // Rows of a tile as floats: in place when the pool holds floats, else converted into `room`. Padded to a multiple of eight.
  int find_rows(const Store* pool, const int64_t* places, int count, float* room, const float** from) const {
    const int d = shape.head_dim, padded = (count + 7) / 8 * 8;
    for (int i = 0; i < count; ++i) {
      const Store* at = pool + places[i];
      if constexpr (sizeof(Store) == sizeof(float)) {
        from[i] = at;
      } else {
        for (int c = 0; c < d; c += 8) _mm256_storeu_ps(room + i * d + c, KV::load8(at + c));
        from[i] = room + i * d;
      }
    }
    for (int i = count; i < padded; ++i) from[i] = from[count - 1];
    return padded;
  }

  void prefetch(const int64_t* places, int count) const {
    const int bytes = shape.head_dim * int(sizeof(Store));
    for (int i = 0; i < count; ++i) {
      const char *k = reinterpret_cast<const char*>(keys + places[i]), *v = reinterpret_cast<const char*>(values + places[i]);
      for (int b = 0; b < bytes; b += 64) _mm_prefetch(k + b, _MM_HINT_T0), _mm_prefetch(v + b, _MM_HINT_T0);
    }
  }

  void load_keys(const int64_t* places, int count, Scratch& t) const {
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

  // Scores → probabilities of this tile; rescales what earlier tiles brought.
  void softmax_tile(const Unit& u, int key, int count, Scratch& t, int rows) const {
    const int g = group(), d = shape.head_dim;
    for (int r = 0; r < rows; ++r) {
      float* s = &t.s[r * kKeys];
      const int visible = std::min<int64_t>(count, batch.positions[u.query + r / g] + 1 - key);
      const int width = std::max(0, visible);
      std::fill(s + width, s + kKeys, -std::numeric_limits<float>::infinity());
      __m256 top = _mm256_loadu_ps(s);
      for (int j = 8; j < kKeys; j += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(s + j));
      const float before = t.m[r], now = std::max(before, max_of(top));
      if (width == 0 || now == -std::numeric_limits<float>::infinity()) {
        std::fill(s, s + kKeys, 0.0f);
        continue;
      }
      const __m256 shift = _mm256_set1_ps(now);
      for (int j = 0; j < kKeys; j += 8) _mm256_storeu_ps(s + j, exp8(_mm256_sub_ps(_mm256_loadu_ps(s + j), shift)));
      std::fill(s + width, s + kKeys, 0.0f);
      __m256 total = _mm256_setzero_ps();
      for (int j = 0; j < kKeys; j += 8) total = _mm256_add_ps(total, _mm256_loadu_ps(s + j));
      const float keep = std::exp(before - now);
      t.m[r] = now;
      t.l[r] = t.l[r] * keep + sum_of(total);
      if (keep != 1.0f)
        for (int i = 0; i < d; i += 8) {
          float* o = &t.o[r * d + i];
          _mm256_storeu_ps(o, _mm256_mul_ps(_mm256_loadu_ps(o), _mm256_set1_ps(keep)));
        }
    }
  }

  void store(const Unit& u, const Scratch& t, int rows) const {
    const int g = group(), d = shape.head_dim;
    for (int r = 0; r < rows; ++r) {
      const __m256 inverse = _mm256_set1_ps(1.0f / t.l[r]);
      float* to = u.part < 0 ? out + (int64_t(u.query + r / g) * shape.heads + u.kv_head * g + r % g) * d
                             : part_out + (int64_t(u.part) * g + r) * d;
      for (int i = 0; i < d; i += 8) _mm256_storeu_ps(to + i, _mm256_mul_ps(inverse, _mm256_loadu_ps(&t.o[r * d + i])));
      if (u.part >= 0) part_lse[int64_t(u.part) * g + r] = t.m[r] + std::log(t.l[r]);
    }
  }

  void merge(const Merge& m) const {
    const int g = group(), d = shape.head_dim;
    for (int r = 0; r < g; ++r) {
      float top = -std::numeric_limits<float>::infinity(), total = 0;
      for (int p = 0; p < m.num_parts; ++p) top = std::max(top, part_lse[int64_t(m.first_part + p) * g + r]);
      float* to = out + (int64_t(m.query) * shape.heads + m.kv_head * g + r) * d;
      std::fill(to, to + d, 0.0f);
      for (int p = 0; p < m.num_parts; ++p) {
        const int64_t at = int64_t(m.first_part + p) * g + r;
        const float weight = std::exp(part_lse[at] - top);
        total += weight;
        for (int i = 0; i < d; ++i) to[i] += weight * part_out[at * d + i];
      }
      for (int i = 0; i < d; ++i) to[i] /= total;
    }
  }
};

}  // namespace ramet
