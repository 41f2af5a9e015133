"""What the paged kernels of one step do, planned on the host from lengths alone: plain numpy, proportional to rows and work items.

A row with one query reads its keys in items of about equal size, so that few long rows fill the device as well as many short ones. Keys
that several such rows share (the same pages at the same positions) become items of their own, read once for all of them.
Rows with more queries are cut into tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
        return cls(*(len(getattr(plan, f.name)) for f in fields(WorkPlan)))

    @property
    def lengths(self) -> list[int]:
        """Numbers per array, in order."""
        widths = (5, 5, 3, 3, 1, 4)
        return [getattr(self, f.name) * width for f, width in zip(fields(self), widths, strict=True)]

    def holds(self, plan: WorkPlan) -> bool:
        return all(len(getattr(plan, f.name)) <= getattr(self, f.name) for f in fields(self))

    def pack(self, plan: WorkPlan) -> Int32Array:
        """One flat array; what the plan does not fill is zero, which means: no members, no partials, no queries."""
        packed = np.zeros(sum(self.lengths), dtype=np.int32)
        start = 0
        for f, length in zip(fields(WorkPlan), self.lengths, strict=True):
            values = getattr(plan, f.name).reshape(-1)
            packed[start : start + len(values)] = values
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
    first_tokens = np.concatenate(([0], np.cumsum(query_lens)[:-1])).astype(np.int32)
    decoding = np.flatnonzero(query_lens == 1)
    starts = np.zeros(len(query_lens), dtype=np.int32)
    for prefix in shared:
        starts[list(prefix.rows)] = prefix.end
    items, item_rows = _own_items(starts[decoding], kv_lens[decoding], table_rows[decoding], device)
    shared_items, shared_rows = _shared_items(shared, table_rows, len(items), device)
    pair_rows = np.concatenate((decoding[item_rows], shared_rows)).astype(np.int64)
    counts = np.bincount(pair_rows, minlength=len(query_lens))
    members = np.stack((first_tokens[pair_rows], kv_lens[pair_rows] - 1, counts[pair_rows] == 1), 1)
    order = np.argsort(pair_rows, kind="stable")
    row_first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    rows = np.stack((first_tokens, row_first, counts), 1)[decoding]
    tiled = np.setdiff1d(np.flatnonzero(query_lens > 1), np.array(elsewhere, dtype=np.int64))
    tiles = _tiles(tiled, query_lens, kv_lens, table_rows, first_tokens, device.tile)
    return WorkPlan(*(part.astype(np.int32) for part in (items, shared_items, members, rows, order, tiles)))


def _own_items(
    starts: Int32Array, ends: Int32Array, table_rows: Int32Array, device: DeviceShape
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every row's own keys in chunks: items [I, 5], and which row each is of."""
    lens = (ends - starts).astype(np.int64)
    chunk = _chunk(int(lens.sum()), device, _CHUNK_UNIT)
    counts = np.maximum((lens + chunk // 2) // chunk, 1)  # a little more than a chunk stays one item: a second costs a partial result
    rows = np.repeat(np.arange(len(lens)), counts)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    even = -(-lens // np.maximum(counts, 1))[rows]  # chunks of one row are equally long
    first = starts[rows] + nth * even
    last = np.minimum(first + even, ends[rows])
    one = np.ones_like(rows)
    return np.stack((np.arange(len(rows)), one, table_rows[rows], first, last), 1), rows


def _shared_items(
    shared: Sequence[SharedPrefix], table_rows: Int32Array, first_member: int, device: DeviceShape
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
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
    return np.array(items, dtype=np.int64).reshape(-1, 5), np.array(member_rows, dtype=np.int64)


def _chunk(num_keys: int, device: DeviceShape, least: int) -> int:
    """Keys per item such that all items and heads together occupy every processor a few times over."""
    wanted = -(-num_keys * device.num_kv_heads // (_WAVES * device.num_processors))
    return max(least, -(-wanted // _CHUNK_UNIT) * _CHUNK_UNIT)


def _tiles(
    long: npt.NDArray[np.int64], query_lens: Int32Array, kv_lens: Int32Array, table_rows: Int32Array, first_tokens: Int32Array, tile: int
) -> npt.NDArray[np.int64]:
    """Rows `long` in tiles [N, 4]."""
    counts = -(-query_lens[long] // tile)
    rows = np.repeat(long, counts)
    offset = (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)) * tile
    num_queries = np.minimum(tile, query_lens[rows] - offset)
    position = kv_lens[rows] - query_lens[rows] + offset
    tiles = np.stack((first_tokens[rows] + offset, num_queries, position, table_rows[rows]), 1)
    return tiles[np.argsort(-(position + num_queries), kind="stable")]
