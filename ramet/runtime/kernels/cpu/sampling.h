// From logits to tokens, a row at a time: the likeliest one, or one drawn under temperature, top_k, top_p and min_p.
//
// A draw inverts the cumulative distribution at a given uniform number. What the filters keep is a prefix of the tokens by falling logit
// (the smaller id first among equals), so only tokens above a bound are sorted; the bound falls until they hold all that is kept.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>
#include "kv.h"
#include "linear.h"

namespace ramet {

struct DrawParams {
  double uniform, top_p, min_p;   // uniform in [0, 1); top_p ≥ 1: no limit
  float inverse_temperature;
  int32_t top_k;  // ≤ 0: no limit
};

inline float largest_of(const float* x, int n) {
  __m256 top = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  int i = 0;
  for (; i + 8 <= n; i += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(x + i));
  float largest = max_of(top);
  for (; i < n; ++i) largest = std::max(largest, x[i]);
  return largest;
}

// The first of the largest.
inline int64_t likeliest(const float* x, int n) {
  const float largest = largest_of(x, n);
  const __m256 wanted = _mm256_set1_ps(largest);
  for (int i = 0; i + 8 <= n; i += 8)
    if (const int found = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), wanted, _CMP_EQ_OQ))) return i + __builtin_ctz(found);
  return std::find(x + n / 8 * 8, x + n, largest) - x;
}

// −∞ where a token's bit is not set.
inline void forbid(float* x, int n, const uint32_t* allowed) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256 never = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(allowed);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bytes[i / 8]), bit), bit);
    _mm256_storeu_ps(x + i, _mm256_blendv_ps(never, _mm256_loadu_ps(x + i), _mm256_castsi256_ps(set)));
  }
  for (; i < n; ++i)
    if (!(bytes[i / 8] >> (i % 8) & 1)) x[i] = -std::numeric_limits<float>::infinity();
}

class TokenDraw {
 public:
  // Scores are logits / temperature − their maximum, in powers of two.
  TokenDraw(const float* logits, int n, const DrawParams& params)
      : x_(logits), n_(n), params_(params), scale_(params.inverse_temperature * 1.44269504088896341f), top_(largest_of(logits, n)) {}

  int64_t token() const {
    if (!std::isfinite(top_)) return likeliest(x_, n_);
    std::vector<double> sums(n_ / kRun + 1);
    double total = 0;
    for (int i = 0; i < n_; i += kRun) total += sums[i / kRun] = sum(i);
    const bool filtered = (params_.top_k > 0 && params_.top_k < n_) || params_.top_p < 1.0 || params_.min_p > 0.0;
    return filtered ? from_filtered(total) : from_all(sums, total);
  }

 private:
  static constexpr int kRun = 256;  // weights of a run are added in float32

  struct Candidate {
    float score;
    int32_t id;
    bool operator<(const Candidate& other) const { return score != other.score ? score > other.score : id < other.id; }
  };

  float score(int i) const { return (x_[i] - top_) * scale_; }

  // Weights 2^score of tokens i … i+7; 0 beyond the vocabulary.
  __m256 weights(int i) const {
    alignas(32) float rest[8];
    const float* from = x_ + i;
    if (i + 8 > n_) {
      std::fill_n(rest, 8, -std::numeric_limits<float>::infinity());
      std::copy(x_ + i, x_ + n_, rest);
      from = rest;
    }
    return power_of_two8(_mm256_max_ps(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(from), _mm256_set1_ps(top_)), _mm256_set1_ps(scale_)),
                                       _mm256_set1_ps(-1000.0f)));
  }

  double sum(int begin) const {
    __m256 total = _mm256_setzero_ps();
    for (int i = begin; i < std::min(begin + kRun, n_); i += 8) total = _mm256_add_ps(total, weights(i));
    return sum_of(total);
  }

  int64_t from_all(const std::vector<double>& sums, double total) const {
    double target = params_.uniform * total;
    size_t run = 0;
    while (run + 1 < sums.size() && target >= sums[run]) target -= sums[run++];
    int64_t last = -1;  // where rounding leaves something
    for (int i = int(run) * kRun; i < std::min(int(run + 1) * kRun, n_); ++i) {
      const double weight = std::exp2(double(score(i)));
      if (weight <= 0) continue;
      last = i;
      if (target < weight) return i;
      target -= weight;
    }
    return last < 0 ? likeliest(x_, n_) : last;
  }

  int64_t from_filtered(double total) const {
    const double limit = params_.top_k > 0 ? params_.top_k : n_;
    for (float bound : {-8.0f, -16.0f, -32.0f, -FLT_MAX}) {
      std::vector<Candidate> candidates = above(bound);
      std::vector<double> weights;
      double before = 0, kept = 0;
      bool complete = bound == -FLT_MAX;
      for (const Candidate& c : candidates) {
        const double weight = std::exp2(double(c.score)), p = weight / total;
        const bool first = weights.empty();
        if (!first && (double(weights.size()) >= limit || (params_.top_p < 1.0 && before > params_.top_p) || weight < params_.min_p)) {
          complete = true;
          break;
        }
        weights.push_back(weight), kept += weight, before += p;
      }
      complete = complete || double(weights.size()) >= limit || (params_.min_p > 0 && std::exp2(double(bound)) < params_.min_p);
      if (complete) return pick(candidates, weights, kept * params_.uniform);
    }
    return likeliest(x_, n_);
  }

  static int64_t pick(const std::vector<Candidate>& candidates, const std::vector<double>& weights, double target) {
    for (size_t i = 0; i < weights.size(); ++i) {
      if (target < weights[i]) return candidates[i].id;
      target -= weights[i];
    }
    return candidates[weights.size() - 1].id;
  }

  // Tokens whose score is at least `bound`, by falling score.
  std::vector<Candidate> above(float bound) const {
    std::vector<Candidate> found;
    const float lowest = std::max(bound / scale_ + top_, -FLT_MAX);
    const __m256 least = _mm256_set1_ps(lowest);
    int i = 0;
    for (; i + 8 <= n_; i += 8)
      for (int hits = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x_ + i), least, _CMP_GE_OQ)); hits; hits &= hits - 1)
        found.push_back({score(i + __builtin_ctz(hits)), i + __builtin_ctz(hits)});
    for (; i < n_; ++i)
      if (x_[i] >= lowest) found.push_back({score(i), i});
    std::sort(found.begin(), found.end());
    return found;
  }

  const float* x_;
  const int n_;
  const DrawParams& params_;
  const float scale_, top_;
};

}  // namespace ramet
