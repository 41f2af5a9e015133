"""Attention of few queries over paged keys, split into work items of about equal size (flash decoding, with shared prefixes).

An item is a range of keys of one page table and the queries that see it: one decode row's, or several that read the same keys, which is
then done once for all of them: rows that share a prefix, or the new tokens of one row, each of which sees keys up to its own position.
Where several items serve a query, each leaves a partial result, and `combine` joins them:

    out = Σ o_i · exp(l_i - l) ,   l = log Σ exp(l_i)

All integers of the plan are int32: items [I, 5] (first member, members, table row, first key, end), members [P, 3] (token, position,
1 if its item serves it alone), rows [R, 3] (token, first in order, number of partials), order [P] (partials by token).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import launch_options
from ramet.runtime.kernels.gpu.paged_keys import LOG2E, AttentionShape, PagedKeys, attend_block

SMALL_BLOCK, LARGE_BLOCK = 16, 64  # query heads of an item: of one query, of several


@dataclass(frozen=True, slots=True)
class Partials:
    """Results of items that do not serve a row alone: [P, H, D] and [P, H] float32, scaled by the item's own sum."""

    out: torch.Tensor
    log_sum: torch.Tensor


def attend_items(
    query: torch.Tensor,  # [T, H, D]
    paged: PagedKeys,
    items: torch.Tensor,
    members: torch.Tensor,
    out: torch.Tensor,  # [T, H, D]
    partials: Partials,
    shape: AttentionShape,
    *,
    several: bool = False,
    num_queries: int = 1,
) -> None:
    """Softmax attention of every item's queries over its keys. `several`: as many per item as LARGE_BLOCK has room for their heads of one
    key/value head; else one. `num_queries`: of the step, for which keys are taken in suitable pieces."""
    num_kv_heads, head_dim = paged.keys.shape[1], paged.keys.shape[2]
    if not items.shape[0]:
        return
    block = max(LARGE_BLOCK if several else SMALL_BLOCK, triton.next_power_of_2(query.shape[1] // num_kv_heads))
    pieces = _pieces(num_queries) if block == SMALL_BLOCK and head_dim <= 128 else _Pieces(64, 4, 3)
    _attend_items[(items.shape[0], num_kv_heads)](
        query, paged.keys, paged.values, paged.pages, items, members, out, partials.out, partials.log_sum,
        query.stride(0), out.stride(0), paged.keys.stride(0), paged.pages.stride(0),
        shape.scale * LOG2E, shape.window or 0, shape.softcap or 0.0,
        PAGE_SIZE=paged.page_size, HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim),
        NUM_HEADS=query.shape[1], GROUP=query.shape[1] // num_kv_heads, BLOCK_M=block,
        BLOCK_N=pieces.keys, CAUSAL=several, HAS_WINDOW=shape.window is not None, HAS_SOFTCAP=shape.softcap is not None,
        num_warps=pieces.warps, num_stages=pieces.stages, **launch_options(query.device),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Pieces:
    keys: int
    warps: int
    stages: int


def _pieces(num_queries: int) -> _Pieces:
    """Many items hide each other's waiting if several fit on a processor: 64 rows of 256 keys take 24.6 µs by 32 and 27.6 by 64, 512 rows
    of 600 take 300 with two warps and 309. The borders are sizes of CUDA graphs, so that a padded step is computed alike."""
    if num_queries <= 16:
        return _Pieces(64, 4, 3)
    return _Pieces(32, 4, 3) if num_queries <= 64 else _Pieces(32, 2, 4)


def combine(rows: torch.Tensor, order: torch.Tensor, partials: Partials, out: torch.Tensor) -> None:
    """Join the partial results of every row that has several."""
    num_heads, head_dim = out.shape[1], out.shape[2]
    per_program = 8 if rows.shape[0] >= 32 and num_heads % 8 == 0 else 1  # many rows have nothing to join: few programs for them
    _combine[(rows.shape[0], num_heads // per_program)](
        rows, order, partials.out, partials.log_sum, out, out.stride(0), NUM_HEADS=num_heads, HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim), BLOCK_P=16, PER_PROGRAM=per_program, num_warps=2, **launch_options(out.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["pages_stride", "window"], do_not_specialize_on_alignment=["items", "members"])
def _attend_items(
    query, keys, values, pages, items, members, out, partial_out, partial_sum,
    query_stride, out_stride, kv_stride, pages_stride, scale, window, softcap,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, NUM_HEADS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    item, kv_head = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    first_member, num_members = tl.load(items + item * 5), tl.load(items + item * 5 + 1)
    if num_members == 0:
        return
    table_row, start, end = tl.load(items + item * 5 + 2), tl.load(items + item * 5 + 3), tl.load(items + item * 5 + 4)
    m = tl.arange(0, BLOCK_M)
    member = first_member + m // GROUP
    is_query = (m // GROUP) < num_members
    head = kv_head * GROUP + m % GROUP
    token = tl.load(members + member * 3, mask=is_query, other=0).to(tl.int64)
    position = tl.load(members + member * 3 + 1, mask=is_query, other=end)
    alone = tl.load(members + member * 3 + 2, mask=is_query, other=0)
    d = tl.arange(0, BLOCK_D)
    in_head = d < HEAD_DIM
    q = tl.load(query + token[:, None] * query_stride + head[:, None] * HEAD_DIM + d[None, :], is_query[:, None] & in_head[None, :], 0.0)
    if keys.dtype.element_ty.primitive_bitwidth == 8:
        q = q.to(tl.float16)  # to which a GPU widens fp8 by itself
    if HAS_WINDOW:
        start = tl.maximum(start, tl.min(position) - window + 1)
    largest = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    head_offset = kv_head * HEAD_DIM + d[None, :]
    for n in range(start, end, BLOCK_N):
        acc, largest, total = attend_block(
            acc, largest, total, q, position, n, end, keys, values, pages, table_row, head_offset, kv_stride, pages_stride, scale, window,
            softcap, PAGE_SIZE, HEAD_DIM, BLOCK_N, "causal" if CAUSAL else "inside", HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    log_sum = tl.where(total > 0, largest + tl.log2(total), float("-inf"))
    here = is_query[:, None] & in_head[None, :]
    final = alone > 0
    tl.store(out + token[:, None] * out_stride + head[:, None] * HEAD_DIM + d[None, :], acc.to(out.dtype.element_ty), here & final[:, None])
    partial = member.to(tl.int64) * NUM_HEADS + head
    tl.store(partial_out + partial[:, None] * HEAD_DIM + d[None, :], acc, here & (alone == 0)[:, None])
    tl.store(partial_sum + partial, log_sum, is_query & (alone == 0))


@triton.jit(do_not_specialize_on_alignment=["rows", "order"])
def _combine(
    rows, order, partial_out, partial_sum, out, out_stride, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr, PER_PROGRAM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token, first, count = tl.load(rows + row * 3).to(tl.int64), tl.load(rows + row * 3 + 1), tl.load(rows + row * 3 + 2)
    if count < 2:
        return
    d = tl.arange(0, BLOCK_D)
    in_head = d < HEAD_DIM
    for nth in range(PER_PROGRAM):
        head = tl.program_id(1) * PER_PROGRAM + nth
        largest = tl.full([1], -1e30, tl.float32)
        total = tl.zeros([1], tl.float32)
        acc = tl.zeros([BLOCK_D], tl.float32)
        for begin in range(0, count, BLOCK_P):
            index = begin + tl.arange(0, BLOCK_P)
            there = index < count
            partial = tl.load(order + first + index, mask=there, other=0).to(tl.int64) * NUM_HEADS + head
            log_sum = tl.load(partial_sum + partial, mask=there, other=float("-inf"))
            new_largest = tl.maximum(largest, tl.max(log_sum, 0))
            weight = tl.exp2(log_sum - new_largest)
            shrink = tl.exp2(largest - new_largest)
            o = tl.load(partial_out + partial[:, None] * HEAD_DIM + d[None, :], mask=there[:, None] & in_head[None, :], other=0.0)
            acc = acc * shrink + tl.sum(o * weight[:, None], 0)
            total = total * shrink + tl.sum(weight, 0)
            largest = new_largest
        tl.store(out + token * out_stride + head * HEAD_DIM + d, (acc / total).to(out.dtype.element_ty), mask=in_head)
