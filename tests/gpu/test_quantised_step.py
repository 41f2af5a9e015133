"""Weights of 8 and 4 bits on a CUDA device: every kernel against the numbers that the codes stand for, and the step over them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.weights import load_model
from ramet.runtime.layers.linear import Linear
from ramet.runtime.layers.quantized_weight import QuantizedWeight, WeightScheme, quantise
from ramet.runtime.models.transformer import Transformer
from tests.gpu.test_triton_step import DECODE, DEVICE, MIXED, PLAIN, make_batch, make_pool
from tests.runtime.executor.packed_models import CASES, files_of, write

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SCHEMES = [("fp8", None), ("fp8", 128), ("int8", None), ("int8", 128), ("int4", 128), ("int4", 32), ("int4", None)]


def storage(kind: Any, group: int | None) -> WeightScheme:
    return WeightScheme(kind, group, torch.float32 if kind == "fp8" else torch.float16)


@pytest.mark.parametrize(("kind", "group"), SCHEMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products(kind: Any, group: int | None, dtype: torch.dtype) -> None:
    from ramet.runtime.kernels.gpu.quantized_linear import dequantise, few_tokens_linear
    from ramet.runtime.models.matrix_products import codes_of, quantized_product

    torch.manual_seed(0)
    weight = QuantizedWeight(500, 1024, storage(kind, group), DEVICE)
    weight.store(0, quantise(torch.randn(500, 1024, device=DEVICE) / 32, weight.scheme))
    exact = weight.dequantise(torch.float32)
    assert torch.equal(dequantise(codes_of(weight), torch.float32), exact)
    for num_tokens in (1, 2, 16, 60, 128, 200):
        x, bias = torch.randn(num_tokens, 1024, device=DEVICE).to(dtype), torch.randn(500, device=DEVICE).to(dtype)
        product, tolerance = F.linear(x.float(), exact), 0.04 if kind == "fp8" and group is None else 1e-2
        found = {"product": (quantized_product(weight, x, bias), product + bias.float())}
        if num_tokens <= 128:
            base = torch.randn(num_tokens, 500, device=DEVICE).to(dtype)
            found["sum"] = few_tokens_linear(x, codes_of(weight), add_to=base.clone()), base.float() + product
        for name, (given, expected) in found.items():
            error = (given.float() - expected).norm() / expected.norm()
            assert error < tolerance, f"{name} of {num_tokens} tokens: {error:.1e}"


def test_rounding_of_activations() -> None:
    from ramet.runtime.kernels.gpu.quantized_linear import quantise_rows

    x = torch.randn(7, 1500, device=DEVICE).bfloat16() * torch.logspace(-6, 6, 7, device=DEVICE)[:, None].bfloat16()
    codes, scales = quantise_rows(x)
    expected = (x.float().abs().amax(-1, keepdim=True) / 448).clamp(min=1e-30)
    torch.testing.assert_close(scales, expected)
    assert torch.equal(codes.view(torch.uint8), (x.float() / scales).to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize(("kind", "group"), [("fp8", None), ("int8", None), ("int4", 128)])
@pytest.mark.parametrize("lens", [MIXED, DECODE], ids=["mixed", "decode"])
def test_fused_step_equals_transformer(kind: Any, group: int | None, lens: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """The torch model with the same codes, product by product through whole matrices."""
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    spec = replace(PLAIN, qkv_bias=True)
    model = Transformer(spec, dtype=torch.bfloat16, device=DEVICE, storage=lambda name, _: storage(kind, group)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for slot in model.slots().values():
            slot.fill(torch.randn(slot.shape) * 0.06 + float(len(slot.shape) == 1))
    assert all(module.quantized is not None for module in model.modules() if isinstance(module, Linear))
    batch = make_batch(spec, lens, 4, ())
    attention = TritonAttention(num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, device=DEVICE)
    with torch.inference_mode():
        attention.prepare(batch, make_pool(spec, torch.bfloat16, 4))
        expected = model(batch, attention)
        attention.prepare(batch, make_pool(spec, torch.bfloat16, 4))
        found = FusedStep(model, attention).forward(batch)
    assert (found - expected).norm() / expected.norm() < (0.08 if kind == "fp8" else 3e-2)


@pytest.mark.parametrize("case", ["awq", "gptq 8", "gptq 4, sorted inputs", "compressed fp8", "fp8, blocks"])
def test_checkpoints_on_the_device(case: str, tmp_path: Path) -> None:
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    write(tmp_path, *CASES[case])
    logits = []
    for quantization in (None, "none"):
        loaded = load_model(ModelConfig(quantization=quantization), device=DEVICE, dtype=torch.bfloat16, files=files_of(tmp_path))
        spec = loaded.spec
        assert any(isinstance(module, QuantizedWeight) for module in loaded.model.modules()) == (quantization is None)
        attention = TritonAttention(num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, device=DEVICE)
        batch = make_batch(spec, ((30, 1, 1), (30, 50, 7)), 1, ())
        with torch.inference_mode():
            attention.prepare(batch, make_pool(spec, torch.bfloat16, 1))
            logits.append(FusedStep(loaded.model, attention).forward(batch))
    assert (logits[0] - logits[1]).norm() / logits[1].norm() < 0.06
