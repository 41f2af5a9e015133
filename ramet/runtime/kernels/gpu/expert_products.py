"""Every expert's matrices times the tokens that chose it, all experts in one kernel.

The grid provides for the most tiles that so many tokens can make; which expert a tile is of, and whether there is one at all, programs read
from the device. Nobody waits for the host to know how many tokens an expert got.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.elementwise import ACTIVATIONS, activate
from ramet.runtime.kernels.gpu.fixed_linear import Tile
from ramet.runtime.kernels.gpu.launch import launch_options


@dataclass(frozen=True, slots=True)
class Pairs:
    """Tokens and their experts in the experts' order (`expert_routing`): `order` and `ends`, and the `weights` [T, per_token] float32."""

    order: torch.Tensor
    ends: torch.Tensor
    weights: torch.Tensor


def expert_inner(x: torch.Tensor, gate_up: torch.Tensor, pairs: Pairs, activation: str, tile: Tile | None = None) -> torch.Tensor:
    """[T, K] and [E, 2 I, K] → [P, I], in the experts' order: act(gate x) · up x.

    Torch: rows = x[order // per_token], and for each expert e of its rows gate, up = (rows @ gate_up[e].T).chunk(2, -1); act(gate) * up
    """
    out = torch.empty(len(pairs.order), gate_up.shape[1] // 2, dtype=x.dtype, device=x.device)
    _launch(x, gate_up, pairs, out, out.shape[1], ACTIVATIONS[activation], tile or _tile(pairs, x.dtype, gated=True))
    return out


def expert_outputs(inner: torch.Tensor, down: torch.Tensor, pairs: Pairs, tile: Tile | None = None) -> torch.Tensor:
    """[P, I] and [E, N, I] → [per_token, T, N]: what each token's first expert makes of it, then its second, …, weighed. Their sum over the
    first dimension is the layer's output.

    Torch: for each expert e of its rows inner @ down[e].T * weights.flatten()[order, None], at the places that `order` says
    """
    num_tokens, per_token = pairs.weights.shape
    out = torch.empty(per_token, num_tokens, down.shape[1], dtype=inner.dtype, device=inner.device)
    _launch(inner, down, pairs, out, down.shape[1], -1, tile or _tile(pairs, inner.dtype, gated=False))
    return out


def _tile(pairs: Pairs, dtype: torch.dtype, *, gated: bool) -> Tile:
    """What was fastest on an H200 for Qwen3-30B-A3B and Mixtral-8x7B, by the tokens that an expert gets on the average. A gated product's
    tile is of two matrices."""
    each = len(pairs.order) / len(pairs.ends)
    if dtype == torch.float32:
        return Tile(16, 32, 32, 4, 2)
    if each < 16:
        return Tile(16, 32 if gated else 64, 128, 4, 4)
    return Tile(64, 64 if gated else 128, 64, 4, 4) if each <= 96 else Tile(128, 128 if gated else 256, 64, 8, 3)


def _launch(x: torch.Tensor, weight: torch.Tensor, pairs: Pairs, out: torch.Tensor, num_rows: int, activation: int, tile: Tile) -> None:
    num_pairs, count, exact = len(pairs.order), len(pairs.ends), "ieee" if x.dtype == torch.float32 else None
    most_tiles = num_pairs // tile.tokens + min(num_pairs, count)
    num_tokens, per_token = pairs.weights.shape
    _expert_product[(most_tiles * triton.cdiv(num_rows, tile.rows),)](
        x, weight, pairs.order, pairs.ends, pairs.weights, out, num_tokens, most_tiles, N=num_rows, K=x.shape[1], COUNT=count,
        EXPERTS=triton.next_power_of_2(count), PER_TOKEN=per_token, ACTIVATION=activation, EXACT=exact, BLOCK_T=tile.tokens,
        BLOCK_N=tile.rows, BLOCK_K=tile.depth, num_warps=tile.warps, num_stages=tile.stages, **launch_options(x.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens", "most_tiles"])
def _expert_product(
    x, weight, order, ends, weights, out, num_tokens, most_tiles, N: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr,
    EXPERTS: tl.constexpr, PER_TOKEN: tl.constexpr, ACTIVATION: tl.constexpr, EXACT: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Eight tiles of tokens meet the same rows of a matrix one after the other, while these are cached. `ACTIVATION` -1: not gated."""
    group = tl.program_id(0) // (8 * tl.cdiv(N, BLOCK_N))
    in_group = tl.minimum(most_tiles - group * 8, 8)
    place = tl.program_id(0) % (8 * tl.cdiv(N, BLOCK_N))
    tile = group * 8 + place % in_group
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    every = tl.arange(0, EXPERTS)
    end = tl.load(ends + every, mask=every < COUNT, other=0)
    start = tl.load(ends + every - 1, mask=(every > 0) & (every < COUNT), other=0)
    behind = tl.cumsum((tl.maximum(end - start, 0) + BLOCK_T - 1) // BLOCK_T, 0)
    expert = tl.sum((behind <= tile).to(tl.int32), 0)
    if expert < COUNT:
        own = every == expert
        first, last = tl.sum(tl.where(own, start, 0), 0), tl.sum(tl.where(own, end, 0), 0)
        tiles_before = tl.sum(tl.where(every == expert - 1, behind, 0), 0)
        position = first + (tile - tiles_before) * BLOCK_T + tl.arange(0, BLOCK_T)
        is_pair = position < last
        pair = tl.load(order + position, mask=is_pair, other=0)
        n = (place // in_group) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        row = tl.where(n < N, n, 0).to(tl.int64)
        GATED: tl.constexpr = ACTIVATION >= 0
        line = pair // PER_TOKEN if GATED else position
        x_at = x + line.to(tl.int64)[:, None] * K + k[None, :]
        matrix = weight + expert.to(tl.int64) * ((2 * N if GATED else N) * K)
        weight_at = matrix + row[None, :] * K + k[:, None]
        acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
        acc_up = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
        for begin in range(0, K, BLOCK_K):
            there = k < K - begin
            if K % BLOCK_K == 0:
                part = tl.load(x_at + begin, mask=is_pair[:, None], other=0.0)
                w = tl.load(weight_at + begin)
            else:
                part = tl.load(x_at + begin, mask=is_pair[:, None] & there[None, :], other=0.0)
                w = tl.load(weight_at + begin, mask=there[:, None], other=0.0)
            acc = tl.dot(part, w, acc, input_precision=EXACT)
            if GATED:
                if K % BLOCK_K == 0:
                    w = tl.load(weight_at + N * K + begin)
                else:
                    w = tl.load(weight_at + N * K + begin, mask=there[:, None], other=0.0)
                acc_up = tl.dot(part, w, acc_up, input_precision=EXACT)
        if GATED:
            acc = activate(acc, ACTIVATION) * acc_up
            to = position
        else:
            acc *= tl.load(weights + pair, mask=is_pair, other=0.0)[:, None]
            to = (pair % PER_TOKEN) * num_tokens + pair // PER_TOKEN
        valid = is_pair[:, None] & (n < N)[None, :]
        tl.store(out + to.to(tl.int64)[:, None] * N + n[None, :], acc.to(out.dtype.element_ty), mask=valid)
