"""What the paged kernels of one step do, planned on the host from lengths alone: plain numpy, proportional to rows and work items.

A row with one query reads its keys in items of about equal size, so that few long rows fill the device as well as many short ones. Keys
that several such rows share (the same pages at the same positions) become items of their own, read once for all of them.
Rows with more queries are cut into tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ramet.runtime.attention.attention_backend import SharedPrefix

Int32Array = npt.NDArray[np.int32]

_CHUNK_UNIT = 64
_LEAST_SHARED_CHUNK = 512
_WAVES = 4


@dataclass(frozen=True, slots=True)
class DeviceShape:
    """What decides how finely to cut. `tile`: queries per prefill tile; `shared_rows`: rows per shared item."""

    num_processors: int
    num_kv_heads: int
    shared_rows: int
    tile: int


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
    decoding = np.flatnonzero(query_lens == 1)
    is_tiled = query_lens > 1
    is_tiled[list(elsewhere)] = False
    tiles = _tiles(np.flatnonzero(is_tiled), query_lens, kv_lens, table_rows, first_tokens, device.tile)
    if not len(decoding):
        return _only(tiles)
    starts = np.zeros(len(query_lens), dtype=np.int32)
    for prefix in shared:
        starts[list(prefix.rows)] = prefix.end
    items, item_rows = _own_items(starts[decoding], kv_lens[decoding], table_rows[decoding], device)
    shared_items, shared_rows = _shared_items(shared, table_rows, len(items), device)
    pair_rows = np.concatenate((decoding[item_rows], shared_rows)).astype(np.int64)
    counts = np.bincount(pair_rows, minlength=len(query_lens))
    members = _columns(first_tokens[pair_rows], kv_lens[pair_rows] - 1, counts[pair_rows] == 1)
    order = np.argsort(pair_rows, kind="stable").astype(np.int32)
    rows = _columns(first_tokens, _starts(counts), counts)[decoding]
    return WorkPlan(items, shared_items, members, rows, order, tiles)


def plan_tiles(query_lens: Int32Array, kv_lens: Int32Array, table_rows: Int32Array, tile: int) -> WorkPlan:
    """All rows in tiles, also those of one query."""
    rows = np.arange(len(query_lens), dtype=np.int64)
    return _only(_tiles(rows, query_lens, kv_lens, table_rows, _starts(query_lens), tile))


def _only(tiles: Int32Array) -> WorkPlan:
    nothing = np.empty(0, dtype=np.int32)
    return WorkPlan(nothing.reshape(0, 5), nothing.reshape(0, 5), nothing.reshape(0, 3), nothing.reshape(0, 3), nothing, tiles)


def _own_items(
    starts: Int32Array, ends: Int32Array, table_rows: Int32Array, device: DeviceShape
) -> tuple[Int32Array, npt.NDArray[np.int64]]:
    """Every row's own keys in chunks: items [I, 5], and which row each is of."""
    lens = (ends - starts).astype(np.int64)
    chunk = _chunk(int(lens.sum()), device, _CHUNK_UNIT)
    counts = np.maximum((lens + chunk // 2) // chunk, 1)  # a little more than a chunk stays one item: a second costs a partial result
    rows = np.repeat(np.arange(len(lens)), counts)
    nth = np.arange(len(rows)) - _starts(counts)[rows]
    even = -(-lens // np.maximum(counts, 1))[rows]  # chunks of one row are equally long
    first = starts[rows] + nth * even
    last = np.minimum(first + even, ends[rows])
    return _columns(np.arange(len(rows)), 1, table_rows[rows], first, last), rows


def _shared_items(
    shared: Sequence[SharedPrefix], table_rows: Int32Array, first_member: int, device: DeviceShape
) -> tuple[Int32Array, npt.NDArray[np.int64]]:
    """Items of prefixes, and the row of each member."""
    blocks = [
        (prefix.rows[i : i + device.shared_rows], prefix) for prefix in shared for i in range(0, len(prefix.rows), device.shared_rows)
    ]
    chunk = _chunk(sum(prefix.end - prefix.start for _, prefix in blocks), device, _LEAST_SHARED_CHUNK)
    items: list[tuple[int, int, int, int, int]] = []
    member_rows: list[int] = []
    for rows, prefix in blocks:
        for first in range(prefix.start, prefix.end, chunk):
            items.append((first_member + len(member_rows), len(rows), table_rows[rows[0]], first, min(first + chunk, prefix.end)))
            member_rows += rows
    return np.array(items, dtype=np.int32).reshape(-1, 5), np.array(member_rows, dtype=np.int64)


def _chunk(num_keys: int, device: DeviceShape, least: int) -> int:
    """Keys per item such that all items and heads together occupy every processor a few times over."""
    wanted = -(-num_keys * device.num_kv_heads // (_WAVES * device.num_processors))
    return max(least, -(-wanted // _CHUNK_UNIT) * _CHUNK_UNIT)


def _tiles(
    long: npt.NDArray[np.int64],
    query_lens: Int32Array,
    kv_lens: Int32Array,
    table_rows: Int32Array,
    first_tokens: npt.NDArray[np.int64],
    tile: int,
) -> Int32Array:
    """Rows `long` in tiles [N, 4]."""
    if not len(long):
        return np.empty((0, 4), dtype=np.int32)
    counts = -(-query_lens[long] // tile)
    rows = np.repeat(long, counts)
    offset = (np.arange(len(rows)) - np.repeat(_starts(counts), counts)) * tile
    num_queries = np.minimum(tile, query_lens[rows] - offset)
    position = kv_lens[rows] - query_lens[rows] + offset
    tiles = _columns(first_tokens[rows] + offset, num_queries, position, table_rows[rows])
    return tiles[np.argsort(-(position + num_queries), kind="stable")]


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
