"""The contract between the executor's batch, the models, and an attention backend.

Shapes: T tokens of the step (all rows concatenated), R rows, H query heads, KH key/value heads, D head size, S sampled rows,
L layers, `slots` = num_pages * page_size places for one token's KV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class KVPool:
    """Keys and values of all layers, paged. Place of token i of a row: `page_table[row, i // page_size] * page_size + i % page_size`.

    keys, values: one tensor [slots, KH, D] per layer, in the KV dtype.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    page_size: int


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Positions start … end-1 lie in the same pages for all `rows` (two or more, each with one new token after `end`)."""

    rows: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step as tensors, built once per step by `executor/inputs.py`. Lengths also come as Python ints, so that
    no backend has to synchronise with the device to learn them."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    kv_slots: torch.Tensor  # [T] int64: where this step's keys and values are written
    query_starts: torch.Tensor  # [R+1] int32: row r owns tokens query_starts[r] : query_starts[r+1]
    kv_lens: torch.Tensor  # [R] int32: tokens of the row in the pool after this step
    page_table: torch.Tensor  # [R, max_pages] int32, page ids; columns past a row's length are undefined
    logit_indices: torch.Tensor  # [S] int64: tokens whose logits are wanted
    query_lens: tuple[int, ...]  # per row, on the host
    kv_lens_host: tuple[int, ...]
    shared_prefixes: tuple[SharedPrefix, ...] = ()  # outer ones first; a backend may read each once, or ignore them
    token_slots: torch.Tensor | None = None  # [T] int64: the slot that a token belongs to, for steps that keep something of their own there


class AttentionBackend(Protocol):
    """Writes this step's keys and values into the pool and attends causally over each row's pages."""

    def prepare(self, batch: ForwardBatch, pool: KVPool) -> None:
        """Once per step, before the first layer: build whatever index structure the layers share."""

    def forward(
        self,
        query: torch.Tensor,  # [T, H, D], rope applied
        key: torch.Tensor,  # [T, KH, D], rope applied
        value: torch.Tensor,  # [T, KH, D]
        layer: int,
        scale: float,
        window: int | None = None,  # sliding window: a query at p sees keys at p-window+1 … p
        softcap: float | None = None,  # logits ← softcap * tanh(logits / softcap), before the mask
    ) -> torch.Tensor:  # [T, H, D]
        """Store, then attend. Uses the batch and pool of the last `prepare`."""
        ...
