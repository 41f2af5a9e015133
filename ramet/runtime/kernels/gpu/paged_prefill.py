"""Causal attention of several queries of a row over its pages, in tiles of queries (flash attention 2, arXiv 2307.08691).

tiles [N, 4] int32: first token, number of queries, position of the first one, row of the page table. Tiles that see most keys come
first, so that the short ones fill the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import launch_options
from ramet.runtime.kernels.gpu.paged_keys import LOG2E, AttentionShape, PagedKeys, attend_block

TILE = 128


def attend_tiles(query: torch.Tensor, paged: PagedKeys, tiles: torch.Tensor, out: torch.Tensor, shape: AttentionShape) -> None:
    """Softmax attention of every tile's queries over all keys up to their own position, or the last `window` of them."""
    num_heads, num_kv_heads, head_dim = query.shape[1], paged.keys.shape[1], paged.keys.shape[2]
    if not tiles.shape[0]:
        return
    wide = triton.next_power_of_2(head_dim) * query.element_size() > 256
    _attend_tiles[(num_heads, tiles.shape[0])](
        query, paged.keys, paged.values, paged.pages, tiles, out,
        query.stride(0), out.stride(0), paged.keys.stride(0), paged.pages.stride(0),
        shape.scale * LOG2E, shape.window or 0, shape.softcap or 0.0,
        PAGE_SIZE=paged.page_size, HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), GROUP=num_heads // num_kv_heads,
        BLOCK_M=TILE, BLOCK_N=32 if wide else 64, HAS_WINDOW=shape.window is not None, HAS_SOFTCAP=shape.softcap is not None,
        num_warps=8, num_stages=2 if wide else 3, **launch_options(query.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["pages_stride", "window"], do_not_specialize_on_alignment=["tiles"])
def _attend_tiles(
    query, keys, values, pages, tiles, out, query_stride, out_stride, kv_stride, pages_stride, scale, window, softcap,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    head, tile = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    first_token, num_queries = tl.load(tiles + tile * 4).to(tl.int64), tl.load(tiles + tile * 4 + 1)
    first_position, table_row = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    if num_queries == 0:
        return
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    head_offset = (head // GROUP) * HEAD_DIM + d[None, :]
    in_head = d < HEAD_DIM
    here = (m < num_queries)[:, None] & in_head[None, :]
    q = tl.load(query + (first_token + m)[:, None] * query_stride + head * HEAD_DIM + d[None, :], mask=here, other=0.0)
    if keys.dtype.element_ty.primitive_bitwidth == 8:
        q = q.to(tl.float16)  # to which a GPU widens fp8 by itself
    end = first_position + num_queries
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(0, first_position - window + 1) // BLOCK_N * BLOCK_N
    seen_by_all = (first_position + 1) // BLOCK_N * BLOCK_N
    if HAS_WINDOW:
        seen_by_all = tl.maximum(seen_by_all, start)
    largest = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    position = first_position + m
    for n in range(start, seen_by_all, BLOCK_N):
        acc, largest, total = attend_block(
            acc, largest, total, q, position, n, end, keys, values, pages, table_row, head_offset, kv_stride, pages_stride, scale, window,
            softcap, PAGE_SIZE, HEAD_DIM, BLOCK_N, "all", HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
    for n in range(seen_by_all, end, BLOCK_N):
        acc, largest, total = attend_block(
            acc, largest, total, q, position, n, end, keys, values, pages, table_row, head_offset, kv_stride, pages_stride, scale, window,
            softcap, PAGE_SIZE, HEAD_DIM, BLOCK_N, "causal", HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
    acc = acc / total[:, None]
    tl.store(out + (first_token + m)[:, None] * out_stride + head * HEAD_DIM + d[None, :], acc.to(out.dtype.element_ty), mask=here)
