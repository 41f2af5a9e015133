"""Linear layers of a few tokens: every weight is read once at the memory's speed, and what stands before and behind the product is
computed with it.

    plain   y = x Wᵀ + b
    normed  y = rms_norm(h) Wᵀ        the length of h falls out of the same pass, its inverse scales the result
    gated   y = act(g) · u , (g, u) = rms_norm(h) Wᵀ
    added   h ← h + x Wᵀ

Torch, beside it: F.linear on `add_rms_norm`, `gated_activation` and `add_` of `elementwise.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.elementwise import ACTIVATIONS, activate
from ramet.runtime.kernels.gpu.launch import launch_options

MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Blocks:
    """`rows` of W per program, `depth` of each that is in flight at a time."""

    rows: int
    depth: int
    warps: int
    stages: int


def skinny_linear(
    x: torch.Tensor,  # [T, K], T <= 16
    weight: torch.Tensor,  # [N, K]
    *,
    bias: torch.Tensor | None = None,
    norm: tuple[torch.Tensor, float] | None = None,  # weight [K] and epsilon
    activation: str | None = None,  # W holds gate and up, N/2 rows each
    add_to: torch.Tensor | None = None,  # [T, N], updated in place and returned
    dtype: torch.dtype | None = None,  # of the result; default: of x
    out: torch.Tensor | None = None,  # where the result goes
    blocks: Blocks | None = None,
) -> torch.Tensor:
    num_tokens, depth = x.shape
    num_rows = weight.shape[0] // (1 if activation is None else 2)
    if out is None:
        out = add_to if add_to is not None else torch.empty(num_tokens, num_rows, dtype=dtype or x.dtype, device=x.device)
    b = blocks or default_blocks(num_tokens, depth)
    kernel = _one_token if num_tokens == 1 else _skinny_linear
    kernel[(triton.cdiv(num_rows, b.rows),)](
        x, weight, weight if bias is None else bias, x if norm is None else norm[0], out, num_tokens, num_rows, x.stride(0),
        0.0 if norm is None else norm[1],
        K=depth, BLOCK_T=16, BLOCK_N=b.rows, BLOCK_K=b.depth,
        HAS_BIAS=bias is not None, NORM=norm is not None, GATED=activation is not None,
        ACTIVATION=0 if activation is None else ACTIVATIONS[activation], ADD=add_to is not None,
        num_warps=b.warps, num_stages=b.stages, **launch_options(x.device),
    )  # fmt: skip
    return out


def fits(weight: torch.Tensor, num_tokens: int) -> bool:
    """Whether the kernel computes this product."""
    return num_tokens <= MAX_TOKENS and weight.dtype in (torch.bfloat16, torch.float16) and weight.shape[1] % 128 == 0


def default_blocks(num_tokens: int, depth: int) -> Blocks:
    """What was fastest on an H200 for the layers of an 8B model."""
    if num_tokens == 1:
        return Blocks(4, 1024 if depth % 1024 == 0 else 128, 4, 1)
    return Blocks(64, 256 if depth % 256 == 0 else 128, 4, 4)


@triton.jit
def _skinny_linear(
    x, weight, bias, norm_weight, out, num_tokens, num_rows, x_stride, eps,
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr, NORM: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    t = tl.arange(0, BLOCK_T)
    inside = n < num_rows
    row = tl.where(inside, n, 0).to(tl.int64)
    gate_at = weight + row[:, None] * K + k[None, :]
    up_at = gate_at + num_rows.to(tl.int64) * K
    x_at = x + t[None, :].to(tl.int64) * x_stride + k[:, None]
    is_token = (t < num_tokens)[None, :]
    if PDL:
        gdc_launch_dependents()
        _prefetch(weight + row[:, None] * K, BLOCK_K)
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    squares = tl.zeros([BLOCK_T], tl.float32)
    for begin in range(0, K, BLOCK_K):
        w = tl.load(gate_at + begin, eviction_policy="evict_first")
        part = tl.load(x_at + begin, mask=is_token, other=0.0)
        if NORM:
            wide = part.to(tl.float32)
            squares += tl.sum(wide * wide, 0)
            part = (wide * tl.load(norm_weight + begin + k)[:, None].to(tl.float32)).to(w.dtype)
        acc = tl.dot(w, part, acc)
        if GATED:
            acc_up = tl.dot(tl.load(up_at + begin, eviction_policy="evict_first"), part, acc_up)
    if NORM:
        inverse = tl.rsqrt(squares / K + eps)[None, :]
        acc, acc_up = acc * inverse, acc_up * inverse
    if HAS_BIAS:
        acc += tl.load(bias + row)[:, None].to(tl.float32)
        if GATED:
            acc_up += tl.load(bias + num_rows + row)[:, None].to(tl.float32)
    if GATED:
        acc = activate(acc, ACTIVATION) * acc_up
    place = out + t[None, :].to(tl.int64) * num_rows + n[:, None]
    valid = inside[:, None] & is_token
    if ADD:
        acc += tl.load(place, mask=valid, other=0.0).to(tl.float32)
    tl.store(place, acc.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _one_token(
    x, weight, bias, norm_weight, out, num_tokens, num_rows, x_stride, eps,
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr, NORM: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same for one token, without the matrix units. A tile of weights is on its way while the one before it is used; the first
    is asked for before the kernel before this one has ended, since weights depend on nobody."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = n < num_rows
    row = tl.where(inside, n, 0).to(tl.int64)
    gate_at = weight + row[:, None] * K + k[None, :]
    up_at = gate_at + num_rows.to(tl.int64) * K
    w = tl.load(gate_at, eviction_policy="evict_first")
    u = w
    if GATED:
        u = tl.load(up_at, eviction_policy="evict_first")
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for begin in range(0, K, BLOCK_K):
        w_now, u_now = w, u
        ahead = tl.minimum(begin + BLOCK_K, K - BLOCK_K)
        w = tl.load(gate_at + ahead, eviction_policy="evict_first", mask=begin + BLOCK_K < K, other=0.0)
        if GATED:
            u = tl.load(up_at + ahead, eviction_policy="evict_first", mask=begin + BLOCK_K < K, other=0.0)
        part = tl.load(x + begin + k).to(tl.float32)
        if NORM:
            squares += part * part
            part = part * tl.load(norm_weight + begin + k).to(tl.float32)
        acc += w_now.to(tl.float32) * part[None, :]
        if GATED:
            acc_up += u_now.to(tl.float32) * part[None, :]
    total, total_up = tl.sum(acc, 1), tl.sum(acc_up, 1)
    if NORM:
        inverse = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        total, total_up = total * inverse, total_up * inverse
    if HAS_BIAS:
        total += tl.load(bias + row).to(tl.float32)
        if GATED:
            total_up += tl.load(bias + num_rows + row).to(tl.float32)
    if GATED:
        total = activate(total, ACTIVATION) * total_up
    if ADD:
        total += tl.load(out + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + n, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _prefetch(rows, BLOCK_K: tl.constexpr):
    """The first keys of every row into the L2 cache, while the kernel before this one ends: weights depend on nobody."""
    line = tl.arange(0, BLOCK_K // 64 * 4) * 64  # 128 bytes each
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(rows + line[None, :]).to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )
