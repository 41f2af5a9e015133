"""Keys and values in 8 bits: our kernels against the torch reference on the same pool, in every kind of step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ramet.runtime.attention.attention_backend import KVPool, SharedPrefix
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.model_spec import ModelSpec
from tests.gpu.test_triton_step import DECODE, DEVICE, GEMMA_LIKE, MIXED, ODD, PLAIN, POOL_TOKENS, make_batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def make_pool(spec: ModelSpec, dtype: torch.dtype, page_size: int) -> KVPool:
    torch.manual_seed(1)
    size = (POOL_TOKENS, spec.num_kv_heads, spec.head_dim)
    return KVPool(*((torch.randn(size, device=DEVICE).to(dtype),) for _ in range(2)), page_size)


@pytest.mark.parametrize("lens", [MIXED, DECODE], ids=["mixed", "decode"])
@pytest.mark.parametrize("spec", [PLAIN, GEMMA_LIKE, ODD], ids=["plain", "gemma", "odd"])
@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_kernels_equal_the_reference(spec: ModelSpec, lens: tuple[tuple[int, ...], tuple[int, ...]], kv_dtype: torch.dtype) -> None:
    from ramet.runtime.attention.triton_backend import TritonAttention

    batch = make_batch(spec, lens, 4, (SharedPrefix((0, 4), 0, 512),))
    shape = (sum(lens[0]), spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
    fused = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
    fused[0, -1] = 1e6  # more than 8 bits hold
    query, key, value = fused.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
    pools = [make_pool(spec, kv_dtype, 4) for _ in range(2)]
    ours = TritonAttention(num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, device=DEVICE)
    results = []
    for attention, pool in zip((TorchAttention(), ours), pools, strict=True):
        attention.prepare(batch, pool)
        results.append(attention.forward(query, key, value, 0, spec.attention_scale, 40, spec.attention_softcap).float())
    for expected, found in zip((pools[0].keys[0], pools[0].values[0]), (pools[1].keys[0], pools[1].values[0]), strict=True):
        assert torch.equal(expected.view(torch.uint8), found.view(torch.uint8))
    assert torch.isfinite(results[1]).all()
    assert (results[1] - results[0]).norm() / results[0].norm() < 1e-2


def test_an_fp8_pool_costs_little_accuracy() -> None:
    from ramet.runtime.attention.triton_backend import TritonAttention

    spec = replace(PLAIN, num_kv_heads=2)
    batch = make_batch(spec, DECODE, 1, ())
    wide = make_pool(spec, torch.bfloat16, 1)
    narrow = KVPool(tuple(k.to(torch.float8_e4m3fn) for k in wide.keys), tuple(v.to(torch.float8_e4m3fn) for v in wide.values), 1)
    heads = torch.randn(6, spec.num_heads + 4, spec.head_dim, device=DEVICE, dtype=torch.bfloat16)
    results = []
    for pool in (wide, narrow):
        attention = TritonAttention(num_heads=spec.num_heads, num_kv_heads=2, device=DEVICE)
        attention.prepare(batch, pool)
        results.append(attention.forward(*heads.split([spec.num_heads, 2, 2], dim=1), 0, spec.attention_scale).float())
    assert 0 < (results[1] - results[0]).norm() / results[0].norm() < 0.06
