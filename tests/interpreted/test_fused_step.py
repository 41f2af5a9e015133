"""The GPU's step on a CPU, its kernels in Triton's interpreter: `make kernels`. Small shapes in float32, against the plain transformer.
What only a GPU has (half precision's matrix units, CUDA, graphs) is tested in `tests/gpu`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool, SharedPrefix
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor import computation, eagle_computation
from ramet.runtime.executor.eagle_runner import PairStep
from ramet.runtime.executor.inputs import SlotTables
from ramet.runtime.executor.step_runner import FastPath
from ramet.runtime.model_spec import ExpertSpec, LayerSpec, ModelSpec, RopeSpec
from ramet.runtime.models.feature_taps import FeatureTaps
from ramet.runtime.models.transformer import Transformer
from tests.e2e import test_eagle_speculation as eagle
from tests.runtime.models.tiny_heads import CONFIG, PlainHead, head_tensors, save_head
from tests.runtime.models.tiny_models import tiny_model

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter: make kernels"),
    pytest.mark.timeout(900),
]

CPU, POOL_TOKENS = torch.device("cpu"), 256
ROPE = LayerSpec(RopeSpec(10_000.0, 16))
PLAIN = ModelSpec(
    architecture="Test", vocab_size=128, hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=16,
    layers=(ROPE, replace(ROPE, window=20), LayerSpec(None)), norm_eps=1e-5, activation="silu", context_len=256, attention_scale=0.25,
    tied_embeddings=True,
)  # fmt: skip
EXPERTS = ExpertSpec(count=6, per_token=2, intermediate_size=32, renormalise=True)
SPARSE = (replace(ROPE, sparse=True), ROPE, replace(ROPE, sparse=True))
SPECS = {
    "plain": PLAIN,
    "gemma": replace(PLAIN, sandwich_norms=True, attention_softcap=20.0, logit_softcap=30.0, activation="gelu_tanh", qk_norm=True),
    "biases, one key head": replace(PLAIN, num_kv_heads=1, qkv_bias=True, output_bias=True, mlp_bias=True, tied_embeddings=False),
    "experts": replace(PLAIN, layers=SPARSE, qk_norm=True, experts=EXPERTS),
    "shared expert": replace(PLAIN, layers=SPARSE, experts=replace(EXPERTS, renormalise=False, shared_size=48)),
    "experts, sandwiched": replace(PLAIN, layers=SPARSE, sandwich_norms=True, experts=EXPERTS),
}
STEPS = {
    "a prompt": ((40,), (40,), ()),
    "one token": ((1,), (33,), ()),
    "mixed": ((1, 20, 1, 7), (30, 20, 5, 60), ()),
    "decode under one prefix": ((1, 1, 1), (40, 37, 50), (SharedPrefix((0, 1, 2), 0, 32),)),
}


def made(spec: ModelSpec) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(spec, dtype=torch.float32, device=CPU).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    return model


def pool(spec: ModelSpec, page_size: int) -> KVPool:
    torch.manual_seed(1)
    both = [torch.randn(POOL_TOKENS, spec.num_kv_heads, spec.head_dim) for _ in range(2 * spec.num_layers)]
    return KVPool(tuple(both[: spec.num_layers]), tuple(both[spec.num_layers :]), page_size)


def batch(query_lens: tuple[int, ...], kv_lens: tuple[int, ...], shared: tuple[SharedPrefix, ...], page_size: int) -> ForwardBatch:
    pages = iter(torch.randperm(POOL_TOKENS // page_size, generator=torch.Generator().manual_seed(2)).tolist())
    counts = [-(-length // page_size) for length in kv_lens]
    table = torch.zeros(len(kv_lens), max(counts), dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = torch.tensor([next(pages) for _ in range(count)])
    for prefix in shared:
        table[list(prefix.rows), : prefix.end // page_size] = table[prefix.rows[0], : prefix.end // page_size]
    places = [(row, position) for row, n in enumerate(query_lens) for position in range(kv_lens[row] - n, kv_lens[row])]
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    return ForwardBatch(
        token_ids=torch.randint(0, 128, (len(places),), generator=torch.Generator().manual_seed(3)),
        positions=torch.tensor([position for _, position in places]),
        kv_slots=torch.tensor([int(table[row, at // page_size]) * page_size + at % page_size for row, at in places]),
        query_starts=starts.to(torch.int32),
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32),
        page_table=table,
        logit_indices=starts[1:] - 1,
        query_lens=query_lens,
        kv_lens_host=kv_lens,
        shared_prefixes=shared,
    )


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_logits_and_streams_are_the_transformers(name: str, step: str, page_size: int) -> None:
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    spec, inputs = SPECS[name], batch(*STEPS[step], page_size)
    model, plain = made(spec), TorchAttention()
    taps = model.taps = FeatureTaps((0, 1, 2), spec.hidden_size, dtype=torch.float32, device=CPU)
    fused = TritonAttention(num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, device=CPU)
    found = []
    for attention, forward in ((plain, lambda: model(inputs, plain)), (fused, lambda: FusedStep(model, fused).forward(inputs))):
        attention.prepare(inputs, pool(spec, page_size))
        features = taps.fresh(len(inputs.token_ids))
        found.append((forward(), features))
    for wanted, ours in zip(*found, strict=True):
        assert float((wanted - ours).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "as recorded"])
@pytest.mark.parametrize("page_size", [1, 16])
def test_a_heads_guesses(page_size: int, recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole engine, as on a GPU. `recorded`: the head's steps over fixed and padded buffers, as graphs have them, each time anew."""
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.executor import cuda_graphs

    def on_device(config: EngineConfig, spec: ModelSpec, keys: KVPool, device: torch.device) -> tuple[TritonAttention, object]:
        attention = TritonAttention(num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, device=device)

        def graphs_of(step: PairStep, tables: SlotTables) -> FastPath:
            return cuda_graphs.StepGraphs(step, attention, keys, tables, spec.vocab_size, (4,), mixed=False)

        return attention, graphs_of if recorded else None

    monkeypatch.setattr(computation, "_computation", computation._on_gpu)
    monkeypatch.setattr(eagle_computation, "_on_device", on_device)
    monkeypatch.setattr(cuda_graphs, "MAX_RECORDINGS", 0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(eagle, "PROMPTS", eagle.PROMPTS[:3])
    config = CONFIG | {"hidden_size": 64}
    model = tiny_model("Llama", num_hidden_layers=7, hidden_size=64, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "model")
    tensors = head_tensors(model, config)
    sampling = replace(eagle.GREEDY, max_new_tokens=8)
    head = save_head(tmp_path / "head", tensors, config)
    ran = eagle.run(monkeypatch, tmp_path / "model", head, sampling, disable_cuda_graph=True, page_size=page_size)
    eagle.check_guesses(ran, PlainHead(model, tensors, config), least=15)
