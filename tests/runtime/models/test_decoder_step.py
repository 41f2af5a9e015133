"""The C++ step against the torch transformer over the same weights, whose matrix products round their inputs as the kernels do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ramet.errors import Unsupported
from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.quantized_weights import QuantizedModel, load_quantized, step_tensors, why_not
from ramet.runtime.executor.weights import load_model
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.cpu_kv_pool import KV_TYPES, CpuKvPool, KvType
from ramet.runtime.kernels.packed_weight import BLOCK, quantize
from ramet.runtime.layers.linear import Linear
from ramet.runtime.layers.rotary import Rotary
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.models.decoder_step import DecoderStep, StepBatch
from ramet.runtime.models.hf_config import model_spec
from ramet.runtime.models.transformer import Transformer
from ramet.runtime.rope_frequencies import rotation_tables

if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
    pytest.skip("the processor lacks AVX2, FMA or F16C", allow_module_level=True)

SLOTS = 1600
CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 200,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}
FAMILIES = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True},
    "llama, biases": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "tie_word_embeddings": False, "sliding_window": 200},
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "tie_word_embeddings": True, "no_rope_layers": [1, 0],
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "tie_word_embeddings": False, "sliding_window": 70,
        "partial_rotary_factor": 0.5,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "tie_word_embeddings": True, "sliding_window": 90,
        "layer_types": ["sliding_attention", "full_attention"], "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 32,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    },
}  # fmt: skip


def checkpoint(folder: Path, family: str) -> ModelFiles:
    """A random model on disk whose matrices are already exactly representable in 8-bit blocks."""
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(CONFIG | FAMILIES[family]))
    files = ModelFiles("huggingface", folder, family)
    outline = Transformer(model_spec(files), dtype=torch.float32, device=torch.device("meta"))
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, slot in outline.slots().items():
        values = torch.randn(slot.shape, generator=generator) * (0.3 if len(slot.shape) == 2 else 0.2)
        if len(slot.shape) == 2:
            values = torch.from_numpy(quantize((values * 0.5).numpy(), 8).dequantize())
        tensors[name] = values if len(slot.shape) == 2 or name.endswith("bias") else values + 1
    save_file(tensors, str(folder / "model.safetensors"))
    return files


def rounded(x: torch.Tensor) -> torch.Tensor:
    blocks = x.reshape(len(x), -1, BLOCK)
    top = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(top > 0, torch.full_like(top, 127.0) / top, torch.zeros_like(top))  # 127 / top would be 127 · (1 / top)
    return ((blocks * inverse).round() * (top / 127.0)).reshape(x.shape)


class Twins:
    """Step and transformer over one checkpoint, each with a pool of its own full of NaN."""

    def __init__(self, folder: Path, family: str, kv_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = checkpoint(folder, family)
        self.spec = model_spec(self.files)
        self.quantized: QuantizedModel = load_quantized(self.files, self.spec, bits=8, threads=2, kv_type=type_of(kv_dtype))
        loaded = load_model(ModelConfig(), device="cpu", dtype=torch.float32, files=self.files)
        self.model, self.attention = loaded.model, TorchAttention()
        self.pools = [self.pool(kv_dtype), self.pool(torch.float32)]
        monkeypatch.setattr(Linear, "forward", lambda layer, x: F.linear(rounded(x), layer.weight, layer.bias))
        monkeypatch.setattr(Transformer, "logits", self.logits)

    def pool(self, dtype: torch.dtype) -> KVPool:
        shape = (SLOTS, self.spec.num_kv_heads, self.spec.head_dim)
        tensors = [tuple(torch.full(shape, float("nan"), dtype=dtype) for _ in self.spec.layers) for _ in range(2)]
        return KVPool(tensors[0], tensors[1], 1)

    @staticmethod
    def logits(model: Transformer, hidden: torch.Tensor) -> torch.Tensor:
        head = model.embed if model.head is None else model.head
        return F.linear(rounded(model.norm(hidden)), head.weight)

    @torch.inference_mode()
    def errors(self, batch: ForwardBatch) -> torch.Tensor:
        """Relative difference of each token's logits. Afterwards both pools hold what the step wrote."""
        found = logits_of(self.quantized.step, batch, self.pools[0])
        self.attention.prepare(batch, self.pools[1])
        expected = self.model(batch, self.attention)
        for own, other in zip(self.pools[0].keys + self.pools[0].values, self.pools[1].keys + self.pools[1].values, strict=True):
            other.copy_(own)
        return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


def zeros(dtype: torch.dtype) -> KVPool:
    shape = (SLOTS, CONFIG["num_key_value_heads"], CONFIG["head_dim"])
    keys, values = (tuple(torch.zeros(shape, dtype=dtype) for _ in range(CONFIG["num_hidden_layers"])) for _ in range(2))
    return KVPool(keys, values, 1)


def logits_of(step: DecoderStep, batch: ForwardBatch, pool: KVPool) -> torch.Tensor:
    """The step over a batch and a pool of tensors, in the memory where they lie."""
    logits = np.empty((len(batch.logit_indices), CONFIG["vocab_size"]), np.float32)
    arrays = [t.contiguous().numpy() for t in (batch.token_ids, batch.positions, batch.kv_slots, batch.query_starts, batch.kv_lens)]
    lines, table = np.arange(len(batch.query_lens)), batch.page_table.contiguous().numpy()
    step.forward(StepBatch(*arrays, lines, table, batch.logit_indices.numpy()), over(pool), logits)
    return torch.from_numpy(logits)


def type_of(dtype: torch.dtype) -> KvType:
    return KV_TYPES[str(dtype).removeprefix("torch.")]


def over(pool: KVPool) -> CpuKvPool:
    kind = type_of(pool.keys[0].dtype)
    keys, values = (tuple(t.view(torch.uint8).numpy().view(kind.dtype) for t in side) for side in (pool.keys, pool.values))
    return CpuKvPool(keys, values, pool.page_size, kind)


def batch_of(rows: list[tuple[list[int], int, torch.Tensor]]) -> ForwardBatch:
    """`rows`: new tokens, how many the pool already has, and the places of all tokens of the row."""
    lens, starts = [len(tokens) for tokens, _, _ in rows], [start for _, start, _ in rows]
    ends = [start + n for start, n in zip(starts, lens, strict=True)]
    table = torch.zeros(len(rows), max(ends), dtype=torch.int32)
    for i, (_, _, places) in enumerate(rows):
        table[i, : ends[i]] = places[: ends[i]]
    positions = torch.cat([torch.arange(start, end) for start, end in zip(starts, ends, strict=True)])
    return ForwardBatch(
        token_ids=torch.tensor([token for tokens, _, _ in rows for token in tokens]),
        positions=positions,
        kv_slots=torch.cat([places[start:end].long() for (_, start, places), end in zip(rows, ends, strict=True)]),
        query_starts=torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32),
        kv_lens=torch.tensor(ends, dtype=torch.int32),
        page_table=table,
        logit_indices=torch.arange(len(positions)),
        query_lens=tuple(lens),
        kv_lens_host=tuple(ends),
    )


def tokens(n: int, seed: int) -> list[int]:
    return torch.randint(0, CONFIG["vocab_size"], (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batches_equal_the_transformer(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill, chunks that go on, rows of 1 to 5 tokens, and a context long enough to be split and merged."""
    twins = Twins(tmp_path, family, torch.float32, monkeypatch)
    places = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(1)).split([700, 100, 100, 100, 600])
    steps = [
        [(tokens(600, 1), 0, places[0]), (tokens(3, 2), 0, places[1])],
        [(tokens(1, 3), 600, places[0]), (tokens(40, 4), 3, places[1]), (tokens(1, 5), 0, places[2]), (tokens(2, 6), 0, places[3])],
        [(tokens(5, 7), 601, places[0]), (tokens(3, 8), 43, places[1]), (tokens(1, 9), 1, places[2]), (tokens(4, 10), 2, places[3])],
    ]
    for step in steps:
        errors = twins.errors(batch_of(step))
        # A difference in the last bit of a float now and then moves an activation to the next of its 255 steps: about one percent, passed
        # on to later tokens. Tokens without such a move agree to float precision.
        assert errors.quantile(0.1) < 1e-5
        assert errors.max() < 0.05


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize(("kv_dtype", "tolerance"), [(torch.float16, 0.04), (torch.bfloat16, 0.06)])
def test_half_precision_kv(tmp_path: Path, family: str, kv_dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(tmp_path, family, kv_dtype, monkeypatch)
    places = torch.arange(SLOTS)
    for step in ([(tokens(290, 1), 0, places)], [(tokens(1, 2), 290, places)]):
        assert twins.errors(batch_of(step)).mean() < tolerance


def test_a_row_is_the_same_alone_and_in_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Twins(tmp_path, "llama", torch.float32, monkeypatch)
    places = torch.arange(SLOTS).split(400)
    rows = [(tokens(n, n), 0, places[i]) for i, n in enumerate((300, 7, 64))]
    together = logits_of(step.quantized.step, batch_of(rows), step.pools[0])
    alone = torch.cat([logits_of(step.quantized.step, batch_of([row]), step.pool(torch.float32)) for row in rows])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_products_change_no_bit_of_a_step(tmp_path: Path, family: str, bits: int) -> None:
    """Among them the one that gates its own results."""
    files = checkpoint(tmp_path, family)
    step = load_quantized(files, model_spec(files), bits=bits, threads=2, kv_type=KV_TYPES["float16"]).step
    places = torch.arange(SLOTS).split(400)
    batch = batch_of([(tokens(n, n), 0, places[i]) for i, n in enumerate((300, 7, 64))])
    found = []
    for batched_from in (1, 1 << 30):
        step.context.library.ramet_set_batched_from(step.context.handle, batched_from)
        found.append(logits_of(step, batch, zeros(torch.float16)))
    assert torch.equal(*found)


@pytest.mark.parametrize("wanted", [[299, 303, 306, 370], [370, 299], [306], [], list(range(100, 371))], ids=len)
def test_the_last_layer_goes_on_with_wanted_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: list[int]) -> None:
    """Rows of few tokens to the bit; of many, attention adds in another order where few are wanted. Keys and values stay the same."""
    twins = Twins(tmp_path, "llama", torch.float32, monkeypatch)
    places = torch.arange(SLOTS).split(400)
    rows = [(tokens(n, n), 0, places[i]) for i, n in enumerate((300, 7, 64))]
    every = logits_of(twins.quantized.step, batch_of(rows), twins.pools[0])
    pool = twins.pool(torch.float32)
    some = logits_of(twins.quantized.step, replace(batch_of(rows), logit_indices=torch.tensor(wanted, dtype=torch.int64)), pool)
    assert torch.allclose(some, every[wanted], rtol=0.02, atol=0.02 * float(every.abs().max()))
    for s, token in enumerate(wanted):
        assert token not in range(300, 307) or torch.equal(some[s], every[token])
    for own, other in zip(pool.keys + pool.values, twins.pools[0].keys + twins.pools[0].values, strict=True):
        assert torch.equal(own.nan_to_num(), other.nan_to_num())


def test_a_row_with_few_wanted_is_the_same_alone_and_in_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Twins(tmp_path, "llama", torch.float32, monkeypatch)
    places = torch.arange(SLOTS).split(400)
    rows = [(tokens(n, n), 0, places[i]) for i, n in enumerate((300, 7, 64))]
    last = replace(batch_of(rows), logit_indices=torch.tensor([299, 306, 370]))
    together = logits_of(step.quantized.step, last, step.pools[0])
    for i, row in enumerate(rows):
        alone = replace(batch_of([row]), logit_indices=torch.tensor([len(row[0]) - 1]))
        assert torch.equal(logits_of(step.quantized.step, alone, step.pool(torch.float32))[0], together[i])


def test_what_the_step_does_not_cover_is_named(tmp_path: Path) -> None:
    config = (
        CONFIG
        | FAMILIES["llama"]
        | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh"}
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    files = ModelFiles("huggingface", tmp_path, "capped")
    assert why_not(model_spec(files)) == "soft-capped logits"
    with pytest.raises(Unsupported, match="--quantization none"):
        load_quantized(files, model_spec(files), bits=8, threads=1, kv_type=KV_TYPES["float32"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_that_are_asked_for_are_those_of_the_transformer(tmp_path: Path, family: str) -> None:
    spec = model_spec(checkpoint(tmp_path, family))
    outline = Transformer(spec, dtype=torch.float32, device=torch.device("meta"))
    assert step_tensors(spec) == {name: slot.shape for name, slot in outline.slots().items()}


@pytest.mark.parametrize("theta", [10_000.0, 100_000.0, 500_000.0])
def test_rotation_tables_are_those_of_the_transformer(tmp_path: Path, theta: float) -> None:
    config = CONFIG | FAMILIES["llama"] | {"rope_theta": theta}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = model_spec(ModelFiles("huggingface", tmp_path, "rotated"))
    rope = spec.layers[0].rope
    assert rope is not None
    cosine, sine = rotation_tables(rope, spec.context_len)
    turns = Rotary(rope, dtype=torch.float32, device=torch.device("cpu"))(torch.arange(spec.context_len))
    for found, expected in ((cosine, turns[0]), (sine, turns[1])):
        torch.testing.assert_close(torch.from_numpy(found), expected[:, 0, found.shape[1] :], rtol=0, atol=1e-6)
