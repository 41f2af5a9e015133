"""Attention in plain torch operations: the reference for every other backend, and the backend of the CPU."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.long_rows import CausalBands, LongRow, attend_row, index_row
from ramet.runtime.attention.row_groups import MAX_SHORT_QUERY, RowGroup, group_short_rows
from ramet.runtime.attention.short_rows import KeyIndex, Workspace, attend_group, attends_alone, index_keys, token_span

_CPU_GROUP_BYTES = 2 << 20  # gathered keys of one group: they should still be in cache when the product reads them
_GPU_GROUP_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class _ShortGroup:
    group: RowGroup
    tokens: slice | torch.Tensor
    keys: dict[int | None, KeyIndex]  # by window; layers of one model may differ in it


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers of one step share."""

    batch: ForwardBatch
    pool: KVPool
    write_slice: slice | None  # where this step's keys go, when side by side
    short: list[_ShortGroup]
    long: list[LongRow]
    bands: CausalBands
    dtype: torch.dtype


class TorchAttention:
    """Correct for grouped heads, windows, softcap, every page size, and prefill mixed with decode.

    On CPU it computes in float32 whatever the type of model and pool: half-precision products are several times slower there.
    A row reads only its own places of the pool, so that garbage elsewhere (even NaN) cannot reach it.
    """

    def __init__(self) -> None:
        self._step: _Step | None = None
        self._workspace = Workspace()

    def prepare(self, batch: ForwardBatch, pool: KVPool) -> None:
        """Group the step's rows and index their keys. Host work is proportional to rows, never to their lengths in Python."""
        starts = [0, *itertools.accumulate(batch.query_lens)]
        device = batch.token_ids.device
        long = [index_row(batch, pool, row, starts[row]) for row, n in enumerate(batch.query_lens) if n > MAX_SHORT_QUERY]
        short = [_ShortGroup(group, token_span(batch, group, starts), {}) for group in _short_groups(batch, pool)]
        longest = max(batch.kv_lens_host, default=0)
        kv_dtype = pool.keys[0].dtype
        dtype = torch.float32 if device.type == "cpu" or kv_dtype.itemsize == 1 else kv_dtype
        self._step = _Step(batch, pool, _write_slice(batch), short, long, CausalBands(longest, dtype, device), dtype)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        step = self._step
        assert step is not None, "prepare() comes before forward()"
        keys, values = step.pool.keys[layer], step.pool.values[layer]
        _store(keys, key, step)
        _store(values, value, step)
        compute_query = query.to(step.dtype)
        out = torch.empty_like(query)
        for short in step.short:
            index = short.keys.get(window)
            if index is None:
                index = short.keys[window] = index_keys(step.batch, step.pool, short.group, window)
            scaled = compute_query[short.tokens] * scale
            out[short.tokens] = attend_group(scaled, keys, values, index, short.group, softcap, self._workspace).to(out.dtype)
        for row in step.long:
            tokens = slice(row.first_token, row.first_token + row.query_len)
            read = row.read(keys, step.dtype), row.read(values, step.dtype)
            out[tokens] = attend_row(compute_query[tokens], *read, step.bands, scale, window, softcap)
        return out


def _short_groups(batch: ForwardBatch, pool: KVPool) -> list[RowGroup]:
    """Rows to batch together; rows worth reading in place stand alone."""
    token_bytes = pool.keys[0].element_size() * pool.keys[0][0].numel()
    group_bytes = _CPU_GROUP_BYTES if batch.token_ids.device.type == "cpu" else _GPU_GROUP_BYTES
    lens = list(batch.query_lens)
    alone: list[RowGroup] = []
    for row, query_len in enumerate(lens):
        if 0 < query_len <= MAX_SHORT_QUERY and attends_alone(batch, row, pool.page_size):
            alone.append(RowGroup((row,), query_len, batch.kv_lens_host[row]))
            lens[row] = 0
    return alone + group_short_rows(lens, batch.kv_lens_host, max_tokens=group_bytes // token_bytes)


def _write_slice(batch: ForwardBatch) -> slice | None:
    slots = batch.kv_slots
    if slots.device.type != "cpu" or slots.numel() == 0:
        return None
    first, last = int(slots[0]), int(slots[-1])
    if last - first != slots.numel() - 1 or not bool((slots[1:] - slots[:-1] == 1).all()):
        return None
    return slice(first, last + 1)


def _store(cache: torch.Tensor, new: torch.Tensor, step: _Step) -> None:
    stored = _rounded(new, cache.dtype)
    if step.write_slice is not None:
        cache[step.write_slice] = stored
    elif cache.dtype.itemsize == 1:  # torch copies bytes, but not fp8
        cache.view(torch.uint8).index_copy_(0, step.batch.kv_slots, stored.view(torch.uint8))
    else:
        cache.index_copy_(0, step.batch.kv_slots, stored)


def _rounded(new: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the cache's type; what an 8-bit one cannot hold becomes the largest that it can, as in the kernels."""
    if dtype.itemsize > 1:
        return new.to(dtype)
    largest = torch.finfo(dtype).max
    return new.clamp(-largest, largest).to(dtype)
