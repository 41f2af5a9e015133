"""Linear layers of a few tokens: every weight is read once, at the memory's speed. Torch: F.linear, and add_ for `add_to`.

Norms and activations stay kernels of their own: done here they would be done again by every program, which costs more than their launch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime import driver

from ramet.runtime.kernels.gpu.launch import launch_options

MAX_TOKENS = 16
_PROCESSORS = 132  # of an H100 or H200


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
    add_to: torch.Tensor | None = None,  # [T, N], updated in place and returned
    dtype: torch.dtype | None = None,  # of the result; default: of x
    out: torch.Tensor | None = None,  # where the result goes
    blocks: Blocks | None = None,
) -> torch.Tensor:
    num_tokens, depth = x.shape
    num_rows = weight.shape[0]
    if out is None:
        out = add_to if add_to is not None else torch.empty(num_tokens, num_rows, dtype=dtype or x.dtype, device=x.device)
    b = blocks or default_blocks(num_tokens, num_rows, depth, _shared_bytes(x.device))
    kernel = _one_token if num_tokens == 1 else _skinny_linear
    kernel[(triton.cdiv(num_rows, b.rows),)](
        x, weight, weight if bias is None else bias, out, num_tokens, num_rows, x.stride(0),
        K=depth, BLOCK_T=16, BLOCK_N=b.rows, BLOCK_K=b.depth, HAS_BIAS=bias is not None, ADD=add_to is not None,
        num_warps=b.warps, num_stages=b.stages, **launch_options(x.device),
    )  # fmt: skip
    return out


def fits(weight: torch.Tensor, num_tokens: int) -> bool:
    """Whether the kernel computes this product."""
    return num_tokens <= MAX_TOKENS and weight.dtype in (torch.bfloat16, torch.float16) and weight.shape[1] % 128 == 0


def default_blocks(num_tokens: int, num_rows: int, depth: int, shared: int) -> Blocks:
    """What was fastest on an H200 for the products of an 8B model (`benchmarks/gpu/few_tokens.py`): the fewer programs there are, the more
    of its weights each has on their way, as far as `shared` bytes allow."""
    if num_tokens == 1:
        return Blocks(4, 2048, 8, 1) if depth % 2048 == 0 else Blocks(2, 1024 if depth % 1024 == 0 else 128, 4, 1)
    rows, at_once = (32, 256) if num_rows <= 32 * _PROCESSORS and depth % 256 == 0 else (64, 128)
    most = shared // ((rows + 16) * at_once * 2)
    return Blocks(rows, at_once, 4, min(6 if num_rows <= 64 * _PROCESSORS else 4, most))


@lru_cache(maxsize=8)
def _shared_bytes(device: torch.device) -> int:
    """What one program may keep in the fast memory of its processor; the interpreter has no limit."""
    if device.type != "cuda":
        return 1 << 20
    return int(driver.active.utils.get_device_properties(device.index or 0)["max_shared_mem"])


@triton.jit(do_not_specialize=["num_tokens"])
def _skinny_linear(
    x, weight, bias, out, num_tokens, num_rows, x_stride,
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    t = tl.arange(0, BLOCK_T)
    inside = n < num_rows
    row = tl.where(inside, n, 0).to(tl.int64)
    weight_at = weight + row[:, None] * K + k[None, :]
    x_at = x + t[None, :].to(tl.int64) * x_stride + k[:, None]
    is_token = (t < num_tokens)[None, :]
    if PDL:
        gdc_launch_dependents()
        _prefetch(weight + row[:, None] * K, BLOCK_K)
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for begin in range(0, K, BLOCK_K):
        w = tl.load(weight_at + begin, eviction_policy="evict_first")
        acc = tl.dot(w, tl.load(x_at + begin, mask=is_token, other=0.0), acc)
    if HAS_BIAS:
        acc += tl.load(bias + row)[:, None].to(tl.float32)
    place = out + t[None, :].to(tl.int64) * num_rows + n[:, None]
    valid = inside[:, None] & is_token
    if ADD:
        acc += tl.load(place, mask=valid, other=0.0).to(tl.float32)
    tl.store(place, acc.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["num_tokens"])
def _one_token(
    x, weight, bias, out, num_tokens, num_rows, x_stride,
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The same for one token, without the matrix units. A tile of weights is on its way while the one before it is used; the first
    is asked for before the kernel before this one has ended, since weights depend on nobody."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = n < num_rows
    row = tl.where(inside, n, 0).to(tl.int64)
    weight_at = weight + row[:, None] * K + k[None, :]
    ahead = tl.load(weight_at, eviction_policy="evict_first")
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for begin in range(0, K, BLOCK_K):
        w, following = ahead, begin + BLOCK_K
        ahead = tl.load(weight_at + tl.minimum(following, K - BLOCK_K), eviction_policy="evict_first", mask=following < K, other=0.0)
        acc += w.to(tl.float32) * tl.load(x + begin + k).to(tl.float32)[None, :]
    total = tl.sum(acc, 1)
    if HAS_BIAS:
        total += tl.load(bias + row).to(tl.float32)
    if ADD:
        total += tl.load(out + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + n, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _prefetch(rows, BLOCK_K: tl.constexpr):
    """The first numbers of every row into the L2 cache, while the kernel before this one ends."""
    line = tl.arange(0, BLOCK_K // 64 * 4) * 64  # 128 bytes each
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(rows + line[None, :]).to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )
