"""Prompts through FlashInfer against our own kernels: chunks, cached prefixes, decode rows beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ramet.runtime.attention.flashinfer_prefill import FlashInferPrefill, PrefillShape, covers, is_compiled
from ramet.runtime.model_spec import LayerSpec, RopeSpec
from tests.gpu.test_triton_step import DEVICE, PLAIN, make_batch, make_model, make_pool

SHAPE = PrefillShape(8, 2, 128, 128**-0.5, torch.bfloat16)
SPEC = replace(PLAIN, head_dim=128, attention_scale=SHAPE.scale, layers=(LayerSpec(RopeSpec(10000.0, 128)),) * 2)
CHUNKS = ((1, 1, 5, 130, 1, 70, 900), (700, 33, 5, 300, 650, 1500, 900))
FEW = ((1, 1, 3), (10, 20, 40))
TURNS = (CHUNKS, ((200, 64), (200, 1000)), FEW, ((1,) * 3, (5, 6, 7)), CHUNKS)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not covers(SHAPE, DEVICE) or not is_compiled(SHAPE), reason="needs flashinfer, compiled for this shape"),
]


@pytest.mark.parametrize("page_size", [1, 16])
def test_flashinfer_equals_our_own_kernels_step_after_step(page_size: int) -> None:
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    model = make_model(SPEC, torch.bfloat16)
    both = [
        TritonAttention(num_heads=8, num_kv_heads=2, device=DEVICE, prefill=prefill) for prefill in (None, FlashInferPrefill(SHAPE, DEVICE))
    ]
    pools = [make_pool(SPEC, torch.bfloat16, page_size) for _ in both]
    with torch.inference_mode():
        for lens in TURNS:
            batch = make_batch(SPEC, lens, page_size, ())
            own, theirs = (FusedStep(model, attention) for attention in both)
            for attention, pool in zip(both, pools, strict=True):
                attention.prepare(batch, pool)
            expected, given = own.forward(batch), theirs.forward(batch)
            assert torch.isfinite(given).all()
            assert (given - expected).norm() / expected.norm() < 2e-2
