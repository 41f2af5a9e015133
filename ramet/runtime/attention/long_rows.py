"""Attention of prompt chunks: one row at a time, in tiles of queries, so that a tile never touches keys after its last query
and no mask is larger than one tile by the keys it sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.page_places import contiguous_start, row_places

_TILE = 512
_SOFTCAP_TILE = 128  # the scores of a tile are materialised there: H * tile * keys * 4 bytes


@dataclass(frozen=True, slots=True)
class LongRow:
    """One prompt chunk: tokens first_token … first_token+query_len-1 of the step, at positions start … start+query_len-1."""

    first_token: int
    query_len: int
    start: int
    slice_start: int | None  # place of position 0 when the row is contiguous in the pool
    places: torch.Tensor | None  # [kv_len] otherwise

    def read(self, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The row's keys or values [kv_len, KH, D]; a view where nothing must be gathered or converted."""
        if self.slice_start is not None:
            return tokens[self.slice_start : self.slice_start + self.start + self.query_len].to(dtype)
        assert self.places is not None
        return tokens.index_select(0, self.places).to(dtype)


def index_row(batch: ForwardBatch, pool: KVPool, row: int, first_token: int) -> LongRow:
    """Find the row's tokens in the pool, once per step."""
    query_len, kv_len = batch.query_lens[row], batch.kv_lens_host[row]
    start = contiguous_start(batch, row, pool.page_size)
    if start is not None:
        return LongRow(first_token, query_len, kv_len - query_len, start, None)
    device = batch.page_table.device
    positions = torch.arange(kv_len, device=device)[None]
    places = row_places(batch, torch.tensor([row], device=device), positions, pool.page_size)[0]
    return LongRow(first_token, query_len, kv_len - query_len, None, places)


class CausalBands:
    """Additive masks of tiles. A tile's mask depends only on key position minus first query position, so that one matrix per window
    serves every tile, row and layer of a step as a view: column j stands for the key at `first query + j - reach`."""

    def __init__(self, longest_kv: int, dtype: torch.dtype, device: torch.device) -> None:
        self._longest_kv, self._dtype, self._device = longest_kv, dtype, device
        self._bands: dict[int | None, torch.Tensor] = {}

    def mask(self, num_queries: int, keys_before: int, window: int | None) -> torch.Tensor:
        """[num_queries, keys_before + num_queries] for a tile whose first query has `keys_before` keys before it."""
        band = self._bands.get(window)
        if band is None:
            band = self._bands[window] = self._build(window)
        reach = band.shape[1] - _TILE
        return band[:num_queries, reach - keys_before : reach + num_queries]

    def _build(self, window: int | None) -> torch.Tensor:
        reach = self._longest_kv if window is None else min(self._longest_kv, window - 1)
        key = torch.arange(-reach, _TILE, device=self._device)[None, :]
        query = torch.arange(_TILE, device=self._device)[:, None]
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        return torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, float("-inf"))


def attend_row(
    query: torch.Tensor,  # [n, H, D], compute type, not scaled
    keys: torch.Tensor,  # [kv_len, KH, D]
    values: torch.Tensor,
    bands: CausalBands,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:  # [n, H, D]
    """Causal attention of the last n positions of a row over all of it."""
    num_queries, start = query.shape[0], keys.shape[0] - query.shape[0]
    out = torch.empty_like(query)
    tile = _TILE if softcap is None else _SOFTCAP_TILE
    for first in range(0, num_queries, tile):
        last = min(first + tile, num_queries)
        low = max(0, start + first - window + 1) if window else 0
        seen = slice(low, start + last)
        before = start + first - low
        causal = before == 0 and (window is None or window >= last - first)
        mask = None if causal and softcap is None else bands.mask(last - first, before, window)
        attend = _attend_tile if softcap is None else _attend_tile_softcap
        out[first:last] = attend(query[first:last], keys[seen], values[seen], mask, scale, softcap)
    return out


def _attend_tile(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float, softcap: float | None
) -> torch.Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (query, keys, values))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def _attend_tile_softcap(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float, softcap: float | None
) -> torch.Tensor:
    assert softcap is not None and mask is not None
    (num_queries, num_heads, head_dim), num_kv_heads = query.shape, keys.shape[1]
    per_head = num_heads // num_kv_heads
    stacked = query.reshape(num_queries, num_kv_heads, per_head, head_dim).permute(1, 2, 0, 3).reshape(num_kv_heads, -1, head_dim)
    scores = torch.bmm(stacked, keys.permute(1, 2, 0)).float().mul_(scale / softcap).tanh_().mul_(softcap)
    scores.view(num_kv_heads, per_head, num_queries, -1).add_(mask)
    out = torch.bmm(torch.softmax(scores, -1).to(query.dtype), values.transpose(0, 1))
    return out.view(num_kv_heads, per_head, num_queries, head_dim).permute(2, 0, 1, 3).reshape(num_queries, num_heads, head_dim)
