// Attention of all rows of a step, by the units of its schedule, over all threads.
#pragma once
#include "aligned.h"
#include "integer_attention.h"
#include "pool.h"
#include "prefill_attention.h"

namespace ramet {

template <class Vector>
void grow(Vector& v, size_t n) {
  if (v.size() < n) v.resize(n);
}

// What attention writes between its input and its output. Tiles take as much as the prompts' keys and values of one layer in 16 bits.
struct AttentionRoom {
  struct Thread {
    PrefillScratch prefill;
    IntegerScratch integer;
    DecodeScratch decode;
    std::vector<int64_t> places;
    Aligned<int16_t> line;
  };
  std::vector<Thread> threads;
  Aligned<int32_t> tiles;
  Aligned<float> part_out, part_lse;

  void reserve(const Schedule& schedule, const Shape& shape, int num_threads) {
    const size_t parts = size_t(schedule.num_parts) * shape.heads;
    grow(part_out, parts * shape.head_dim), grow(part_lse, parts), grow(tiles, KeyTiles::words(schedule, shape));
    threads.resize(num_threads);
    for (Thread& t : threads) {
      t.prefill.resize(shape), t.integer.resize(shape), t.decode.resize(shape);
      t.places.resize(kKeys), t.line.resize(8 * shape.head_dim);
    }
  }
};

template <class KV>
struct BatchAttention {
  using Store = typename KV::Store;
  Pool& pool;
  AttentionRoom& room;
  const Schedule& schedule;
  const Batch& batch;
  const Shape& shape;
  const Store *keys, *values;  // this layer's pool, [slots, kv_heads, head_dim]
  const float* query;          // [tokens, query_stride], heads first
  int64_t query_stride;
  float* out;      // [tokens, heads, head_dim]
  bool in_float32;  // prompts, too: prefill_attention.h instead of integer_attention.h

  // Afterwards `merge` has to be called for each query.
  void run() const {
    if (!in_float32) pool.share(schedule.tiles.size(), pool.num_threads() * 4, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t job = begin; job < end; ++job) read_tiles(job, room.threads[thread]);
    });
    const int prefills = int(schedule.prefill.size()), units = prefills + int(schedule.decode.size()), chunks = std::min(units, 60000);
    pool.run(chunks, [&](int chunk, int thread) {
      for (int u = chunk; u < units; u += chunks) {
        if (u < prefills) prefill(schedule.prefill[u], room.threads[thread]);
        else decode(schedule.decode[u - prefills], room.threads[thread]);
      }
    });
  }

  void merge(int64_t token) const {
    const Parts& parts = schedule.parts[token];
    if (parts.count) decoder().merge(parts, out + token * shape.heads * shape.head_dim);
  }

 private:
  KeyTiles tiles() const { return {schedule, shape, room.tiles.data()}; }
  DecodeAttention<KV> decoder() const { return {batch, shape, keys, values, query, query_stride, out, room.part_out.data(), room.part_lse.data()}; }

  void read_tiles(int64_t number, AttentionRoom::Thread& t) const {
    const TileJob& job = schedule.tiles[number];
    const TileReader<KV> reader{keys, values, shape.head_dim};
    for (int h = 0; h < shape.kv_heads; ++h) {
      batch.find_places(job.row, job.key, job.count, shape.slot(), int64_t(h) * shape.head_dim, t.places.data());
      reader.read(t.places.data(), job.count, t.line.data(), tiles().at(number, h));
    }
  }

  void prefill(const PrefillUnit& u, AttentionRoom::Thread& t) const {
    if (in_float32) PrefillAttention<KV>{batch, shape, keys, values, query, query_stride, out}.run(u, t.prefill);
    else IntegerAttention{batch, shape, tiles(), query, query_stride, out}.run(u, t.integer);
  }

  void decode(const DecodeUnit& u, AttentionRoom::Thread& t) const { decoder().run(&schedule.members[u.first], u.count, t.decode); }
};

}  // namespace ramet
