"""Attention of rows with few new tokens: one gather and two batched matrix products per group and layer.

Shapes: B rows of one group, Q new tokens each, N keys (the longest row's), KH key/value heads, G query heads per key/value head,
D head size. The pool is gathered as [B, KH, N, D], so that every head's keys are one dense matrix and grouped queries need no
copy of them: the product is [B*KH] x ([Q*G, D] . [D, N]).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.page_places import contiguous_start, row_places
from ramet.runtime.attention.row_groups import RowGroup

_WORTH_A_SLICE = 512  # keys; below, one gather for many rows beats one call per row


@dataclass(frozen=True, slots=True)
class KeyIndex:
    """Keys that a group sees under one window."""

    num_keys: int
    mask: torch.Tensor | None  # [B, 1, Q, 1, N]: 0 or -inf; None where every query sees every key
    places: torch.Tensor | None  # [B*KH*N] rows of the pool as [slots*KH, D]; None: a contiguous slice
    start: int = 0  # first place of the slice


class Workspace:
    """One gather target, reused by all groups, layers and steps: fresh ones would cost more in page faults than the gather itself."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None

    def gather(self, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Rows `index` of `table` [*, D] as [len(index), D]; valid until the next call."""
        need, buffer = index.numel() * table.shape[1], self._buffer
        if buffer is None or buffer.numel() < need or buffer.dtype != table.dtype or buffer.device != table.device:
            buffer = self._buffer = torch.empty(need, dtype=table.dtype, device=table.device)
        return torch.index_select(table, 0, index, out=buffer[:need].view(index.numel(), table.shape[1]))


def attends_alone(batch: ForwardBatch, row: int, page_size: int) -> bool:
    """Whether `row` is long and contiguous enough to read it in place rather than to gather it with others."""
    return batch.kv_lens_host[row] >= _WORTH_A_SLICE and contiguous_start(batch, row, page_size) is not None


def token_span(batch: ForwardBatch, group: RowGroup, starts: list[int]) -> slice | torch.Tensor:
    """Where the group's tokens stand in the step: a slice where possible, else an index [B*Q]."""
    first, last = group.rows[0], group.rows[-1]
    if starts[last + 1] - starts[first] == len(group.rows) * group.query_len:
        return slice(starts[first], starts[last + 1])
    tokens = [starts[row] + i for row in group.rows for i in range(group.query_len)]
    return torch.tensor(tokens, device=batch.token_ids.device)


def index_keys(batch: ForwardBatch, pool: KVPool, group: RowGroup, window: int | None) -> KeyIndex:
    """Which places of the pool the group reads under `window`, and which of them each query must not see."""
    device = batch.page_table.device
    lens = [batch.kv_lens_host[row] for row in group.rows]
    first_seen = [max(0, n - group.query_len - window + 1) if window else 0 for n in lens]
    num_keys = max(n - first for n, first in zip(lens, first_seen, strict=True))
    positions = torch.tensor(first_seen, device=device)[:, None] + torch.arange(num_keys, device=device)
    ends = torch.tensor(lens, device=device)[:, None]
    mask = _mask(positions, ends, group.query_len, window) if _needs_mask(lens, first_seen, num_keys, group, window) else None
    if len(lens) == 1 and (start := contiguous_start(batch, group.rows[0], pool.page_size)) is not None:
        return KeyIndex(num_keys, mask, None, start + first_seen[0])
    rows = torch.tensor(group.rows, device=device)
    # A padded position reads its row's last token: always the row's own, always finite.
    places = row_places(batch, rows, torch.minimum(positions, ends - 1), pool.page_size)
    num_kv_heads = pool.keys[0].shape[1]
    by_head = places[:, None, :] * num_kv_heads + torch.arange(num_kv_heads, device=device)[:, None]
    return KeyIndex(num_keys, mask, by_head.reshape(-1))


def _needs_mask(lens: list[int], first_seen: list[int], num_keys: int, group: RowGroup, window: int | None) -> bool:
    if group.query_len > 1:
        return True
    return any(n - first != num_keys for n, first in zip(lens, first_seen, strict=True))


def _mask(positions: torch.Tensor, ends: torch.Tensor, query_len: int, window: int | None) -> torch.Tensor:
    queries = (ends - query_len + torch.arange(query_len, device=positions.device))[:, :, None]
    keys = positions[:, None, :]
    hidden = keys > queries
    if window:
        hidden |= keys <= queries - window
    mask = torch.zeros(hidden.shape, dtype=torch.float32, device=positions.device).masked_fill_(hidden, float("-inf"))
    return mask[:, None, :, None, :]


def attend_group(
    query: torch.Tensor,  # [B*Q, H, D], already scaled, compute type
    keys: torch.Tensor,  # [slots, KH, D]
    values: torch.Tensor,
    index: KeyIndex,
    group: RowGroup,
    softcap: float | None,
    workspace: Workspace,
) -> torch.Tensor:  # [B*Q, H, D]
    """Softmax attention of one group in the query's type; scores in float32."""
    num_rows, query_len = len(group.rows), group.query_len
    num_kv_heads, head_dim = keys.shape[1], keys.shape[2]
    per_head = query.shape[1] // num_kv_heads
    stacked = query.view(num_rows, query_len, num_kv_heads, per_head, head_dim).transpose(1, 2)
    stacked = stacked.reshape(num_rows * num_kv_heads, query_len * per_head, head_dim)
    scores = torch.bmm(stacked, _read(keys, index, query.dtype, workspace).transpose(1, 2)).float()
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if index.mask is not None:
        scores.view(num_rows, num_kv_heads, query_len, per_head, index.num_keys).add_(index.mask)
    weights = torch.softmax(scores, -1).to(query.dtype)
    out = torch.bmm(weights, _read(values, index, query.dtype, workspace))
    out = out.view(num_rows, num_kv_heads, query_len, per_head, head_dim).transpose(1, 2)
    return out.reshape(num_rows * query_len, num_kv_heads * per_head, head_dim)


def _read(tokens: torch.Tensor, index: KeyIndex, dtype: torch.dtype, workspace: Workspace) -> torch.Tensor:
    """[B*KH, N, D] of `tokens` [slots, KH, D]; valid until the next call, so keys are used up before values are read."""
    head_dim = tokens.shape[2]
    if index.places is None:
        return tokens[index.start : index.start + index.num_keys].transpose(0, 1).to(dtype)
    return workspace.gather(tokens.view(-1, head_dim), index.places).view(-1, index.num_keys, head_dim).to(dtype)
