"""Which kernel multiplies tokens with a linear layer's matrix on a GPU, by how the matrix is kept and how many tokens there are."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ramet.errors import Unsupported
from ramet.runtime.kernels.gpu.fixed_linear import fixed_linear
from ramet.runtime.kernels.gpu.quantized_linear import Codes, covers, dequantise, few_tokens_linear, fp8_linear, multiplies_fp8
from ramet.runtime.kernels.gpu.skinny_linear import MAX_TOKENS as FEW
from ramet.runtime.kernels.gpu.skinny_linear import fits, skinny_linear
from ramet.runtime.layers.linear import Linear
from ramet.runtime.layers.quantized_weight import QuantizedWeight


def product(linear: Linear, x: torch.Tensor) -> torch.Tensor:
    """x Wᵀ + b as it is on this rank, for any number of tokens."""
    if linear.quantized is not None:
        return quantized_product(linear.quantized, x, linear.bias)
    if x.shape[0] and fits(linear.weight, x.shape[0]):
        return skinny_linear(x, linear.weight, bias=linear.bias)
    return F.linear(x, linear.weight, linear.bias)


def is_skinny(linear: Linear, num_tokens: int, dtype: torch.dtype) -> bool:
    """Whether `skinny_product` computes it."""
    if linear.quantized is None:
        return fits(linear.weight, num_tokens)
    return num_tokens <= FEW and covers(codes_of(linear.quantized), dtype)


def skinny_product(linear: Linear, x: torch.Tensor, *, add_to: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + b of a few tokens; `add_to` is updated in place and returned."""
    if linear.quantized is None:
        return skinny_linear(x, linear.weight, bias=linear.bias, add_to=add_to)
    weight = linear.quantized
    return few_tokens_linear(weight.ordered(x), codes_of(weight), bias=linear.bias, add_to=add_to)


def check_alike(linear: Linear) -> None:
    """Raises `Unsupported` where `fixed_linear` does not compute this product, or a token's numbers depend on the tile it is in."""
    if linear.quantized is not None:
        message = "enable_deterministic_inference: products with weights in few bits are cut by the batch; use --quantization none"
        raise Unsupported(message, param="enable_deterministic_inference")
    device, dtype, depth = linear.weight.device, linear.weight.dtype, linear.weight.shape[1]
    generator = torch.Generator(device).manual_seed(1)
    x, weight = (torch.randn(rows, depth, device=device, generator=generator).to(dtype) for rows in (300, 256))
    alone, few, many = fixed_linear(x[7:8], weight), fixed_linear(x[:40], weight), fixed_linear(x, weight)
    if not (torch.equal(alone, few[7:8]) and torch.equal(few, many[:40])):
        message = (
            f"{torch.cuda.get_device_name(device)} rounds products by the size of the batch; deterministic inference cannot be had here"
        )
        raise Unsupported(message, param="enable_deterministic_inference")


def quantized_product(weight: QuantizedWeight, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """See `kernels/gpu/quantized_linear.py`; shapes and types that its kernels do not cover go through the whole matrix in torch."""
    codes, num_tokens = codes_of(weight), x.shape[0]
    if not num_tokens or not covers(codes, x.dtype):
        return weight.linear(x, bias)
    x = weight.ordered(x)
    if num_tokens <= codes.max_tokens:
        return few_tokens_linear(x, codes, bias=bias)
    if codes.is_rowwise_fp8 and len(codes.codes) % 16 == 0 and multiplies_fp8(x.device):  # as the library wants it
        out = fp8_linear(x, codes)
        return out if bias is None else out.add_(bias)
    return F.linear(x, dequantise(codes, x.dtype), bias)


def codes_of(weight: QuantizedWeight) -> Codes:
    return Codes(weight.codes, weight.scales, weight.zeros, weight.num_columns)
