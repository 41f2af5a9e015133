"""Products with weights of 8 or 4 bits, which become numbers inside the tile that needs them. Torch: `QuantizedWeight.linear`.

fp8 per row     few tokens     tiles of codes through the matrix units, activations in fp8 too, one scale per token
                more           the library's fp8 product, activations rounded likewise (`fp8_linear`)
others          one token      vector times matrix in float32, without the matrix units
                few            tiles of codes, widened on their way to the matrix units
                more           the whole matrix becomes 16-bit numbers (`dequantise`), then an ordinary product
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import capability, launch_options

MAX_TOKENS = 128
SEGMENT = 128
"""Inputs that a kernel takes at a time; a matrix has a whole number of them. See `quantized_weight.RUN` for how 4-bit codes lie."""
KINDS = {torch.float8_e4m3fn: 0, torch.uint8: 1, torch.int32: 2}
FP8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class Codes:
    """[N, K] codes (float8 or uint8), or [N, K/8] words of eight 4-bit ones; scales and zeros [N, groups]."""

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
        return KINDS[self.codes.dtype]

    @property
    def bytes(self) -> torch.Tensor:
        """The codes as integers."""
        return self.codes.view(torch.uint8) if self.kind == 0 else self.codes

    @property
    def max_tokens(self) -> int:
        """Up to which `few_tokens_linear` is the fastest way."""
        return MAX_TOKENS // 2 if self.kind == 2 or self.is_rowwise_fp8 else MAX_TOKENS

    @property
    def is_rowwise_fp8(self) -> bool:
        return self.kind == 0 and self.group == self.num_columns


@dataclass(frozen=True, slots=True)
class Tiles:
    """`rows` of W and `depth` inputs at a time; several tokens take 4-bit codes by SEGMENT."""

    rows: int
    depth: int
    warps: int
    stages: int
    splits: int = 1  # programs that share the inputs of a row


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
    """x Wᵀ + b, summed in float32. Tokens that meet fp8 weights of one scale per row are rounded to fp8, each with its scale."""
    num_tokens, num_rows = x.shape[0], weight.codes.shape[0]
    out = add_to if add_to is not None else torch.empty(num_tokens, num_rows, dtype=x.dtype, device=x.device)
    flags = {"HAS_BIAS": bias is not None, "ADD": add_to is not None, **launch_options(x.device)}
    in_fp8 = weight.is_rowwise_fp8 and multiplies_fp8(x.device)
    alone = num_tokens == 1 and not in_fp8
    some_bias, b = weight.scales if bias is None else bias, tiles or default_tiles(weight, num_tokens, alone=alone)
    if alone:
        _one_token[(triton.cdiv(num_rows, b.rows),)](
            x, weight.bytes, weight.scales, weight.some_zeros, some_bias, out, num_rows, K=weight.num_columns, GROUP=weight.group,
            KIND=weight.kind, BLOCK_N=b.rows, BLOCK_K=b.depth, num_warps=b.warps, num_stages=b.stages, **flags,
        )  # fmt: skip
        return out
    x, x_scales = quantise_rows(x) if in_fp8 else (x, weight.scales)
    partials = out if b.splits == 1 else torch.empty(b.splits, num_tokens, num_rows, dtype=torch.float32, device=x.device)
    _few_tokens[(triton.cdiv(num_rows, b.rows), b.splits)](
        x, x_scales, weight.codes, weight.scales, weight.some_zeros, some_bias, out, partials, num_tokens, num_rows, x.stride(0),
        K=weight.num_columns, GROUP=weight.group, KIND=weight.kind, BLOCK_T=max(16, triton.next_power_of_2(num_tokens)), BLOCK_N=b.rows,
        BLOCK_K=b.depth, SPLITS=b.splits, num_warps=b.warps, num_stages=b.stages, **flags,
    )  # fmt: skip
    if b.splits > 1:
        grid = (triton.cdiv(out.numel(), 1024),)
        _join[grid](partials, some_bias, out, out.numel(), num_rows, SPLITS=b.splits, BLOCK=1024, num_warps=4, **flags)
    return out


def multiplies_fp8(device: torch.device) -> bool:
    return device.type != "cuda" or capability(device) >= (8, 9)


def default_tiles(weight: Codes, num_tokens: int, *, alone: bool) -> Tiles:
    """What was fastest on an H200 for the layers of an 8B model. `alone`: for the kernel of one token."""
    if alone:
        depth = next(size for size in (4096, 2048, 1024, 512, 256, SEGMENT) if weight.num_columns % size == 0)
        if weight.kind == 2:
            return Tiles(8, depth, 8, 1) if depth == 4096 else Tiles(2, depth, 4, 1)
        return Tiles(2, depth, 2, 1) if depth == 4096 else Tiles(4, depth, 8, 1)
    is_tall = len(weight.codes) > 8192
    splits = 1 if is_tall else next(count for count in (4, 2, 1) if weight.num_columns % (count * SEGMENT) == 0)
    if weight.kind == 2:
        return Tiles(128 if is_tall else 64, SEGMENT, 4, 3, splits)
    return Tiles(64 if num_tokens <= 64 else 128, min(weight.group, SEGMENT), 4, 4, splits)


@triton.jit
def _widened(codes):
    """e4m3 codes (as uint8) as float32, 2^-120 of their value: its bits lie the same way, with another bias of the exponent."""
    bits = codes.to(tl.int32)
    return (((bits & 0x80) << 24) | ((bits & 0x7F) << 20)).to(tl.float32, bitcast=True)


@triton.jit
def _code(words, NTH: tl.constexpr):
    """Code NTH of every word as 1 + code / 16, in float32: the code becomes the first bits of the fraction."""
    bits = words << (19 - 4 * NTH) if NTH <= 4 else words >> (4 * NTH - 19)
    return ((bits & 0x780000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _less_zero(words, zero, NTH: tl.constexpr, dtype: tl.constexpr):
    """Code NTH of every word less `zero`, exactly: a code becomes the last bits of 128 (bfloat16) or 1024 (float16) + code."""
    ONE: tl.constexpr = 128 if dtype == tl.bfloat16 else 1024
    BITS: tl.constexpr = 0x4300 if dtype == tl.bfloat16 else 0x6400
    above = ((words >> (4 * NTH)) & 15 | BITS).to(tl.int16).to(dtype, bitcast=True)
    return above - (zero + ONE).to(dtype)


@triton.jit(do_not_specialize=["num_tokens"])
def _few_tokens(
    x, x_scales, codes, scales, zeros, bias, out, partials, num_tokens, num_rows, x_stride,
    K: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (n, s) sums share s of the inputs; with several shares `_join` adds them."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.arange(0, BLOCK_T)
    inside = n < num_rows
    row = tl.where(inside, n, 0).to(tl.int64)
    is_token = (t < num_tokens)[None, :]
    x_rows = x + t[None, :].to(tl.int64) * x_stride
    GROUPS: tl.constexpr = K // GROUP
    CODES: tl.constexpr = min(GROUP, 128) // 16  # of a word, that have one scale
    if PDL:
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    first = tl.program_id(1) * (K // SPLITS)
    for step in range(0, K // SPLITS, BLOCK_K):
        begin = first + step
        if KIND == 2:
            j = tl.arange(0, 16)
            words = tl.load(codes + row[:, None] * (K // 8) + begin // 8 + j[None, :], eviction_policy="evict_first")
            for first_code in tl.static_range(0, 8, CODES):
                group = row * GROUPS + (begin + first_code * 16) // GROUP
                scale, zero = tl.load(scales + group).to(tl.float32), tl.load(zeros + group)
                part = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
                for i in tl.static_range(first_code, first_code + CODES):
                    here = tl.load(x_rows + begin + i * 16 + j[:, None], mask=is_token, other=0.0)
                    part = tl.dot(_less_zero(words, zero[:, None], i, x.dtype.element_ty), here, part)
                acc += part * scale[:, None]
        else:
            k = tl.arange(0, BLOCK_K)
            w = tl.load(codes + row[:, None] * K + begin + k[None, :], eviction_policy="evict_first")
            here = tl.load(x_rows + begin + k[:, None], mask=is_token, other=0.0)
            group = row * GROUPS + begin // GROUP
            if KIND == 1:
                w = w.to(tl.int16) - tl.load(zeros + group)[:, None]
            if GROUP < K:
                acc += tl.dot(w.to(here.dtype), here) * tl.load(scales + group).to(tl.float32)[:, None]
            else:
                acc = tl.dot(w.to(here.dtype), here, acc)
    if PDL:
        gdc_launch_dependents()  # not before: programs that wait would take the place of some that read
    if KIND != 2 and GROUP == K:
        acc *= tl.load(scales + row).to(tl.float32)[:, None]
    if x.dtype.element_ty.primitive_bitwidth == 8:
        acc *= tl.load(x_scales + t, mask=t < num_tokens, other=0.0)[None, :]
    place = t[None, :].to(tl.int64) * num_rows + n[:, None]
    valid = inside[:, None] & is_token
    if SPLITS > 1:
        tl.store(partials + tl.program_id(1) * num_tokens.to(tl.int64) * num_rows + place, acc, mask=valid)
    else:
        if HAS_BIAS:
            acc += tl.load(bias + row)[:, None].to(tl.float32)
        if ADD:
            acc += tl.load(out + place, mask=valid, other=0.0).to(tl.float32)
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["size"])
def _join(
    partials, bias, out, size, num_rows,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros([BLOCK], tl.float32)
    for s in tl.static_range(SPLITS):
        total += tl.load(partials + s * size.to(tl.int64) + at, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + at % num_rows, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        total += tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _one_token(
    x, codes, scales, zeros, bias, out, num_rows,
    K: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Runs of 128 inputs, each summed and then scaled. The first codes are asked for before the kernel before this one has ended, since
    weights depend on nobody."""
    RUNS: tl.constexpr = BLOCK_K // 128
    WIDTH: tl.constexpr = 16 if KIND == 2 else 128  # words or bytes of a run
    GROUPS: tl.constexpr = K // GROUP
    CODES: tl.constexpr = min(GROUP, 128) // 16  # of a word, that have one scale
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    s, j = tl.arange(0, RUNS), tl.arange(0, WIDTH)
    inside = n < num_rows
    row = tl.where(inside, n, 0).to(tl.int64)
    at = codes + row[:, None, None] * (K // 128 * WIDTH) + s[None, :, None] * WIDTH + j[None, None, :]
    ahead = tl.load(at, eviction_policy="evict_first")
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_N, RUNS], tl.float32)
    inputs = x + s[:, None] * 128 + j[None, :]
    for begin in range(0, K, BLOCK_K):
        w, next_at = ahead, at + tl.minimum(begin + BLOCK_K, K - BLOCK_K) // 128 * WIDTH
        ahead = tl.load(next_at, eviction_policy="evict_first", mask=begin + BLOCK_K < K, other=0)
        group = row[:, None] * GROUPS + ((begin + s * 128) // GROUP)[None, :]
        if KIND == 2:
            for first_code in tl.static_range(0, 8, CODES):
                own = group + first_code * 16 // GROUP
                scale, zero = tl.load(scales + own).to(tl.float32), tl.load(zeros + own).to(tl.float32)
                part, whole = tl.zeros([BLOCK_N, RUNS, WIDTH], tl.float32), tl.zeros([1, RUNS, WIDTH], tl.float32)
                for i in tl.static_range(first_code, first_code + CODES):
                    here = tl.load(inputs + begin + i * 16).to(tl.float32)[None, :, :]
                    part += _code(w, i) * here
                    whole += here
                acc += (16.0 * tl.sum(part, 2) - (16.0 + zero) * tl.sum(whole, 2)) * scale
        else:
            here = tl.load(inputs + begin).to(tl.float32)[None, :, :]
            if KIND == 0:
                part = tl.sum(_widened(w) * here, 2)
            else:
                part = tl.sum((w.to(tl.float32) - tl.load(zeros + group).to(tl.float32)[:, :, None]) * here, 2)
            if GROUP < K:
                part *= tl.load(scales + group).to(tl.float32)
            acc += part
    total = tl.sum(acc, 1)
    if KIND == 0:
        total *= 1.329227995784916e36  # 2^120
    if GROUP == K and KIND != 2:
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
        word = tl.load(codes + row * (K // 8) + k // 128 * 16 + k % 16, mask=inside, other=0)
        value = ((word >> (k % 128 // 16 * 4)) & 15).to(tl.float32)
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
