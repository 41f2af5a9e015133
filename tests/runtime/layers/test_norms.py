"""Norms against torch's own in float64, on every type that models run in."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ramet.runtime.layers.rms_norm import HeadNorm, RMSNorm, rms_norm

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_rms_norm(dtype: torch.dtype, offset: float, scale: float) -> None:
    norm = RMSNorm(48, 1e-6, offset=offset, dtype=dtype, device=CPU)
    stored = torch.randn(48, generator=torch.Generator().manual_seed(0)).to(dtype)
    norm.slots()["weight"].fill(stored)
    x = (scale * torch.randn(5, 48, generator=torch.Generator().manual_seed(1))).to(dtype)
    wanted = F.rms_norm(x.double(), (48,), stored.double() + offset, 1e-6)
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x).double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_fast_norm_equals_its_twin_on_strided_input() -> None:
    x, weight = torch.randn(7, 6, 20)[:, :4], torch.randn(4, 20)
    torch.testing.assert_close(rms_norm(x, weight, torch.tensor(1e-5)), rms_norm(x, weight, 1e-5))
    torch.testing.assert_close(rms_norm(x, weight[0], torch.tensor(1e-5)), rms_norm(x, weight[0], 1e-5))


def test_heads_are_normed_by_themselves() -> None:
    norm = HeadNorm(3, 2, 8, 1e-6, offset=0.0, dtype=torch.float32, device=CPU)
    query_weight, key_weight = torch.randn(8), torch.randn(8)
    norm.slots()["q_norm.weight"].fill(query_weight)
    norm.slots()["k_norm.weight"].fill(key_weight)
    heads = torch.randn(4, 5, 8)
    found = norm(heads)
    torch.testing.assert_close(found[:, :3], F.rms_norm(heads[:, :3], (8,), query_weight, 1e-6))
    torch.testing.assert_close(found[:, 3:], F.rms_norm(heads[:, 3:], (8,), key_weight, 1e-6))
