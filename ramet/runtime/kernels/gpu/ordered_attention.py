"""Attention in which a query's result is the same bits whatever it is computed with: for deterministic inference.

Keys come in blocks that begin at multiples of 64 of their own positions, first to last, for prompts and single queries alike; what a query
may not see adds exact zeros. So it does not matter how a sequence was cut into steps, what was cached, or who else is in the batch. The
price: a row's keys are read by one program per key/value head, so that few long rows do not fill the device.

tiles [N, 4] int32 as in `paged_prefill`, of at most `queries_per_tile` queries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import launch_options
from ramet.runtime.kernels.gpu.paged_keys import LOG2E, AttentionShape, PagedKeys, attend_block

_BLOCK = 64  # query heads of a tile, and keys of a block


def queries_per_tile(group: int) -> int:
    """`group`: query heads per key/value head."""
    return max(_BLOCK // int(triton.next_power_of_2(group)), 1)


def attend_in_order(query: torch.Tensor, paged: PagedKeys, tiles: torch.Tensor, out: torch.Tensor, shape: AttentionShape) -> None:
    """Softmax attention of every tile's queries over all keys up to their own position, or the last `window` of them."""
    num_heads, num_kv_heads, head_dim = query.shape[1], paged.keys.shape[1], paged.keys.shape[2]
    group = num_heads // num_kv_heads
    _attend_in_order[(num_kv_heads, tiles.shape[0])](
        query, paged.keys, paged.values, paged.pages, tiles, out,
        query.stride(0), out.stride(0), paged.keys.stride(0), paged.pages.stride(0),
        shape.scale * LOG2E, shape.window or 0, shape.softcap or 0.0,
        PAGE_SIZE=paged.page_size, HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), GROUP=group,
        GROUP_BLOCK=triton.next_power_of_2(group), BLOCK_M=max(_BLOCK, triton.next_power_of_2(group)), BLOCK_N=_BLOCK,
        HAS_WINDOW=shape.window is not None, HAS_SOFTCAP=shape.softcap is not None,
        num_warps=4, num_stages=3 if head_dim * query.element_size() <= 256 else 2, **launch_options(query.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["pages_stride", "window"], do_not_specialize_on_alignment=["tiles"])
def _attend_in_order(
    query, keys, values, pages, tiles, out, query_stride, out_stride, kv_stride, pages_stride, scale, window, softcap,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    kv_head, tile = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    first_token, num_queries = tl.load(tiles + tile * 4).to(tl.int64), tl.load(tiles + tile * 4 + 1)
    first_position, table_row = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    if num_queries == 0:
        return
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    nth, of_group = m // GROUP_BLOCK, m % GROUP_BLOCK
    is_query = (nth < num_queries) & (of_group < GROUP)
    here = is_query[:, None] & (d < HEAD_DIM)[None, :]
    head, position = kv_head * GROUP + of_group, first_position + nth
    at = (first_token + nth)[:, None]
    q = tl.load(query + at * query_stride + head[:, None] * HEAD_DIM + d[None, :], mask=here, other=0.0)
    if keys.dtype.element_ty.primitive_bitwidth == 8:
        q = q.to(tl.float16)
    end = first_position + num_queries
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(0, first_position - window + 1) // BLOCK_N * BLOCK_N
    largest = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    head_offset = kv_head * HEAD_DIM + d[None, :]
    for n in range(start, end, BLOCK_N):
        acc, largest, total = attend_block(
            acc, largest, total, q, position, n, end, keys, values, pages, table_row, head_offset, kv_stride, pages_stride, scale, window,
            softcap, PAGE_SIZE, HEAD_DIM, BLOCK_N, "causal", HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + at * out_stride + head[:, None] * HEAD_DIM + d[None, :], acc.to(out.dtype.element_ty), mask=here)
