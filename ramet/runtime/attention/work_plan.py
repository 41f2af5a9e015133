"""What the paged kernels of one step do, planned on the host from lengths alone: plain numpy, proportional to rows and work items.

A row with one query reads its keys in items of about equal size, so that few long rows fill the device as well as many short ones. Keys
that several such rows share (the same pages at the same positions) become items of their own, read once for all of them. So do the keys of
rows with a few more queries (forced or guessed tokens, pieces of prompts), which all of these read. Rows with many are cut into tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ramet.runtime.attention.attention_backend import SharedPrefix

Int32Array = npt.NDArray[np.int32]

_NO_ITEMS, _NO_TILES = np.empty((0, 5), dtype=np.int32), np.empty((0, 4), dtype=np.int32)
_CHUNK_UNIT = 64
_LEAST_SHARED_CHUNK = 512
_LEAST_PIECE_CHUNK = 128
_WAVES = 4
FEW_QUERIES, FEW_IN_ALL = 64, 256
"""Rows of no more queries, and all rows of several if they have no more together, are read in items: tiles of 128 queries would be half
empty, or leave most of the device idle."""


@dataclass(frozen=True, slots=True)
class DeviceShape:
    """What decides how finely to cut. `tile`: queries per prefill tile; `shared_queries`: queries per shared item."""

    num_processors: int
    num_kv_heads: int
    shared_queries: int
    tile: int

    @property
    def most_cuts(self) -> int:
        """Items at most that come from cutting, besides one for every row."""
        return _WAVES * self.num_processors // self.num_kv_heads + 1


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """The integers that `kernels/gpu/paged_decode.py` and `paged_prefill.py` describe. `shared_items` are items too; members and order
    belong to both kinds."""

    items: Int32Array  # [I, 5]
    shared_items: Int32Array  # [J, 5]
    members: Int32Array  # [P, 3]
    rows: Int32Array  # [R, 3]
    order: Int32Array  # [P]
    tiles: Int32Array  # [N, 4]

    @property
    def arrays(self) -> tuple[Int32Array, ...]:
        return self.items, self.shared_items, self.members, self.rows, self.order, self.tiles


@dataclass(frozen=True, slots=True)
class PlanSizes:
    """Lengths of a plan's arrays: how a packed one is cut up again."""

    items: int
    shared_items: int
    members: int
    rows: int
    order: int
    tiles: int

    @classmethod
    def of(cls, plan: WorkPlan) -> PlanSizes:
        return cls(*map(len, plan.arrays))

    @property
    def lengths(self) -> list[int]:
        """Numbers per array, in order."""
        return [5 * self.items, 5 * self.shared_items, 3 * self.members, 3 * self.rows, self.order, 4 * self.tiles]

    @classmethod
    def at_most(cls, num_tokens: int, num_rows: int, device: DeviceShape, *, shared: bool, mixed: bool) -> PlanSizes:
        """Room for every row's own item and the cuts that fill the device. `shared`: prefixes, which may serve each row a few times;
        `mixed`: some rows bring several tokens."""
        cuts = device.most_cuts
        items = num_rows + cuts
        wide, members, tiles = 0, items, 0
        if shared:
            wide, members = items, members + 4 * num_rows + cuts
        if mixed:
            wide += num_tokens // device.shared_queries + num_rows + cuts
            members += num_tokens + device.shared_queries * cuts
        if mixed and num_tokens > FEW_IN_ALL:
            tiles = num_tokens // device.tile + num_tokens // FEW_QUERIES
        return cls(items, wide, members, num_tokens, members, tiles)

    def holds(self, plan: WorkPlan) -> bool:
        return all(array.size <= length for array, length in zip(plan.arrays, self.lengths, strict=True))

    def pack(self, plan: WorkPlan) -> Int32Array:
        """One flat array; what the plan does not fill is zero, which means: no members, no partials, no queries."""
        lengths = self.lengths
        packed = np.zeros(sum(lengths), dtype=np.int32)
        start = 0
        for array, length in zip(plan.arrays, lengths, strict=True):
            packed[start : start + array.size] = array.reshape(-1)
            start += length
        return packed


def plan_work(
    query_lens: Int32Array,
    kv_lens: Int32Array,
    table_rows: Int32Array,
    shared: Sequence[SharedPrefix],
    device: DeviceShape,
    elsewhere: Sequence[int] = (),
) -> WorkPlan:
    """Parallel to the step's rows: new tokens, length after the step, row of the page table. `shared` names rows with one query only,
    `elsewhere` rows with several that somebody else computes."""
    first_tokens = _starts(query_lens)
    lens = query_lens, kv_lens, table_rows, first_tokens
    is_long = query_lens > 1
    is_long[list(elsewhere)] = False
    is_few = is_long & ((query_lens <= FEW_QUERIES) | (query_lens[is_long].sum() <= FEW_IN_ALL))
    tiles = _tiles(np.flatnonzero(is_long & ~is_few), *lens, device.tile)
    decoding, few = np.flatnonzero(query_lens == 1), np.flatnonzero(is_few)
    if not len(decoding) and not len(few):
        return _only(tiles)
    starts = np.zeros(len(query_lens), dtype=np.int32)
    for prefix in shared:
        starts[list(prefix.rows)] = prefix.end
    own = _items(_blocks(decoding, *lens, 1), starts[decoding], _CHUNK_UNIT, device)
    wide = [_shared_items(shared, kv_lens, table_rows, first_tokens, device)] if shared else []
    if len(few):
        wide.append(_items(_blocks(few, *lens, device.shared_queries), None, _LEAST_PIECE_CHUNK, device))
    return _joined(own, wide, tiles, int(first_tokens[-1] + query_lens[-1]))


def plan_single_queries(kv_lens: Int32Array, table_rows: Int32Array, device: DeviceShape) -> WorkPlan:
    """`plan_work` where each row has one query and keys of its own: a third of its calls, while a head's chain of guesses waits."""
    ends = kv_lens.astype(np.int64)
    counts = _num_chunks(ends, _chunk(int(ends.sum()), device, _CHUNK_UNIT))
    block = np.repeat(np.arange(len(ends)), counts)
    even, of_row, number = -(-ends // counts), _starts(counts), np.arange(len(block))
    first = (number - of_row[block]) * even[block]
    items = _columns(number, 1, table_rows[block], first, np.minimum(first + even[block], ends[block]))
    members = _columns(block, ends[block] - 1, counts[block] == 1)
    rows = _columns(np.arange(len(ends)), of_row, counts)
    return WorkPlan(items, _NO_ITEMS, members, rows, number.astype(np.int32), _NO_TILES)


def plan_tiles(query_lens: Int32Array, kv_lens: Int32Array, table_rows: Int32Array, tile: int) -> WorkPlan:
    """All rows in tiles, also those of one query."""
    rows = np.arange(len(query_lens), dtype=np.int64)
    return _only(_tiles(rows, query_lens, kv_lens, table_rows, _starts(query_lens), tile))


def _only(tiles: Int32Array) -> WorkPlan:
    nothing = np.empty(0, dtype=np.int32)
    return WorkPlan(_NO_ITEMS, _NO_ITEMS, nothing.reshape(0, 3), nothing.reshape(0, 3), nothing, tiles)


@dataclass(frozen=True, slots=True)
class _Items:
    """Work items whose members are numbered from 0, and each member's query."""

    table: Int32Array  # [I, 5]
    tokens: npt.NDArray[np.int64]  # [P]
    positions: npt.NDArray[np.int64]  # [P]


def _joined(own: _Items, wide: Sequence[_Items], tiles: Int32Array, num_tokens: int) -> WorkPlan:
    """One numbering of members, and for every query that items serve, which."""
    tokens, positions, shared = own.tokens, own.positions, _NO_ITEMS
    if wide:
        kinds = (own, *wide)
        for kind, first in zip(kinds, _starts(np.array([len(kind.tokens) for kind in kinds])), strict=True):
            kind.table[:, 0] += first
        tokens, positions = (np.concatenate(parts) for parts in zip(*((kind.tokens, kind.positions) for kind in kinds), strict=True))
        shared = np.concatenate([kind.table for kind in wide])
    counts = np.bincount(tokens, minlength=num_tokens)
    members = _columns(tokens, positions, counts[tokens] == 1)
    order = np.argsort(tokens, kind="stable").astype(np.int32)
    served = np.flatnonzero(counts)
    rows = _columns(served, _starts(counts)[served], counts[served])
    return WorkPlan(own.table, shared, members, rows, order, tiles)


def _items(blocks: Int32Array, starts: Int32Array | None, least: int, device: DeviceShape) -> _Items:
    """The keys of every block of queries in chunks, from its start (None: 0) to its last query."""
    first_tokens, num_queries, positions, table_rows = blocks.astype(np.int64).T
    begin = np.zeros(len(blocks), dtype=np.int64) if starts is None else starts.astype(np.int64)
    ends = positions + num_queries
    lens = ends - begin
    chunk = _chunk(int(lens.sum()), device, least)
    counts = _num_chunks(lens, chunk)
    block = np.repeat(np.arange(len(blocks)), counts)
    nth = np.arange(len(block)) - _starts(counts)[block]
    even = -(-lens // counts)[block]  # chunks of one block are equally long
    first = begin[block] + nth * even
    members = num_queries[block]
    first_member = _starts(members)
    table = _columns(first_member, members, table_rows[block], first, np.minimum(first + even, ends[block]))
    of = np.repeat(block, members)
    offset = np.arange(len(of)) - np.repeat(first_member, members)
    return _Items(table, first_tokens[of] + offset, positions[of] + offset)


def _shared_items(
    shared: Sequence[SharedPrefix], kv_lens: Int32Array, table_rows: Int32Array, first_tokens: npt.NDArray[np.int64], device: DeviceShape
) -> _Items:
    """Items of prefixes; the members are rows of one query."""
    block = device.shared_queries
    blocks = [(prefix.rows[i : i + block], prefix) for prefix in shared for i in range(0, len(prefix.rows), block)]
    chunk = _chunk(sum(prefix.end - prefix.start for _, prefix in blocks), device, _LEAST_SHARED_CHUNK)
    items: list[tuple[int, int, int, int, int]] = []
    member_rows: list[int] = []
    for rows, prefix in blocks:
        for first in range(prefix.start, prefix.end, chunk):
            items.append((len(member_rows), len(rows), table_rows[rows[0]], first, min(first + chunk, prefix.end)))
            member_rows += rows
    of = np.array(member_rows, dtype=np.int64)
    return _Items(np.array(items, dtype=np.int32).reshape(-1, 5), first_tokens[of], kv_lens[of].astype(np.int64) - 1)


def _num_chunks(lens: npt.NDArray[np.int64], chunk: int) -> npt.NDArray[np.int64]:
    """A little more than a chunk stays one item: a second costs a partial result."""
    return np.maximum((lens + chunk // 2) // chunk, 1)


def _chunk(num_keys: int, device: DeviceShape, least: int) -> int:
    """Keys per item such that all items and heads together occupy every processor a few times over."""
    wanted = -(-num_keys * device.num_kv_heads // (_WAVES * device.num_processors))
    return max(least, -(-wanted // _CHUNK_UNIT) * _CHUNK_UNIT)


def _tiles(
    rows: npt.NDArray[np.int64],
    query_lens: Int32Array,
    kv_lens: Int32Array,
    table_rows: Int32Array,
    first_tokens: npt.NDArray[np.int64],
    tile: int,
) -> Int32Array:
    """Blocks of `rows`; those that see most keys first."""
    if not len(rows):
        return _NO_TILES
    blocks = _blocks(rows, query_lens, kv_lens, table_rows, first_tokens, tile)
    return blocks[np.argsort(-(blocks[:, 1] + blocks[:, 2]), kind="stable")]


def _blocks(
    rows: npt.NDArray[np.int64],
    query_lens: Int32Array,
    kv_lens: Int32Array,
    table_rows: Int32Array,
    first_tokens: npt.NDArray[np.int64],
    size: int,
) -> Int32Array:
    """The queries of `rows` by at most `size` [N, 4]: first token, number, position of the first, row of the page table."""
    counts = -(-query_lens[rows] // size)
    of = np.repeat(rows, counts)
    offset = (np.arange(len(of)) - np.repeat(_starts(counts), counts)) * size
    num_queries = np.minimum(size, query_lens[of] - offset)
    return _columns(first_tokens[of] + offset, num_queries, kv_lens[of] - query_lens[of] + offset, table_rows[of])


def _columns(*columns: npt.NDArray[np.generic] | int) -> Int32Array:
    """Side by side; the first says how many rows."""
    first = columns[0]
    assert not isinstance(first, int)
    table = np.empty((len(first), len(columns)), dtype=np.int32)
    for number, column in enumerate(columns):
        table[:, number] = column
    return table


def _starts(lens: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Where each of consecutive pieces begins."""
    ends: npt.NDArray[np.int64] = np.cumsum(lens, dtype=np.int64)
    return ends - lens
