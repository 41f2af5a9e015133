"""Linear layers of some tokens whose inputs are many and outputs few: cut along the inputs, so that all processors have work.

Every part leaves a sum of its own, and `elementwise.add_rms_norm`, which reads the result anyway, adds them up: no kernel for that, and
always in the same order. Torch: F.linear of x.chunk(parts, 1) with weight.chunk(parts, 1), stacked.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import launch_options
from ramet.runtime.kernels.gpu.skinny_linear import MAX_TOKENS as FEW

MAX_TOKENS = 64
"""Beyond, cuBLAS is as fast. 64 tokens, 8B model, µs: down 33 against 38, out 10.6 against 12.1, where the memory takes 27.5 and 7.9."""
PARTS = 2
_BLOCK_N, _BLOCK_K = 64, 128


def splits(weight: torch.Tensor, num_tokens: int) -> bool:
    """Whether the kernel is the one for this product."""
    rows, depth = weight.shape
    is_wide = rows > depth or rows % _BLOCK_N or depth % (PARTS * _BLOCK_K)
    return FEW < num_tokens <= MAX_TOKENS and weight.dtype in (torch.bfloat16, torch.float16) and not is_wide


def split_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[T, K] and [N, K] → [PARTS, T, N] float32, whose sum is x Wᵀ."""
    num_tokens, depth = x.shape
    num_rows = weight.shape[0]
    out = torch.empty(PARTS, num_tokens, num_rows, dtype=torch.float32, device=x.device)
    _split_linear[(num_rows // _BLOCK_N, PARTS)](
        x, weight, out, num_tokens, num_rows, x.stride(0), K=depth, PARTS=PARTS, BLOCK_T=32 if num_tokens <= 32 else 64,
        BLOCK_N=_BLOCK_N, BLOCK_K=_BLOCK_K, num_warps=4, num_stages=5, **launch_options(x.device),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_tokens"])
def _split_linear(
    x, weight, out, num_tokens, num_rows, x_stride, K: tl.constexpr, PARTS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    first = part * (K // PARTS)
    k, t = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_T)
    weight_at = weight + n.to(tl.int64)[:, None] * K + first + k[None, :]
    x_at = x + t[None, :].to(tl.int64) * x_stride + first + k[:, None]
    is_token = (t < num_tokens)[None, :]
    if PDL:
        gdc_launch_dependents()
        line = tl.arange(0, BLOCK_K // 64) * 64  # 128 bytes each; weights depend on nobody
        begin = weight + n.to(tl.int64)[:, None] * K + first + line[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [begin.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
        )
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for begin_k in range(0, K // PARTS, BLOCK_K):
        w = tl.load(weight_at + begin_k, eviction_policy="evict_first")
        acc = tl.dot(w, tl.load(x_at + begin_k, mask=is_token, other=0.0), acc)
    place = out + (part * num_tokens + t[None, :]).to(tl.int64) * num_rows + n[:, None]
    tl.store(place, acc, mask=is_token)
