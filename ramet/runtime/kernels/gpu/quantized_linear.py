"""Products with weights of 8 or 4 bits, which become numbers inside the tile that needs them. Torch: `QuantizedWeight.linear`.

    tokens     1                          vector times matrix at the memory's speed, without the matrix units
               up to MAX_TOKENS           tiles of codes through the matrix units; what a group's codes sum to is scaled once
               more, one scale per row    fp8: both sides in 8 bits, activations scaled per token (`fp8_linear`)
               more                       the whole matrix becomes 16-bit numbers (`dequantise`), then an ordinary product

A code less its zero is a small integer, exact in either 16-bit type, so that a product of codes is that of the torch reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import launch_options

MAX_TOKENS = 128
SEGMENT = 128
"""Inputs that a kernel takes at a time; a matrix has a whole number of them."""
KINDS = {torch.float8_e4m3fn: 0, torch.uint8: 1}
FP8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class Codes:
    """[N, K] codes (float8 or uint8), or [N, K/2] bytes of two 4-bit ones; scales and zeros [N, groups]."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    num_columns: int

    @property
    def group(self) -> int:
        return self.num_columns // self.scales.shape[1]

    @property
    def some_zeros(self) -> torch.Tensor:
        """A pointer for the kernel also where there are none."""
        return self.scales if self.zeros is None else self.zeros

    @property
    def kind(self) -> int:
        """0: fp8, 1: 8-bit integers, 2: 4-bit integers."""
        return 2 if self.codes.shape[1] < self.num_columns else KINDS[self.codes.dtype]


@dataclass(frozen=True, slots=True)
class Tiles:
    """`rows` of W and `depth` inputs at a time."""

    rows: int
    depth: int
    warps: int
    stages: int


def covers(weight: Codes, dtype: torch.dtype) -> bool:
    """Whether the kernels here compute with this weight."""
    group = weight.group
    whole = weight.num_columns % SEGMENT == 0 and (group % SEGMENT == 0 or SEGMENT % group == 0) and group >= 32
    return whole and dtype in (torch.bfloat16, torch.float16)


def few_tokens_linear(
    x: torch.Tensor,  # [T, K], T <= MAX_TOKENS
    weight: Codes,
    *,
    bias: torch.Tensor | None = None,
    add_to: torch.Tensor | None = None,  # [T, N], updated in place and returned
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """x Wᵀ + b, computed in float32."""
    num_tokens, depth = x.shape
    num_rows = weight.codes.shape[0]
    out = add_to if add_to is not None else torch.empty(num_tokens, num_rows, dtype=x.dtype, device=x.device)
    alone = num_tokens == 1 and weight.group % SEGMENT == 0
    block_t = 1 if alone else max(16, triton.next_power_of_2(num_tokens))
    b = tiles or default_tiles(weight, num_tokens, alone)
    kernel = _one_token if alone else _few_tokens
    kernel[(triton.cdiv(num_rows, b.rows),)](
        x, weight.codes, weight.scales, weight.some_zeros, weight.scales if bias is None else bias, out,
        num_tokens, num_rows, x.stride(0), K=depth, GROUP=weight.group, KIND=weight.kind, BLOCK_T=block_t, BLOCK_N=b.rows, BLOCK_K=b.depth,
        HAS_BIAS=bias is not None, ADD=add_to is not None, num_warps=b.warps, num_stages=b.stages, **launch_options(x.device),
    )  # fmt: skip
    return out


def default_tiles(weight: Codes, num_tokens: int, alone: bool) -> Tiles:
    """What was fastest on an H200 for the layers of an 8B model."""
    if alone:
        depth = next(size for size in (2048, 1024, 512, 256, SEGMENT) if weight.num_columns % size == 0)
        return Tiles(4, depth, 8, 1)
    depth = min(weight.group, SEGMENT)
    return Tiles(64, depth, 4, 4) if num_tokens <= 64 else Tiles(128, depth, 8, 3)


@triton.jit(do_not_specialize=["num_tokens"])
def _few_tokens(
    x, codes, scales, zeros, bias, out, num_tokens, num_rows, x_stride,
    K: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.arange(0, BLOCK_T)
    inside = n < num_rows
    row = tl.where(inside, n, 0).to(tl.int64)
    is_token = (t < num_tokens)[None, :]
    x_rows = x + t[None, :].to(tl.int64) * x_stride
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    zero = tl.zeros([BLOCK_N], tl.int16)
    for begin in range(0, K, BLOCK_K):
        group = row * (K // GROUP) + begin // GROUP
        if KIND != 0:
            zero = tl.load(zeros + group)
        if KIND == 2:
            j = tl.arange(0, BLOCK_K // 2)
            packed = tl.load(codes + row[:, None] * (K // 2) + begin // 2 + j[None, :], eviction_policy="evict_first")
            x_at = x_rows + begin + (j // 16 * 32 + j % 16)[:, None]
            low = ((packed & 15).to(tl.int16) - zero[:, None]).to(x.dtype.element_ty)
            part = tl.dot(low, tl.load(x_at, mask=is_token, other=0.0))
            high = ((packed >> 4).to(tl.int16) - zero[:, None]).to(x.dtype.element_ty)
            part = tl.dot(high, tl.load(x_at + 16, mask=is_token, other=0.0), part)
        else:
            k = tl.arange(0, BLOCK_K)
            w = tl.load(codes + row[:, None] * K + begin + k[None, :], eviction_policy="evict_first")
            if KIND == 1:
                w = w.to(tl.int16) - zero[:, None]
            part = tl.dot(w.to(x.dtype.element_ty), tl.load(x_rows + begin + k[:, None], mask=is_token, other=0.0))
        if GROUP < K:
            part *= tl.load(scales + group).to(tl.float32)[:, None]
        acc += part
    if GROUP == K:
        acc *= tl.load(scales + row).to(tl.float32)[:, None]
    if HAS_BIAS:
        acc += tl.load(bias + row)[:, None].to(tl.float32)
    place = out + t[None, :].to(tl.int64) * num_rows + n[:, None]
    valid = inside[:, None] & is_token
    if ADD:
        acc += tl.load(place, mask=valid, other=0.0).to(tl.float32)
    tl.store(place, acc.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["num_tokens"])
def _one_token(
    x, codes, scales, zeros, bias, out, num_tokens, num_rows, x_stride,
    K: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """For one token: segments of 128 inputs, each with the scale of the group that it lies in. The first codes are asked for before the
    kernel before this one has ended, since weights depend on nobody."""
    SEGMENTS: tl.constexpr = BLOCK_K // 128
    BYTES: tl.constexpr = 64 if KIND == 2 else 128
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    s, j = tl.arange(0, SEGMENTS), tl.arange(0, BYTES)
    inside = n < num_rows
    row = tl.where(inside, n, 0).to(tl.int64)
    at = codes + row[:, None, None] * (K // 128 * BYTES) + s[None, :, None] * BYTES + j[None, None, :]
    ahead = tl.load(at, eviction_policy="evict_first")
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_N, SEGMENTS, BYTES], tl.float32)
    group = row[:, None] * (K // GROUP) + (s * 128 // GROUP)[None, :]
    inputs = x + s[:, None] * 128 + (j // 16 * 32 + j % 16 if KIND == 2 else j)[None, :]
    for begin in range(0, K, BLOCK_K):
        w, following = ahead, begin + BLOCK_K
        next_at = at + tl.minimum(following, K - BLOCK_K) // 128 * BYTES
        ahead = tl.load(next_at, eviction_policy="evict_first", mask=following < K, other=0.0)
        here = tl.load(inputs + begin).to(tl.float32)[None, :, :]
        if KIND == 0:
            value = w.to(tl.float32) * here
        else:
            zero = tl.load(zeros + group + begin // GROUP).to(tl.float32)[:, :, None]
            if KIND == 1:
                value = (w.to(tl.float32) - zero) * here
            else:
                value = ((w & 15).to(tl.float32) - zero) * here
                value += ((w >> 4).to(tl.float32) - zero) * tl.load(inputs + begin + 16).to(tl.float32)[None, :, :]
        if GROUP < K:
            value *= tl.load(scales + group + begin // GROUP).to(tl.float32)[:, :, None]
        acc += value
    total = tl.sum(tl.sum(acc, 2), 1)
    if GROUP == K:
        total *= tl.load(scales + row).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + row).to(tl.float32)
    if ADD:
        total += tl.load(out + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + n, total.to(out.dtype.element_ty), mask=inside)


def dequantise(weight: Codes, dtype: torch.dtype) -> torch.Tensor:
    """[N, K] in `dtype`, in the codes' own order of inputs."""
    num_rows, depth = weight.codes.shape[0], weight.num_columns
    out = torch.empty(num_rows, depth, dtype=dtype, device=weight.codes.device)
    _dequantise[(num_rows, triton.cdiv(depth, 4096))](
        weight.codes, weight.scales, weight.some_zeros, out, K=depth, GROUP=weight.group,
        KIND=weight.kind, BLOCK=4096, num_warps=8, **launch_options(out.device),
    )  # fmt: skip
    return out


@triton.jit
def _dequantise(
    codes, scales, zeros, out, K: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < K
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if KIND == 2:
        byte = tl.load(codes + row * (K // 2) + k // 32 * 16 + k % 16, mask=inside, other=0)
        value = ((byte >> ((k // 16) % 2 * 4).to(tl.uint8)) & 15).to(tl.float32)
    else:
        value = tl.load(codes + row * K + k, mask=inside, other=0.0).to(tl.float32)
    group = row * (K // GROUP) + k // GROUP
    if KIND != 0:
        value -= tl.load(zeros + group, mask=inside, other=0).to(tl.float32)
    value *= tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * K + k, value.to(out.dtype.element_ty), mask=inside)


def fp8_linear(x: torch.Tensor, weight: Codes) -> torch.Tensor:
    """x Wᵀ with activations rounded to fp8 too, one scale per token; for fp8 weights with one scale per row."""
    rounded, scales = quantise_rows(x)
    out: torch.Tensor = torch._scaled_mm(
        rounded, weight.codes.t(), scale_a=scales, scale_b=weight.scales.view(1, -1), out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return out.to(x.dtype)


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, K] → float8 [T, K] and scales [T, 1]: x ≈ scale · code.

    Torch: scale = x.abs().amax(-1) / 448;  code = (x / scale).to(float8_e4m3fn)
    """
    num_tokens, size = x.shape
    codes = torch.empty(num_tokens, size, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(num_tokens, 1, dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(size), 16384)
    _quantise_rows[(num_tokens,)](
        x, codes, scales, x.stride(0), SIZE=size, BLOCK=block, num_warps=8 if size > 2048 else 4, **launch_options(x.device)
    )
    return codes, scales


@triton.jit
def _quantise_rows(x, codes, scales, x_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    largest = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, SIZE, BLOCK):
        value = tl.load(x + row * x_stride + begin + column, mask=begin + column < SIZE, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value))
    scale = tl.maximum(tl.max(largest, 0) / 448.0, 1e-30)
    tl.store(scales + row, scale)
    for begin in range(0, SIZE, BLOCK):
        inside = begin + column < SIZE
        value = tl.load(x + row * x_stride + begin + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(codes + row * SIZE + begin + column, (value / scale).to(codes.dtype.element_ty), mask=inside)
