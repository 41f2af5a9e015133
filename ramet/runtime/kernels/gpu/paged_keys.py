"""Keys and values in pages, and the step over one block of them that all attention kernels share (flash attention 2, arXiv 2307.08691)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class PagedKeys:
    """One layer's keys and values [slots, KH, D], and pages [rows, max_pages] int32."""

    keys: torch.Tensor
    values: torch.Tensor
    pages: torch.Tensor
    page_size: int


@dataclass(frozen=True, slots=True)
class AttentionShape:
    scale: float
    window: int | None
    softcap: float | None


@triton.jit
def attend_block(
    acc, largest, total, q, position, n, end, keys, values, pages, table_row, head_offset, kv_stride, pages_stride, scale, window, softcap,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, SEEN: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Keys n … n + BLOCK_N - 1 of a row, none from `end` on, for queries q [M, D] at `position` [M]: the new sum of values, weighted by
    2^(score - largest), the new largest score and the new sum of weights. SEEN says what needs no mask:

        "all"     every query sees the whole block
        "inside"  keys before `end`
        "causal"  keys before `end` and up to the query's own position
    """
    index = n + tl.arange(0, BLOCK_N)
    inside = index < end
    place = key_places(pages, table_row, pages_stride, index, inside, PAGE_SIZE)[:, None] * kv_stride + head_offset
    visible = inside[:, None] & (tl.arange(0, q.shape[1]) < HEAD_DIM)[None, :]
    k = tl.load(keys + place, mask=visible, other=0.0)
    scores = tl.dot(q, tl.trans(k.to(q.dtype))) * scale
    if HAS_SOFTCAP:
        scores = capped(scores, softcap * 1.4426950408889634)
    if SEEN == "causal":
        scores = tl.where(inside[None, :] & (index[None, :] <= position[:, None]), scores, float("-inf"))
    if SEEN == "inside":
        scores = tl.where(inside[None, :], scores, float("-inf"))
    if HAS_WINDOW:
        scores = tl.where(index[None, :] > position[:, None] - window, scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, 1))
    p = tl.exp2(scores - new_largest[:, None])
    shrink = tl.exp2(largest - new_largest)
    total = total * shrink + tl.sum(p, 1)
    v = tl.load(values + place, mask=visible, other=0.0)
    acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc * shrink[:, None])
    return acc, new_largest, total


@triton.jit
def capped(scores, cap):
    """cap · tanh(scores / cap); scores and result in units of log2(e), as everything here."""
    x = scores * (2.0 / cap)  # 2^x = exp(2 s / cap) for s in natural units once cap is in the same unit
    return cap * (1.0 - 2.0 / (1.0 + tl.exp2(x * 1.4426950408889634)))


@triton.jit
def key_places(pages, table_row, pages_stride, position, inside, PAGE_SIZE: tl.constexpr):
    """Place in the pool of every position of a row."""
    page = tl.load(pages + table_row.to(tl.int64) * pages_stride + position // PAGE_SIZE, mask=inside, other=0).to(tl.int64)
    return page * PAGE_SIZE + position % PAGE_SIZE
