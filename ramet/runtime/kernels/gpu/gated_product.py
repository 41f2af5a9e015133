"""Both products of a gated MLP and what stands between them, in one kernel (`gated_product.cu`): for Hopper, and many tokens.

cuBLAS writes [T, 2 I] numbers, which are read again at once to become [T, I]. This kernel multiplies as fast, and leaves that out.
It is CUDA because Triton cannot let two processors share what they load. NVRTC, which torch brings along, compiles it in a second or two,
once per machine: no compiler has to be installed. Torch: act(x Gᵀ) * (x Uᵀ), all of it in float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from ramet.log import get_logger
from ramet.runtime.kernels.gpu.cuda_source import CudaKernel, TensorMap, compile_in_background
from ramet.runtime.kernels.gpu.launch import capability

_LOG = get_logger(__name__)

_ARCHITECTURE = (9, 0)
_ELEMENTS = {torch.bfloat16: "bf16", torch.float16: "f16"}
_ACTIVATIONS = {
    "silu": "((x) * sigmoid(x))",
    "gelu": "(0.5f * (x) * (1.0f + erff((x) * 0.70710678f)))",
    "gelu_tanh": "((x) * sigmoid(1.59576912f * ((x) + 0.044715f * (x) * (x) * (x))))",
}
_WIDTHS = (128, 112)
"""Columns of a tile."""
_TOKENS, _DEPTH, _STAGES, _CLUSTER, _THREADS = 128, 64, 4, 2, 384
_LEAST_USE = 0.92
"""How much of the tiles must be of use. On an H200 a round of tiles of 112 columns and 4,096 inputs takes 47 µs, and cuBLAS with the
activation behind it 0.39 µs per token of an 8B model where its own tiles fit well."""


def prepare(device: torch.device, dtype: torch.dtype, activation: str) -> None:
    """Begin to compile, where it will be of use. Returns at once."""
    if _is_covered(device, dtype):
        for width in _WIDTHS:
            _compiled(dtype, activation, width)


def gains(weight: torch.Tensor, num_tokens: int, activation: str) -> bool:
    """Whether `gated_product` computes it here, faster than cuBLAS and a kernel for the activation."""
    rows, depth = weight.shape
    fits = rows % 16 == 0 and depth % _DEPTH == 0 and weight.is_contiguous() and weight.data_ptr() % 16 == 0
    if not (fits and _is_covered(weight.device, weight.dtype)):
        return False
    width, use = _best_width(num_tokens, rows // 2, _num_clusters(weight.device))
    return use >= _LEAST_USE and _kernel(weight.device, weight.dtype, activation, width) is not None


def gated_product(x: torch.Tensor, weight: torch.Tensor, activation: str) -> torch.Tensor:
    """x [T, K] and weight [2 I, K], gates before what they gate: [T, I] in the type of both."""
    out = torch.empty(len(x), len(weight) // 2, dtype=x.dtype, device=x.device)
    width, _ = _best_width(len(out), out.shape[1], _num_clusters(x.device))
    launch(x, weight, activation, width, out)
    return out


def launch(x: torch.Tensor, weight: torch.Tensor, activation: str, width: int, out: torch.Tensor) -> None:
    """With tiles of `width` columns, 112 or 128, into `out` [T, I]."""
    (num_tokens, depth), inner = x.shape, out.shape[1]
    clusters = min(_num_clusters(x.device), _num_tiles(num_tokens, inner, width))
    maps = (
        TensorMap.of(x, (_TOKENS, _DEPTH), swizzled=True),
        TensorMap.of(weight, (width, _DEPTH), swizzled=True),
        TensorMap.of(out, (_TOKENS // 2, width // 2), swizzled=width == 128),
    )
    kernel = _kernel(x.device, x.dtype, activation, width)
    if kernel is None:
        raise RuntimeError("gated_product was called where it cannot be had; ask `gains` first")
    kernel.launch(clusters * _CLUSTER, _THREADS, *maps, num_tokens, inner, depth)


def _best_width(num_tokens: int, inner: int, num_clusters: int) -> tuple[int, float]:
    """Columns of a tile, and the share of the tiles' places that are of use: all clusters take equally many."""
    uses = {}
    for width in _WIDTHS:
        rounds = -(-_num_tiles(num_tokens, inner, width) // num_clusters)
        uses[width] = num_tokens * inner / max(rounds * num_clusters * _CLUSTER * _TOKENS * width, 1)
    best = max(uses, key=lambda width: uses[width])
    return best, uses[best]


def _num_tiles(num_tokens: int, inner: int, width: int) -> int:
    return -(-num_tokens // (_CLUSTER * _TOKENS)) * -(-inner // width)


@lru_cache(maxsize=8)
def _num_clusters(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) // _CLUSTER


def _is_covered(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype in _ELEMENTS and device.type == "cuda" and capability(device) == _ARCHITECTURE


@lru_cache(maxsize=16)
def _kernel(device: torch.device, dtype: torch.dtype, activation: str, width: int) -> CudaKernel | None:
    """None, and a warning, where it cannot be made."""
    shared_bytes = _STAGES * (_TOKENS + 2 * width) * _DEPTH * 2 + _TOKENS * width * 2 + 1024 + 64
    try:
        return CudaKernel(_compiled(dtype, activation, width).result(), "gated_product", shared_bytes, device)
    except (ImportError, OSError, RuntimeError) as error:
        _LOG.warning("The kernel of gated products could not be made; cuBLAS does its work. %s", error)
        return None


@lru_cache(maxsize=16)
def _compiled(dtype: torch.dtype, activation: str, width: int) -> Any:
    definitions = {"ELEMENT": f'"{_ELEMENTS[dtype]}"', "ACTIVATE(x)": _ACTIVATIONS[activation], "COLUMNS": str(width)}
    return compile_in_background("gated_product.cu", definitions, "sm_90a")
