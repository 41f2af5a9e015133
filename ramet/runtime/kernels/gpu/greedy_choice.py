"""The likeliest token of every row: what greedy sampling is, in two short kernels. Torch: logits.argmax(-1), the first of equals."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import launch_options

_BLOCK = 4096
_NONE = tl.constexpr(2147483647)


def greedy_tokens(logits: torch.Tensor) -> torch.Tensor:
    """[S, vocab] float32 → [S] int64."""
    num_rows, vocab = logits.shape
    parts = triton.cdiv(vocab, _BLOCK)
    best = torch.empty(num_rows, parts, dtype=torch.float32, device=logits.device)
    at = torch.empty(num_rows, parts, dtype=torch.int32, device=logits.device)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    options = launch_options(logits.device)
    _best_of_part[(num_rows, parts)](logits, best, at, logits.stride(0), VOCAB=vocab, BLOCK=_BLOCK, num_warps=8, **options)
    _best_of_row[(num_rows,)](best, at, tokens, PARTS=parts, BLOCK=triton.next_power_of_2(parts), num_warps=1, **options)
    return tokens


@triton.jit
def _best_of_part(logits, best, at, stride, VOCAB: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + token, mask=token < VOCAB, other=float("-inf"))
    largest = tl.max(x, 0)
    where = tl.min(tl.where((x == largest) & (token < VOCAB), token, _NONE), 0)
    place = row * tl.num_programs(1) + part
    tl.store(best + place, largest)
    tl.store(at + place, where)


@triton.jit
def _best_of_row(best, at, tokens, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    part = tl.arange(0, BLOCK)
    x = tl.load(best + row * PARTS + part, mask=part < PARTS, other=float("-inf"))
    where = tl.load(at + row * PARTS + part, mask=part < PARTS, other=_NONE)
    token = tl.min(tl.where(x == tl.max(x, 0), where, _NONE), 0)
    tl.store(tokens + row, tl.where(token == _NONE, 0, token).to(tl.int64))  # all NaN: any token, but one that exists
