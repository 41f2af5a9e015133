"""Which experts each token goes through, and the tokens in the experts' order: on the device, so that a graph can hold it.

A pair is a token and one of its experts; pair t · per_token + j is token t with its j-th likeliest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import launch_options

_FEW, _MANY = 1024, 8192
"""Pairs that a program looks at together."""


def route(logits: torch.Tensor, per_token: int, *, renormalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, E] → weights [T, per_token] float32 and experts [T, per_token] int32, the likeliest first.

    Torch: `layers.experts.choose_experts`; of equal ones the first.
    """
    num_tokens, count = logits.shape
    weights = torch.empty(num_tokens, per_token, dtype=torch.float32, device=logits.device)
    experts = torch.empty(num_tokens, per_token, dtype=torch.int32, device=logits.device)
    _choose_experts[(num_tokens,)](
        logits, weights, experts, COUNT=count, BLOCK=triton.next_power_of_2(count), PER_TOKEN=per_token,
        RENORMALISE=renormalise, num_warps=1 if count <= 256 else 4, **launch_options(logits.device),
    )  # fmt: skip
    return weights, experts


def pairs_by_expert(experts: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the expert of each pair: the pairs sorted by expert [P] int32, and where each of the `count` experts' end [E] int32.

    Torch: experts.flatten().sort(stable=True).indices; searchsorted of 0 … count - 1, right=True
    """
    order = torch.empty(experts.numel(), dtype=torch.int32, device=experts.device)
    ends = torch.empty(count, dtype=torch.int32, device=experts.device)
    block, warps = (_FEW, 4) if experts.numel() <= _MANY else (_MANY, 16)
    _order_by_expert[(count,)](experts, order, ends, experts.numel(), BLOCK=block, num_warps=warps, **launch_options(experts.device))
    return order, ends


@triton.jit
def _choose_experts(
    logits, weights, experts, COUNT: tl.constexpr, BLOCK: tl.constexpr, PER_TOKEN: tl.constexpr, RENORMALISE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(logits + token * COUNT + expert, mask=expert < COUNT, other=-float("inf")).to(tl.float32)
    left = tl.exp(x - tl.max(x, 0))
    total = tl.sum(left, 0)
    left = tl.where(expert < COUNT, left, -1.0)
    if RENORMALISE:
        total = 0.0
        rest = left
        for _ in tl.static_range(PER_TOKEN):
            total += tl.max(rest, 0)
            rest = tl.where(expert == tl.argmax(rest, 0), -1.0, rest)
    for j in tl.static_range(PER_TOKEN):
        best = tl.argmax(left, 0)
        tl.store(weights + token * PER_TOKEN + j, tl.max(left, 0) / total)
        tl.store(experts + token * PER_TOKEN + j, best.to(tl.int32))
        left = tl.where(expert == best, -1.0, left)


@triton.jit(do_not_specialize=["num_pairs"])
def _order_by_expert(experts, order, ends, num_pairs, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One program per expert: those of smaller experts come before its own, which stay in order."""
    mine = tl.program_id(0)
    pair = tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    before = 0
    for begin in range(0, num_pairs, BLOCK):
        other = tl.load(experts + begin + pair, mask=pair < num_pairs - begin, other=2147483647)
        before += tl.sum((other < mine).to(tl.int32), 0)
    for begin in range(0, num_pairs, BLOCK):
        is_mine = tl.load(experts + begin + pair, mask=pair < num_pairs - begin, other=2147483647) == mine
        rank = tl.cumsum(is_mine.to(tl.int32), 0)
        tl.store(order + before + rank - 1, begin + pair, mask=is_mine)
        before += tl.sum(is_mine.to(tl.int32), 0)
    tl.store(ends + mine, before)
