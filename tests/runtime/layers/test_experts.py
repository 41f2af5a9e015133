"""The router's choice, and experts one by one against the sum over all of them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.layers.experts import Experts, choose_experts
from ramet.runtime.model_shard import divide
from ramet.runtime.model_spec import ExpertSpec, LayerSpec, ModelSpec, RopeSpec

CPU = torch.device("cpu")


def experts_of(count: int, per_token: int, *, renormalise: bool = True, shared_size: int = 0) -> ExpertSpec:
    return ExpertSpec(count=count, per_token=per_token, intermediate_size=12, renormalise=renormalise, shared_size=shared_size)


def layer_of(experts: ExpertSpec, dtype: torch.dtype = torch.float32) -> Experts:
    spec = ModelSpec(
        architecture="Test", vocab_size=32, hidden_size=16, intermediate_size=12, num_heads=2, num_kv_heads=2, head_dim=8,
        layers=(LayerSpec(RopeSpec(1e4, 8), sparse=True),), norm_eps=1e-5, activation="silu", context_len=64, attention_scale=1.0,
        tied_embeddings=True, experts=experts,
    )  # fmt: skip
    layer = Experts(divide(spec, 0, 1), dtype=dtype, device=CPU)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def all_of_them(layer: Experts, x: torch.Tensor) -> torch.Tensor:
    """Every expert for every token, weighed by nothing where it was not chosen."""
    probabilities, chosen = choose_experts(layer.router(x), layer.spec)
    weights = torch.zeros(len(x), layer.spec.count).scatter_(1, chosen, probabilities)
    gate, up = torch.einsum("th,eih->tei", x, layer.gate_up).chunk(2, -1)
    out = torch.einsum("tei,ehi,te->th", torch.nn.functional.silu(gate) * up, layer.down, weights)
    if layer.shared is not None and layer.shared_gate is not None:
        out += torch.sigmoid(layer.shared_gate(x)) * layer.shared(x)
    return out


@settings(deadline=None)
@given(st.data())
def test_the_likeliest_are_chosen_once_each(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    experts = experts_of(count, data.draw(st.integers(1, count)), renormalise=data.draw(st.booleans()))
    scale, seed = data.draw(st.sampled_from([0.0, 1.0, 50.0])), data.draw(st.integers(0, 1000))
    logits = scale * torch.randn(7, count, generator=torch.Generator().manual_seed(seed)).bfloat16()
    weights, chosen = choose_experts(logits, experts)
    assert weights.dtype == torch.float32
    assert all(len(set(row)) == experts.per_token for row in chosen.tolist())
    probabilities = logits.float().softmax(-1)
    least, others = probabilities.gather(1, chosen).amin(1), probabilities.scatter(1, chosen, 0.0).amax(1)
    assert bool((least >= others).all())
    expected = probabilities.gather(1, chosen)
    torch.testing.assert_close(weights, expected / expected.sum(1, keepdim=True) if experts.renormalise else expected)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 9), num_tokens=st.integers(0, 20), shared_size=st.sampled_from([0, 8]), data=st.data())
def test_one_by_one_is_the_sum_over_all(count: int, num_tokens: int, shared_size: int, data: st.DataObject) -> None:
    layer = layer_of(experts_of(count, data.draw(st.integers(1, count)), renormalise=data.draw(st.booleans()), shared_size=shared_size))
    x = torch.randn(num_tokens, 16, generator=torch.Generator().manual_seed(num_tokens))
    torch.testing.assert_close(layer(x), all_of_them(layer, x), atol=1e-5, rtol=1e-4)


def test_experts_that_nobody_chose_are_not_computed() -> None:
    layer = layer_of(experts_of(6, 2))
    x = torch.randn(1, 16)
    expected = layer(x)
    _, chosen = choose_experts(layer.router(x), layer.spec)
    unused = [expert for expert in range(6) if expert not in chosen[0]]
    layer.gate_up[unused] = torch.nan
    layer.down[unused] = torch.nan
    assert torch.equal(layer(x), expected)


def test_half_precision_adds_up_in_float32() -> None:
    layer = layer_of(experts_of(8, 8), torch.bfloat16)
    x = torch.randn(5, 16).bfloat16()
    exact = layer_of(experts_of(8, 8))
    for mine, other in zip(exact.parameters(), layer.parameters(), strict=True):
        mine.copy_(other)
    found, wanted = layer(x), exact(x.float())
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).norm() / wanted.norm() < 1e-2
