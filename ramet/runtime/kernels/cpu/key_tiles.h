// Keys and values as 16-bit integers, in tiles of 64 that vpmaddwd multiplies with queries and weights (integer_attention.h).
//
// A key becomes its direction: scaled to length 32,700 and rounded, so that its elements fit 16 bits. A value v becomes σ·u, |u| ≤ 8,191. Both
// depend on nothing but themselves: a tile that more keys are added to keeps what it had.
#pragma once
#include "decode_attention.h"
#include "transpose.h"

namespace ramet {

constexpr int kPairOrder[8] = {0, 1, 4, 5, 2, 3, 6, 7};  // as vpackssdw leaves eight pairs of weights
constexpr float kLength = 32700.0f, kLargestValue = 8191.0f;

// One tile of one KV head. Columns (keys; dimensions of values) lie sixteen by sixteen, pairs of 16-bit integers side by side.
struct Tile {
  int32_t* keys;     // [4, d/2, 16]: dimensions 2i and 2i+1 of sixteen keys
  int32_t* values;   // [d/16, 32, 16]: sixteen dimensions of a pair of keys, in the order of `kPairOrder`
  float* key_scale;  // [64]: |k| / 32,700
  float *value_log, *value_inverse;  // [64] each: log₂ σ, 1/σ

  static int64_t words(int d) { return kKeys * (d + 3); }
  Tile(int32_t* at, int d)
      : keys(at), values(at + kKeys / 2 * d), key_scale(reinterpret_cast<float*>(at + kKeys * d)),
        value_log(key_scale + kKeys), value_inverse(value_log + kKeys) {}
};

// Eight numbers times `factor`, as integers; sixteen of them in 16 bits, in order.
inline __m256i rounded8(__m256 v, float factor) { return _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(factor))); }
inline __m256i narrowed16(__m256i a, __m256i b) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8); }

// to[0 … d-1] = from · 32,700 / |from|; gives back |from| / 32,700. LOAD gives eight floats.
template <class Load>
inline float put_unit(const Load& load, int d, int16_t* to) {
  __m256 square = _mm256_setzero_ps();
  for (int c = 0; c < d; c += 8) {
    const __m256 v = load(c);
    square = _mm256_fmadd_ps(v, v, square);
  }
  const float length = std::sqrt(sum_of(square)), factor = length > 0 ? kLength / length : 0.0f;
  for (int c = 0; c < d; c += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + c), narrowed16(rounded8(load(c), factor), rounded8(load(c + 8), factor)));
  return length / kLength;
}

template <class KV>
struct TileReader {
  using Store = typename KV::Store;
  const Store *keys, *values;  // this layer's pool
  int d;

  // places: of `count` keys in the pool, in elements; what lies behind the last one repeats it. line: room for 8 · d.
  void read(const int64_t* places, int count, int16_t* line, const Tile& to) const {
    for (int j = 0; j < kKeys; j += 8) {
      for (int i = 0; i < 8; ++i) {
        const Store* from = keys + places[std::min(j + i, count - 1)];
        to.key_scale[j + i] = put_unit([&](int c) { return KV::load8(from + c); }, d, line + i * d);
      }
      for (int c = 0; c < d / 2; c += 8) {
        __m256 square[8];
        for (int i = 0; i < 8; ++i) square[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(line + i * d + 2 * c));
        transpose8(square);
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(reinterpret_cast<float*>(to.keys + (j / 16 * (d / 2) + c + i) * 16 + j % 16), square[i]);
      }
    }
    for (int i = 0; i < kKeys / 2; ++i) put_pair(places, count, i / 8 * 16 + kPairOrder[i % 8] * 2, to, to.values + i * 16);
  }

 public:
  void put_pair(const int64_t* places, int count, int key, const Tile& to, int32_t* line) const {
    const Store* from[2];
    float factor[2];
    for (int i = 0; i < 2; ++i) {
      from[i] = values + places[std::min(key + i, count - 1)];
      const float scale = std::max(largest(from[i]), 1e-18f) / kLargestValue;
      to.value_log[key + i] = std::log2(scale);
      to.value_inverse[key + i] = factor[i] = 1.0f / scale;
    }
    for (int c = 0; c < d; c += 16) {
      __m256i v[2];
      for (int i = 0; i < 2; ++i) v[i] = _mm256_packs_epi32(rounded8(KV::load8(from[i] + c), factor[i]), rounded8(KV::load8(from[i] + c + 8), factor[i]));
      const __m256i low = _mm256_unpacklo_epi16(v[0], v[1]), high = _mm256_unpackhi_epi16(v[0], v[1]);
      // dimensions 0…3 | 4…7 of low, 8…11 | 12…15 of high
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + c * (kKeys / 2)), low);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + c * (kKeys / 2) + 8), high);
    }
  }

  float largest(const Store* v) const {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 top = _mm256_setzero_ps();
    for (int c = 0; c < d; c += 8) top = _mm256_max_ps(top, _mm256_andnot_ps(sign, KV::load8(v + c)));
    return max_of(top);
  }
};

// The tiles of a step's prompts: those of one job, a KV head each, lie together.
struct KeyTiles {
  const Schedule& schedule;
  const Shape& shape;
  int32_t* room;

  static size_t words(const Schedule& schedule, const Shape& shape) {
    return schedule.tiles.size() * shape.kv_heads * Tile::words(shape.head_dim);
  }
  Tile at(int64_t job, int kv_head) const { return {room + (job * shape.kv_heads + kv_head) * Tile::words(shape.head_dim), shape.head_dim}; }
  Tile at(const PrefillUnit& u, int key) const { return at(schedule.tile_numbers[u.tiles + key / kKeys], u.kv_head); }
};

}  // namespace ramet
