"""Experts on a CUDA device: routing and products against their torch, the fused step against the plain one, and both in a graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ramet.errors import Unsupported
from ramet.runtime.layers.experts import Experts, choose_experts
from ramet.runtime.model_spec import ExpertSpec, LayerSpec, ModelSpec
from ramet.runtime.models.transformer import Transformer
from tests.gpu.test_triton_step import DECODE, DEVICE, MIXED, PLAIN, PROMPTS, make_batch, make_model, make_pool

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MANY = ExpertSpec(count=60, per_token=4, intermediate_size=96, renormalise=True)
FEW = ExpertSpec(count=4, per_token=2, intermediate_size=352, renormalise=False, shared_size=128)
LAYERS = (LayerSpec(PLAIN.layers[0].rope, sparse=True), LayerSpec(PLAIN.layers[0].rope), LayerSpec(PLAIN.layers[0].rope, sparse=True))


def spec_of(experts: ExpertSpec) -> ModelSpec:
    return replace(PLAIN, experts=experts, layers=LAYERS)


@pytest.mark.parametrize("num_tokens", [1, 5, 700])
@pytest.mark.parametrize("experts", [MANY, FEW])
def test_routing(experts: ExpertSpec, num_tokens: int) -> None:
    from ramet.runtime.kernels.gpu.expert_routing import pairs_by_expert, route

    logits = torch.randn(num_tokens, experts.count, device=DEVICE)
    weights, chosen = route(logits, experts.per_token, renormalise=experts.renormalise)
    wanted_weights, wanted = choose_experts(logits, experts)
    assert torch.equal(chosen.long(), wanted)
    torch.testing.assert_close(weights, wanted_weights)
    order, ends = pairs_by_expert(chosen, experts.count)
    values, indices = chosen.flatten().sort(stable=True)
    assert torch.equal(order.long(), indices)
    every = torch.arange(experts.count, device=DEVICE, dtype=torch.int32)
    assert torch.equal(ends.long(), torch.searchsorted(values, every, right=True))


def test_of_equally_likely_experts_each_is_chosen_once() -> None:
    from ramet.runtime.kernels.gpu.expert_routing import route

    weights, chosen = route(torch.zeros(3, 60, device=DEVICE), 4, renormalise=False)
    assert chosen.tolist() == [[0, 1, 2, 3]] * 3
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 60))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 3, 60, 700, 3000])
@pytest.mark.parametrize("experts", [MANY, FEW])
def test_products(experts: ExpertSpec, num_tokens: int, dtype: torch.dtype) -> None:
    """Chosen at random, so that some experts get nothing, and one half of all tokens."""
    from ramet.runtime.kernels.gpu.expert_products import Pairs, expert_inner, expert_outputs
    from ramet.runtime.kernels.gpu.expert_routing import pairs_by_expert, route

    layer = make_model(spec_of(experts), dtype).layers[0].mlp
    assert isinstance(layer, Experts)
    x = torch.randn(num_tokens, PLAIN.hidden_size, device=DEVICE).to(dtype)
    logits = torch.randn(num_tokens, experts.count, device=DEVICE)
    logits[::2, 1] += 10
    weights, chosen = route(logits, experts.per_token, renormalise=experts.renormalise)
    pairs = Pairs(*pairs_by_expert(chosen, experts.count), weights)
    found = expert_outputs(expert_inner(x, layer.gate_up, pairs, "silu"), layer.down, pairs).float().sum(0)
    wanted = torch.zeros_like(found)
    for j in range(experts.per_token):
        for expert in range(experts.count):
            mine = chosen[:, j] == expert
            gate, up = (x[mine].float() @ layer.gate_up[expert].float().T).chunk(2, -1)
            y = (torch.nn.functional.silu(gate) * up) @ layer.down[expert].float().T
            wanted[mine] += y * weights[mine, j, None]
    assert (found - wanted).norm() / wanted.norm() < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("lens", [MIXED, DECODE, PROMPTS], ids=["mixed", "decode", "prompts"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("experts", [MANY, FEW])
def test_fused_step_equals_transformer(experts: ExpertSpec, dtype: torch.dtype, lens: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """In half precision a close choice of experts may fall another way, but few do."""
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    spec = spec_of(experts)
    model = make_model(spec, dtype)
    batch, attention = make_batch(spec, lens, 4, ()), TritonAttention(num_heads=8, num_kv_heads=2, device=DEVICE)
    with torch.inference_mode():
        attention.prepare(batch, make_pool(spec, dtype, 4))
        expected = model(batch, attention)
        attention.prepare(batch, make_pool(spec, dtype, 4))
        found = FusedStep(model, attention).forward(batch)
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.median() < (2e-3 if dtype == torch.float32 else 3e-2)
    assert errors.max() < (2e-3 if dtype == torch.float32 else 0.3)


def test_a_graph_follows_its_input() -> None:
    """Which experts get how many tokens is decided on the device, every time."""
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    model = make_model(spec_of(FEW), torch.bfloat16)
    step, layer = FusedStep(model, TritonAttention(num_heads=8, num_kv_heads=2, device=DEVICE)), model.layers[0]
    x = torch.randn(40, PLAIN.hidden_size, device=DEVICE).bfloat16()

    def run() -> torch.Tensor:
        return step._mlp(layer.mlp, x, None)

    with torch.inference_mode():
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        for _ in range(3):
            x.copy_(torch.randn(x.shape, device=DEVICE))
            graph.replay()
            assert torch.equal(out, run())


def test_deterministic_inference_is_refused() -> None:
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    model: Transformer = make_model(spec_of(MANY), torch.bfloat16)
    with pytest.raises(Unsupported, match="expert"):
        FusedStep(model, TritonAttention(num_heads=8, num_kv_heads=2, device=DEVICE, in_order=True), in_order=True)
