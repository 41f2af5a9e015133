"""The kernel of gated products against torch in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from ramet.runtime.kernels.gpu.gated_product import gains, gated_product, launch

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
SHAPES = ((1, 128, 64), (129, 384, 64), (256, 56, 128), (300, 1160, 576), (512, 896, 4096), (2051, 648, 320), (1000, 14336, 4096))


def drawn(num_tokens: int, inner: int, depth: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(num_tokens, depth, device="cuda").to(dtype)
    return x, (2 * torch.randn(2 * inner, depth, device="cuda") / depth**0.5).to(dtype)


def in_float32(x: torch.Tensor, weight: torch.Tensor, activation: str) -> torch.Tensor:
    gate, up = (x.float() @ weight.float().t()).chunk(2, 1)
    return ACTIVATIONS[activation](gate) * up


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [112, 128])
def test_every_place_is_the_product(dtype: torch.dtype, activation: str, width: int) -> None:
    for num_tokens, inner, depth in SHAPES:
        x, weight = drawn(num_tokens, inner, depth, dtype)
        room = torch.full((2, num_tokens, inner), 7.0, dtype=dtype, device="cuda")
        launch(x, weight, activation, width, room[0])
        out, expected = room[0].float(), in_float32(x, weight, activation)
        assert torch.all(room[1] == 7.0)  # nothing behind the result is written
        assert (out - expected).abs().max() <= 2**-7 * expected.abs().max() and (out - expected).norm() <= 4e-3 * expected.norm()


def test_a_recorded_call_is_the_same() -> None:
    x, weight = drawn(512, 14336, 4096, torch.bfloat16)
    assert gains(weight, 512, "silu")
    expected, graph = gated_product(x, weight, "silu"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gated_product(x, weight, "silu")
    graph.replay()
    assert torch.equal(out, expected)


def test_it_is_left_to_cublas_where_tiles_would_be_empty() -> None:
    _, weight = drawn(1, 14336, 4096, torch.bfloat16)
    assert gains(weight, 8192, "silu") and gains(weight, 256, "silu")
    assert not gains(weight, 300, "silu") and not gains(weight, 129, "silu") and not gains(weight, 0, "silu")
    assert not gains(weight.float(), 8192, "silu")
