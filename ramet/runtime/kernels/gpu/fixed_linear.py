"""Linear layers whose every number is the same bits whatever else is multiplied beside it: for deterministic inference.

Libraries choose tiles and cut sums by the number of tokens, and so round otherwise in another batch. Here a number is always the sum of the
same products in the same order, sixteen at a time as the matrix units take them; nothing is cut along the inputs. Few and many tokens have
tiles of different sizes, which does not touch the order: `matrix_products.check_alike` makes sure on the device at hand. Torch: F.linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class Tile:
    tokens: int
    rows: int
    depth: int
    warps: int
    stages: int


FEW = Tile(64, 32, 128, 4, 5)
MANY = Tile(128, 128, 64, 8, 4)


def fixed_linear(
    x: torch.Tensor,  # [T, K]
    weight: torch.Tensor,  # [N, K]
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,  # of the result; default: of x
    out: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """[T, N]. K must be a multiple of 16 bytes."""
    num_tokens, depth = x.shape
    num_rows = weight.shape[0]
    if out is None:
        out = torch.empty(num_tokens, num_rows, dtype=dtype or x.dtype, device=x.device)
    if not num_tokens:
        return out
    tile = tile or (FEW if num_tokens <= FEW.tokens else MANY)
    width = tile.depth * 2 // x.element_size()  # as many bytes of float32
    _fixed_linear[(triton.cdiv(num_tokens, tile.tokens) * triton.cdiv(num_rows, tile.rows),)](
        x, weight, weight if bias is None else bias, out, num_tokens, num_rows, x.stride(0), K=depth,
        BLOCK_T=tile.tokens, BLOCK_N=tile.rows, BLOCK_K=width, HAS_BIAS=bias is not None, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_tokens"])
def _fixed_linear(
    x, weight, bias, out, num_tokens, num_rows, x_stride, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Eight tiles of tokens meet the same rows of the matrix one after the other, while these are in the cache."""
    token_tiles, row_tiles = tl.cdiv(num_tokens, BLOCK_T), tl.cdiv(num_rows, BLOCK_N)
    group = tl.program_id(0) // (8 * row_tiles)
    in_group = tl.minimum(token_tiles - group * 8, 8)
    place = tl.program_id(0) % (8 * row_tiles)
    t = (group * 8 + place % in_group) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = (place // in_group) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    token, row = t.to(tl.int64), tl.where(n < num_rows, n, 0).to(tl.int64)
    is_token = (t < num_tokens)[:, None]  # masked, not clamped: all programs reading one line would wait for each other
    x_at = x + token[:, None] * x_stride + k[None, :]
    weight_at = weight + row[None, :] * K + k[:, None]
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for begin in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            acc = tl.dot(tl.load(x_at + begin, mask=is_token, other=0.0), tl.load(weight_at + begin), acc)
        else:
            there = k < K - begin
            part = tl.load(x_at + begin, mask=is_token & there[None, :], other=0.0)
            acc = tl.dot(part, tl.load(weight_at + begin, mask=there[:, None], other=0.0), acc)
    if HAS_BIAS:
        acc += tl.load(bias + row).to(tl.float32)[None, :]
    tl.store(
        out + token[:, None] * num_rows + n[None, :], acc.to(out.dtype.element_ty), mask=(t < num_tokens)[:, None] & (n < num_rows)[None, :]
    )
