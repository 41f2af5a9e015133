"""What stands between the matrix products of a decoder layer, each in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import launch_options

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def add_rms_norm(hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`hidden += delta; return rms_norm(hidden) * weight` in float32 inside, both in the type of `hidden` [T, hidden]. `delta` is
    [T, hidden], or in parts [P, T, hidden] whose sum it is.

    Torch: hidden.add_(delta); F.rms_norm(hidden.float(), …, weight.float(), eps).to(hidden.dtype)
    """
    num_tokens, size = hidden.shape
    out = torch.empty_like(hidden)
    parts = 0 if delta is None else 1 if delta.dim() == 2 else delta.shape[0]
    _add_rms_norm[(num_tokens,)](
        hidden, hidden if delta is None else delta, weight, out, eps, num_tokens * size, SIZE=size, BLOCK=triton.next_power_of_2(size),
        PARTS=parts, num_warps=8 if size > 2048 else 4, **launch_options(hidden.device),
    )  # fmt: skip
    return out


@triton.jit
def _add_rms_norm(
    hidden, delta, weight, out, eps, part_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * SIZE
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(hidden + row + column, mask=inside, other=0.0)
    if PARTS:
        added = tl.load(delta + row + column, mask=inside, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            added += tl.load(delta + part * part_stride + row + column, mask=inside, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + added).to(x.dtype)
        tl.store(hidden + row + column, x, mask=inside)
    x = x.to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps) * w
    tl.store(out + row + column, y.to(out.dtype.element_ty), mask=inside)


def norm_heads(heads: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """Each head of [T, heads, D] by its own length and line of `weight` [heads, D], in place, in float32 inside. Heads lie side by side.

    Torch: heads.copy_(F.rms_norm(heads.float(), (D,), None, eps) * weight)
    """
    num_tokens, num_heads, head_dim = heads.shape
    block = 8
    _norm_heads[(num_tokens, triton.cdiv(num_heads, block))](
        heads, weight, eps, heads.stride(0), HEADS=num_heads, SIZE=head_dim, BLOCK_H=block, BLOCK=triton.next_power_of_2(head_dim),
        num_warps=4, **launch_options(heads.device),
    )  # fmt: skip


@triton.jit
def _norm_heads(
    heads, weight, eps, token_stride, HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < HEADS) & (column < SIZE)
    w = tl.load(weight + head * SIZE + column, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = heads + tl.program_id(0).to(tl.int64) * token_stride + head * SIZE + column
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 1) / SIZE + eps)[:, None] * w
    tl.store(place, y.to(heads.dtype.element_ty), mask=inside)


def gated_activation(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """[T, 2 I] → [T, I]: act(first half) · second half. Torch: act(gate) * up of `gate_up.chunk(2, -1)`."""
    num_tokens, width = gate_up.shape
    size = width // 2
    out = torch.empty(num_tokens, size, dtype=gate_up.dtype, device=gate_up.device)
    block = 1024
    _gated_activation[(num_tokens, triton.cdiv(size, block))](
        gate_up, out, SIZE=size, BLOCK=block, ACTIVATION=ACTIVATIONS[activation], num_warps=4, **launch_options(gate_up.device)
    )
    return out


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == 0:
        return x / (1.0 + tl.exp(-x))
    if ACTIVATION == 1:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x - x / (1.0 + tl.exp(2.0 * inner))


@triton.jit
def _gated_activation(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(gate_up + row * 2 * SIZE + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + column, (activate(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=inside)


def rotate_and_store(
    query_key: torch.Tensor,  # [T, H + KH, D], any token stride
    value: torch.Tensor,  # [T, KH, D], any token stride
    angles: tuple[torch.Tensor, torch.Tensor] | None,  # cos and sin [T, rotary_dim / 2] float32; None: no rotation
    kv_slots: torch.Tensor,  # [T] int64; negative: a token of padding, stored nowhere
    keys: torch.Tensor,  # [slots, KH, D]
    values: torch.Tensor,
    *,
    keep_keys: bool = False,
) -> torch.Tensor:  # [T, H, D]
    """Rotated queries; rotated keys and values go to their places in the pool. `keep_keys`: rotated keys also replace those in `query_key`.

    Torch: `layers.rotary.rotate` of query_key, then index_copy_ of keys and values.
    """
    num_tokens, num_rotated, head_dim = query_key.shape
    num_kv_heads = keys.shape[1]
    num_heads = num_rotated - num_kv_heads
    cos, sin = angles if angles is not None else (query_key, query_key)
    half = cos.shape[-1] if angles is not None else head_dim // 2
    rest = head_dim - 2 * half
    query = torch.empty(num_tokens, num_heads, head_dim, dtype=query_key.dtype, device=query_key.device)
    _rotate_and_store[(num_tokens, triton.cdiv(num_rotated + num_kv_heads, 16))](
        query_key, value, cos, sin, kv_slots, keys, values, query, query_key.stride(0), value.stride(0),
        HEADS=num_heads, KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), HALF=half,
        BLOCK_HALF=triton.next_power_of_2(half), BLOCK_REST=triton.next_power_of_2(rest) if rest else 0, ROTATE=angles is not None,
        KEEP=keep_keys and angles is not None, num_warps=4, **launch_options(query_key.device),
    )  # fmt: skip
    return query


@triton.jit(do_not_specialize_on_alignment=["kv_slots"])
def _rotate_and_store(
    query_key, value, cos, sin, kv_slots, keys, values, query, qk_stride, value_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, ROTATE: tl.constexpr, KEEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Sixteen heads of a token: both halves of what is turned, what is not, values."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * 16 + tl.arange(0, 16))[:, None]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.load(kv_slots + token)
    kv_head = head - HEADS
    is_query = head < HEADS
    is_rotated = head < HEADS + KV_HEADS
    is_key = (kv_head >= 0) & is_rotated
    source = query_key + token * qk_stride + head * HEAD_DIM
    to_query = query + (token * HEADS + head) * HEAD_DIM
    to_key = keys + (slot * KV_HEADS + kv_head) * HEAD_DIM
    d = tl.arange(0, BLOCK_HALF)[None, :]
    in_half = d < HALF
    low = tl.load(source + d, mask=is_rotated & in_half, other=0.0).to(tl.float32)
    high = tl.load(source + HALF + d, mask=is_rotated & in_half, other=0.0).to(tl.float32)
    if ROTATE:
        c = tl.load(cos + token * HALF + d, mask=in_half, other=1.0)
        s = tl.load(sin + token * HALF + d, mask=in_half, other=0.0)
        low, high = low * c - high * s, high * c + low * s
    tl.store(to_query + d, low.to(query.dtype.element_ty), mask=is_query & in_half)
    tl.store(to_query + HALF + d, high.to(query.dtype.element_ty), mask=is_query & in_half)
    tl.store(to_key + d, low.to(keys.dtype.element_ty), mask=is_key & in_half & (slot >= 0))
    tl.store(to_key + HALF + d, high.to(keys.dtype.element_ty), mask=is_key & in_half & (slot >= 0))
    if KEEP:
        tl.store(source + d, low.to(query.dtype.element_ty), mask=is_key & in_half)
        tl.store(source + HALF + d, high.to(query.dtype.element_ty), mask=is_key & in_half)
    if BLOCK_REST:
        rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        x = tl.load(source + rest, mask=is_rotated & (rest < HEAD_DIM), other=0.0)
        tl.store(to_query + rest, x, mask=is_query & (rest < HEAD_DIM))
        tl.store(to_key + rest, x.to(keys.dtype.element_ty), mask=is_key & (rest < HEAD_DIM) & (slot >= 0))
    v_head, of_value = kv_head - KV_HEADS, tl.arange(0, BLOCK_D)[None, :]
    is_value = (v_head >= 0) & (v_head < KV_HEADS) & (of_value < HEAD_DIM) & (slot >= 0)
    v = tl.load(value + token * value_stride + v_head * HEAD_DIM + of_value, mask=is_value, other=0.0)
    tl.store(values + (slot * KV_HEADS + v_head) * HEAD_DIM + of_value, v.to(values.dtype.element_ty), mask=is_value)
