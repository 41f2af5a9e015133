// One forward pass of a dense decoder on the CPU, as one call: embedding → layers → logits of the wanted tokens.
//
// A layer:  x += Wo · attention(rope(Wqkv · norm(x)))      x += Wdown · (silu(gate) ∘ up),  gate, up = Wgu · norm(x)
//           (Gemma: gelu, and what is added is normed, too)
//
// Everything between two matrix products (norm, rope, KV write, silu, quantisation of the next product's input) is one pass over the rows.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include "aligned.h"
#include "batch_attention.h"
#include "batched_linear.h"
#include "packing.h"
#include "pool.h"
#include "sampling.h"

using namespace ramet;

extern "C" {

struct RametLayer {
  Linear qkv[3];  // under each other; n 0 for those that there are not
  Linear out, gate_up, down;
  const float *input_norm, *post_norm;  // [hidden]
  const float *query_norm, *key_norm;   // [head_dim] or null
  const float *added_by_attention_norm, *added_by_mlp_norm;  // [hidden] or null: of what is added to x
  const float *cosine, *sine;  // [positions, rotary_dim/2], or null: nothing is rotated
  int64_t window;              // keys that a query sees, itself included; 0: all
};

struct RametModel {
  int32_t num_layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, kv_type;  // kv_type: 0 float32, 1 float16, 2 bfloat16
  int32_t rotary_dim, activation;  // activation: kv.h
  float norm_epsilon, attention_scale, embedding_scale;
  const RametLayer* layers;
  Linear head;
  const float* final_norm;
  const uint8_t* embedding;  // [vocab] rows as GGUF stores them
  int64_t embedding_row, embedding_type;  // bytes of a row, and GGUF's number of the type
};

}  // extern "C"

namespace {

constexpr int kPackingPieces = 64;

struct Buffers {
  Aligned<float> x, kept, qkv, attention, added, gate_up, scale, sum;
  Aligned<int8_t> a;
  LinearRoom room;
  AttentionRoom attention_room;
};

struct Context {
  Pool pool;
  Buffers buffers;
  explicit Context(int threads) : pool(threads) {}
};

class Step {
 public:
  Step(Context& context, const RametModel& model, const Batch& batch, void* const* keys, void* const* values)
      : c_(context), b_(context.buffers), m_(model), batch_(batch), keys_(keys), values_(values),
        t_(batch.num_tokens) {
    const size_t t = t_, widest = std::max({m_.hidden, m_.heads * m_.head_dim, m_.intermediate});
    grow(b_.x, t * m_.hidden), grow(b_.qkv, t * qkv_width()), grow(b_.attention, t * m_.heads * m_.head_dim);
    grow(b_.gate_up, t * 2 * m_.intermediate), grow(b_.a, t * widest);
    grow(b_.scale, t * widest / kBlock), grow(b_.sum, t * widest / kBlock);
    x_ = b_.x.data();
    if (m_.layers->added_by_attention_norm) grow(b_.added, t * m_.hidden);
    for (int i = 0; i < m_.num_layers; ++i)
      if (Schedule& schedule = schedule_of(m_.layers[i]); schedule.parts.empty()) plan_attention(m_.layers[i], nullptr);
  }

  template <class KV>
  void run(float* logits) {
    rows([&](int64_t t) { embed(t); });
    for (int i = 0; i < m_.num_layers; ++i) layer<KV>(i);
    rows([&](int64_t t) { normalize_quantize(t, m_.final_norm); });
    if (batch_.num_logits) linear(c_.pool, m_.head, activations(), batch_.num_logits, {logits, m_.vocab}, b_.room);
  }

 private:
  int qkv_width() const { return (m_.heads + 2 * m_.kv_heads) * m_.head_dim; }
  Activations activations() { return {b_.a.data(), b_.scale.data(), b_.sum.data()}; }

  template <class F>
  void rows(const F& body) {
    c_.pool.share(num_rows(), c_.pool.num_threads() * 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) body(t);
    });
  }

  Shape shape_of(const RametLayer& w) const { return {m_.heads, m_.kv_heads, m_.head_dim, m_.attention_scale, int32_t(w.window)}; }
  Schedule& schedule_of(const RametLayer& w) { return schedules_[w.window > 0]; }  // all windows are equal

  void plan_attention(const RametLayer& w, const std::vector<int>* wanted) {
    schedule_of(w) = make_schedule(batch_, m_.kv_heads, wanted, int(w.window));
    b_.attention_room.reserve(schedule_of(w), shape_of(w), c_.pool.num_threads());
  }

  // Behind the last layer's keys and values nobody reads a row but those whose logits are wanted: from here on row s is the s-th of them.
  void keep_wanted() {
    std::vector<int> wanted(batch_.logit_indices, batch_.logit_indices + batch_.num_logits);
    bool all = batch_.num_logits == t_;
    for (size_t s = 0; s < wanted.size(); ++s) all = all && wanted[s] == int(s);
    if (all) return;
    kept_ = true;
    grow(b_.kept, wanted.size() * m_.hidden);
    for (size_t s = 0; s < wanted.size(); ++s) std::memcpy(&b_.kept[s * m_.hidden], x_ + int64_t(wanted[s]) * m_.hidden, sizeof(float) * m_.hidden);
    x_ = b_.kept.data();
    std::sort(wanted.begin(), wanted.end());
    plan_attention(m_.layers[m_.num_layers - 1], &wanted);
  }

  int64_t num_rows() const { return kept_ ? batch_.num_logits : t_; }
  int64_t token_of(int64_t row) const { return kept_ ? batch_.logit_indices[row] : row; }

  void embed(int64_t t) {
    unpack_row(GgufType(m_.embedding_type), m_.embedding + batch_.token_ids[t] * m_.embedding_row, m_.hidden, &b_.x[t * m_.hidden]);
    if (m_.embedding_scale != 1.0f) put_scaled(&b_.x[t * m_.hidden], m_.embedding_scale, m_.hidden, &b_.x[t * m_.hidden]);
  }

  // y = x / sqrt(mean(x²) + ε) · w, over n values
  void normalize(const float* x, const float* w, int n, float* y) const {
    __m256 total = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) {
      const __m256 v = _mm256_loadu_ps(x + i);
      total = _mm256_fmadd_ps(v, v, total);
    }
    const __m256 inverse = _mm256_set1_ps(1.0f / std::sqrt(sum_of(total) / float(n) + m_.norm_epsilon));
    for (int i = 0; i < n; i += 8)
      _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(inverse, _mm256_loadu_ps(x + i)), _mm256_loadu_ps(w + i)));
  }

  void normalize_quantize(int64_t row, const float* w) {
    float y[8192];
    normalize(x_ + row * m_.hidden, w, m_.hidden, y);
    quantize_row(y, m_.hidden, row, activations());
  }

  template <class KV>
  void layer(int i) {
    const RametLayer& w = m_.layers[i];
    rows([&](int64_t t) { normalize_quantize(t, w.input_norm); });
    float* qkv = b_.qkv.data();
    for (const Linear& part : w.qkv) {
      if (part.n) linear(c_.pool, part, activations(), t_, {qkv, qkv_width()}, b_.room);
      qkv += part.n;
    }
    rows([&](int64_t t) { rotate_and_store<KV>(i, t); });
    if (i + 1 == m_.num_layers) keep_wanted();
    if (num_rows() == 0) return;
    attend<KV>(i);
    add_product(w.out, w.added_by_attention_norm);
    rows([&](int64_t t) { normalize_quantize(t, w.post_norm); });
    gate(w.gate_up);
    add_product(w.down, w.added_by_mlp_norm);
  }

  // x += w · activations, normed before where there is a norm for that.
  void add_product(const Linear& w, const float* norm) {
    if (!norm) return linear(c_.pool, w, activations(), num_rows(), {x_, m_.hidden, true}, b_.room);
    linear(c_.pool, w, activations(), num_rows(), {b_.added.data(), m_.hidden}, b_.room);
    rows([&](int64_t t) {
      float *added = &b_.added[t * m_.hidden], *x = x_ + t * m_.hidden;
      normalize(added, norm, m_.hidden, added);
      for (int i = 0; i < m_.hidden; i += 8) _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(added + i)));
    });
  }

  template <class KV>
  void rotate_and_store(int i, int64_t t) {
    using Store = typename KV::Store;
    const RametLayer& w = m_.layers[i];
    const int d = m_.head_dim;
    float* row = &b_.qkv[t * qkv_width()];
    for (int h = 0; h < m_.heads + m_.kv_heads; ++h) {
      const float* norm = h < m_.heads ? w.query_norm : w.key_norm;
      if (norm) normalize(row + h * d, norm, d, row + h * d);
      if (w.cosine) rotate(w, row + h * d, batch_.positions[t]);
    }
    const int64_t slot = batch_.kv_slots[t] * m_.kv_heads * d;
    Store *key = static_cast<Store*>(keys_[i]) + slot, *value = static_cast<Store*>(values_[i]) + slot;
    const float *from_key = row + m_.heads * d, *from_value = from_key + m_.kv_heads * d;
    for (int j = 0; j < m_.kv_heads * d; j += 8) {
      KV::store8(key + j, _mm256_loadu_ps(from_key + j));
      KV::store8(value + j, _mm256_loadu_ps(from_value + j));
    }
  }

  // Rotary embedding, halves convention: (x1, x2) → (x1 cos − x2 sin, x2 cos + x1 sin)
  void rotate(const RametLayer& w, float* x, int64_t position) const {
    const int half = m_.rotary_dim / 2;
    const float *cosine = w.cosine + position * half, *sine = w.sine + position * half;
    for (int j = 0; j < half; j += 8) {
      const __m256 a = _mm256_loadu_ps(x + j), b = _mm256_loadu_ps(x + half + j);
      const __m256 c = _mm256_loadu_ps(cosine + j), s = _mm256_loadu_ps(sine + j);
      _mm256_storeu_ps(x + j, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
      _mm256_storeu_ps(x + half + j, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
    }
  }

  template <class KV>
  void attend(int i) {
    using Store = typename KV::Store;
    const Store *keys = static_cast<const Store*>(keys_[i]), *values = static_cast<const Store*>(values_[i]);
    float* out = b_.attention.data();
    const Shape shape = shape_of(m_.layers[i]);
    const BatchAttention<KV> attention{
        c_.pool, b_.attention_room, schedule_of(m_.layers[i]), batch_, shape, keys, values, b_.qkv.data(), qkv_width(), out, m_.kv_type == 0};
    attention.run();
    const int width = m_.heads * m_.head_dim;
    rows([&](int64_t row) {
      const int64_t t = token_of(row);
      attention.merge(t);
      quantize_row(out + t * width, width, row, activations());
    });
  }

  // activation(gate) ∘ up, quantised; of few rows gate and up are written first, each n wide.
  void gate(const Linear& w) {
    const int n = m_.intermediate;
    float* y = b_.gate_up.data();
    const bool batched = b_.room.batches(num_rows());
    if (batched) gated_linear(c_.pool, w, activations(), num_rows(), y, m_.activation, b_.room);
    else linear(c_.pool, w, activations(), num_rows(), {y, 2 * n}, b_.room);
    rows([&](int64_t t) {
      float* row = y + t * (batched ? n : 2 * n);
      for (int j = 0; j < n && !batched; j += 8) _mm256_storeu_ps(row + j, gated8(_mm256_loadu_ps(row + j), _mm256_loadu_ps(row + n + j), m_.activation));
      quantize_row(row, n, t, activations());
    });
  }

  Context& c_;
  Buffers& b_;
  const RametModel& m_;
  const Batch& batch_;
  void* const* keys_;
  void* const* values_;
  const int64_t t_;
  float* x_ = nullptr;  // [num_rows(), hidden], the residual stream
  bool kept_ = false;
  Schedule schedules_[2];  // of layers without a window and with
};

// body(KV()) for the element type that the pool has.
template <class Body>
void with_kv_type(int kv_type, const Body& body) {
  if (kv_type == 0) body(Float32());
  else if (kv_type == 1) body(Float16());
  else body(BFloat16());
}

// Seconds of one product, the best of several.
double seconds_of(Context& c, const Linear& w, const Activations& x, int rows, float* y, int batched_from) {
  c.buffers.room.batched_from = batched_from;
  double best = 1e9;
  for (int i = 0; i < 9; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    linear(c.pool, w, x, rows, {y, w.n}, c.buffers.room);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

}  // namespace

extern "C" {

void* ramet_context_new(int threads) { return new Context(threads); }
void ramet_context_free(void* context) { delete static_cast<Context*>(context); }
int64_t ramet_packed_bytes(int bits, int64_t n, int64_t k) { return n / kPanel * (k / kBlock) * record_bytes(bits); }

// q [n, k] one integer per byte, d and m [n, k/32] fp16 (m unused for 8 bits) → panels.
void ramet_pack(void* context, int bits, int64_t n, int64_t k, const int8_t* q, const uint16_t* d, const uint16_t* m, uint8_t* out) {
  static_cast<Context*>(context)->pool.share(n / kPanel, kPackingPieces, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) pack_panel(bits, k, p, q, d, m, out);
  });
}

// The same from rows as GGUF stores them, by its number of the type (packing.h).
void ramet_pack_stored(void* context, int type_number, int64_t n, int64_t k, const uint8_t* rows, int64_t row_bytes, uint8_t* out) {
  const auto type = GgufType(type_number);
  const int64_t panel_bytes = ramet_packed_bytes(stored_type(type).bits, kPanel, k);
  static_cast<Context*>(context)->pool.share(n / kPanel, kPackingPieces, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) pack_stored_panel(type, k, rows + p * kPanel * row_bytes, row_bytes, out + p * panel_bytes);
  });
}

// The fewest rows for which the batched product is the faster one on this machine; 1 << 30: for no number of rows. Takes some milliseconds.
int ramet_measure_batched_from(void* context) {
  constexpr int n = 768, k = 1024, most = 64;
  Context& c = *static_cast<Context*>(context);
  const Aligned<uint8_t> packed(n / kPanel * (k / kBlock) * kRecord4);
  std::vector<float> y(size_t(most) * n), scale(most * k / kBlock, 1.0f), sum(most * k / kBlock, 1.0f);
  std::vector<int8_t> a(size_t(most) * k, 1);
  const Linear w{n, k, 4, packed.data(), nullptr};
  const Activations x{a.data(), scale.data(), sum.data()};
  for (int rows = kPanel; rows <= most; rows *= 2)
    if (seconds_of(c, w, x, rows, y.data(), 1) < seconds_of(c, w, x, rows, y.data(), 1 << 30)) return rows;
  return 1 << 30;
}

void ramet_set_batched_from(void* context, int rows) { static_cast<Context*>(context)->buffers.room.batched_from = rows; }

// y [rows, n] = x [rows, k] wᵀ (+ bias): quantises x and multiplies; for tests and for models that the step does not cover.
void ramet_linear(void* context, const Linear* w, const float* x, int64_t rows, float* y) {
  Context& c = *static_cast<Context*>(context);
  grow(c.buffers.a, rows * w->k), grow(c.buffers.scale, rows * w->k / kBlock), grow(c.buffers.sum, rows * w->k / kBlock);
  const Activations a{c.buffers.a.data(), c.buffers.scale.data(), c.buffers.sum.data()};
  c.pool.share(rows, c.pool.num_threads() * 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) quantize_row(x + r * w->k, w->k, r, a);
  });
  linear(c.pool, *w, a, rows, {y, w->n}, c.buffers.room);
}

// logits [num_logits, vocab]; keys and values: one pool pointer per layer.
void ramet_step(void* context, const RametModel* model, const Batch* batch, void* const* keys, void* const* values, float* logits) {
  const FlushDenormals flush;
  Step step(*static_cast<Context*>(context), *model, *batch, keys, values);
  with_kv_type(model->kv_type, [&]<class KV>(KV) { step.run<KV>(logits); });
}

// out [tokens, heads, head_dim]: attention of query (likewise) over one layer's pool, in integers or in float32, window 0: none; for tests.
void ramet_attention(void* context, const RametModel* model, const Batch* batch, const float* query, const void* keys, const void* values, int window, int in_float32, float* out) {
  const FlushDenormals flush;
  Context& c = *static_cast<Context*>(context);
  const Shape shape{model->heads, model->kv_heads, model->head_dim, model->attention_scale, window};
  const Schedule schedule = make_schedule(*batch, shape.kv_heads, nullptr, window);
  c.buffers.attention_room.reserve(schedule, shape, c.pool.num_threads());
  with_kv_type(model->kv_type, [&]<class KV>(KV) {
    using Store = typename KV::Store;
    const BatchAttention<KV> attention{c.pool, c.buffers.attention_room, schedule, *batch, shape, static_cast<const Store*>(keys),
                                       static_cast<const Store*>(values), query, shape.heads * shape.head_dim, out, in_float32 != 0};
    attention.run();
    for (int t = 0; t < batch->num_tokens; ++t) attention.merge(t);
  });
}

// For the `count` rows that `rows` names, of logits [·, vocab] → out [count].
void ramet_likeliest(void* context, const float* logits, const int64_t* rows, int count, int vocab, int64_t* out) {
  static_cast<Context*>(context)->pool.run(count, [&](int i, int) { out[i] = likeliest(logits + rows[i] * vocab, vocab); });
}

void ramet_draw(void* context, const float* logits, const int64_t* rows, int count, int vocab, const DrawParams* params, int64_t* out) {
  static_cast<Context*>(context)->pool.run(count, [&](int i, int) { out[i] = TokenDraw(logits + rows[i] * vocab, vocab, params[i]).token(); });
}

// allowed: 32 tokens a word, `words` words a line; line masks[i] belongs to row rows[i].
void ramet_forbid(void* context, float* logits, const int64_t* rows, const int64_t* masks, int count, int vocab, const uint32_t* allowed, int words) {
  static_cast<Context*>(context)->pool.run(count, [&](int i, int) { forbid(logits + rows[i] * vocab, vocab, allowed + masks[i] * words); });
}

}  // extern "C"
