// Who computes which part of a step's attention.
//
// Prefill units take kQueries queries of one row and KV head and all their keys. Decode units take at most kSegment keys, all KV heads,
// and every query that meets just these keys: one query, or the queries of all rows that share this part of their context, which is
// then read once for all. Parts of a longer context are merged by their log-sum-exp. Segments depend on the query's own
// length alone, and no number on who else is in the unit: a row's result does not depend on its neighbours. With a window, a query's keys begin
// at the first one that it sees, and a prefill unit's at the tile of the first one that its first query sees.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace ramet {

constexpr int kDecoded = 32;  // rows with no more new tokens than this are decoded query by query
constexpr int kQueries = 64;  // of a prefill unit
constexpr int kKeys = 64;  // of its keys: how many meet its queries at a time
constexpr int kSegment = 128;  // keys of a decode unit
constexpr int kSharers = 8;  // queries of a decode unit

struct Batch {  // one step; see ForwardBatch
  int32_t num_tokens, num_rows, num_logits, max_pages, page_size;
  int32_t one_by_one;  // prompts too are decoded query by query: no number depends on how a sequence was cut into steps
  const int64_t *token_ids, *positions, *kv_slots;
  const int32_t *query_starts, *kv_lens, *page_table;
  const int64_t *logit_indices, *lines;  // lines: each row's line of page_table; null: the row's number

  const int32_t* pages(int row) const { return page_table + (lines ? lines[row] : row) * max_pages; }

  // Where the row's keys begin … begin + count - 1 lie in the pool, in elements: slots of `stride` elements, `offset` into each.
  void find_places(int row, int begin, int count, int64_t stride, int64_t offset, int64_t* places) const {
    const int32_t* table = pages(row);
    for (int i = 0; i < count; ++i) {
      const int key = begin + i;
      places[i] = (int64_t(table[key / page_size]) * page_size + key % page_size) * stride + offset;
    }
  }
};

struct PrefillUnit {
  int32_t row, kv_head, query, num_queries, first_key, num_keys;  // keys first_key … num_keys - 1
  int32_t tiles;  // where in `tile_numbers` the row's tile of key 0 is, or would be
  int64_t cost() const { return int64_t(num_queries) * (num_keys - first_key); }
};

struct TileJob {  // keys key … key + count - 1 of a row, of which key_tiles.h makes a tile per KV head
  int32_t row, key, count;
};

struct Member {  // one query's share of a decode unit
  int32_t row, query, begin, num_keys, part;  // keys begin … begin + num_keys - 1; part: index of the partial result, −1: this is the whole context
};

struct DecodeUnit {
  int32_t first, count;  // of `members`; all have the same keys
};

struct Parts {  // of one query's result
  int32_t first = 0, count = 0;
};

struct Schedule {
  std::vector<PrefillUnit> prefill;
  std::vector<TileJob> tiles;
  std::vector<int32_t> tile_numbers;  // of the rows with prefill units, tile by tile: which of `tiles`
  std::vector<Member> members;
  std::vector<DecodeUnit> decode;
  std::vector<Parts> parts;  // by query
  int num_parts = 0;
};

// Do two rows have keys begin … begin + count - 1 in common?
inline bool same_pages(const Batch& batch, int a, int b, int begin, int count) {
  const int first = begin / batch.page_size, last = (begin + count - 1) / batch.page_size;
  return a == b || std::memcmp(batch.pages(a) + first, batch.pages(b) + first, sizeof(int32_t) * (last - first + 1)) == 0;
}

inline bool same_segment(const Batch& batch, const Member& a, const Member& b) {
  if (a.begin != b.begin || a.num_keys != kSegment || b.num_keys != kSegment) return false;
  return same_pages(batch, a.row, b.row, a.begin, kSegment);
}

inline void group_members(const Batch& batch, Schedule& s) {
  const auto first_page = [&](const Member& m) { return batch.pages(m.row)[m.begin / batch.page_size]; };
  std::stable_sort(s.members.begin(), s.members.end(), [&](const Member& a, const Member& b) {
    if (a.num_keys != b.num_keys) return a.num_keys > b.num_keys;  // the longest first, which keeps the threads' ends together
    return a.begin != b.begin ? a.begin < b.begin : first_page(a) < first_page(b);
  });
  for (int i = 0; i < int(s.members.size()); ++i) {
    DecodeUnit* last = s.decode.empty() ? nullptr : &s.decode.back();
    if (last && last->count < kSharers && same_segment(batch, s.members[last->first], s.members[i])) ++last->count;
    else s.decode.push_back({i, 1});
  }
}

// The first key that a query sees which has `keys` before and with it; window 0: all.
inline int first_seen(int keys, int window) { return window ? std::max(keys - window, 0) : 0; }

// Query q (of the row's new ones) against its context, in parts.
inline void decode_query(const Batch& batch, int row, int q, int window, Schedule& s) {
  const int begin = batch.query_starts[row], count = batch.query_starts[row + 1] - begin;
  const int keys = batch.kv_lens[row] - count + q + 1, first = first_seen(keys, window);
  const int segment = first / kSegment, segments = (keys + kSegment - 1) / kSegment - segment;
  if (segments > 1) s.parts[begin + q] = {s.num_parts, segments};
  for (int p = segment; p < segment + segments; ++p) {
    const int from = std::max(first, p * kSegment);
    s.members.push_back({row, begin + q, from, std::min((p + 1) * kSegment, keys) - from, segments > 1 ? s.num_parts++ : -1});
  }
}

struct RowTiles {  // of a row: tile t is tile_numbers[tiles + t], for t from `first` on
  int tiles, first;
};

// The tiles of a row from `first` on; where it has whole ones in common with the row before, which are those of that row.
inline RowTiles list_tiles(const Batch& batch, int row, int first, const RowTiles& before, Schedule& s) {
  const int begin = int(s.tile_numbers.size()), keys = batch.kv_lens[row];
  for (int i = first, key = first * kKeys; key < keys; ++i, key += kKeys) {
    const bool had = i >= before.first && before.tiles + i < begin;
    const TileJob* other = had ? &s.tiles[s.tile_numbers[before.tiles + i]] : nullptr;
    const int count = std::min(kKeys, keys - key);
    if (other && other->count == kKeys && count == kKeys && same_pages(batch, other->row, row, key, count)) {
      s.tile_numbers.push_back(s.tile_numbers[before.tiles + i]);
    } else {
      s.tile_numbers.push_back(int32_t(s.tiles.size()));
      s.tiles.push_back({row, key, count});
    }
  }
  return {begin - first, first};
}

// `wanted`: the only queries whose result is read, by token and in order; null: all. `window`: keys that a query sees, 0: all. Rows of few new tokens are, bit for bit, what as many
// decode steps compute: forced tokens must not change what follows.
inline Schedule make_schedule(const Batch& batch, int kv_heads, const std::vector<int>* wanted = nullptr, int window = 0) {
  constexpr int kFew = 8;  // a row's queries are decoded, too, where fewer than one in so many are wanted
  Schedule s;
  s.parts.resize(batch.num_tokens);
  RowTiles tiles{0, 0};
  for (int r = 0, w = 0; r < batch.num_rows; ++r) {
    const int begin = batch.query_starts[r], end = batch.query_starts[r + 1], count = end - begin, first = w;
    if (wanted)
      while (w < int(wanted->size()) && (*wanted)[w] < end) ++w;
    if (count <= kDecoded || batch.one_by_one || (wanted && (w - first) * kFew < count)) {
      for (int q = 0; q < (wanted ? w - first : count); ++q) decode_query(batch, r, wanted ? (*wanted)[first + q] - begin : q, window, s);
      continue;
    }
    const int cached = batch.kv_lens[r] - count;
    tiles = list_tiles(batch, r, first_seen(cached + 1, window) / kKeys, tiles, s);
    for (int h = 0; h < kv_heads; ++h)
      for (int q = 0; q < count; q += kQueries) {
        const int n = std::min(kQueries, count - q);
        s.prefill.push_back({r, h, begin + q, n, first_seen(cached + q + 1, window) / kKeys * kKeys, cached + q + n, tiles.tiles});
      }
  }
  std::stable_sort(s.prefill.begin(), s.prefill.end(), [](const PrefillUnit& a, const PrefillUnit& b) { return a.cost() > b.cost(); });
  group_members(batch, s);
  return s;
}

}  // namespace ramet
