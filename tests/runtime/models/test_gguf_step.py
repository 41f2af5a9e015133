"""The C++ step on GGUF files that mix types, against the torch transformer over their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.quantized_weights import load_quantized
from ramet.runtime.executor.weights import load_model
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.cpu_kv_pool import KV_TYPES
from ramet.runtime.layers.linear import Linear
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.models.hf_config import model_spec
from ramet.runtime.models.transformer import Transformer
from tests.runtime.models.test_decoder_step import batch_of, logits_of, rounded
from tests.runtime.models.test_gguf_models import write_gguf
from tests.runtime.models.tiny_models import tiny_model

if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
    pytest.skip("the processor lacks AVX2, FMA or F16C", allow_module_level=True)

Q4_K_M = {
    "attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K", "attn_output": "Q4_K", "ffn_gate": "Q4_K", "ffn_up": "Q4_K", "ffn_down": "Q6_K",
}  # fmt: skip
MIXTURES = {
    "Q4_K_M": {**Q4_K_M, "token_embd": "Q4_K", "output": "Q6_K"},
    "Q5_K_M, tied": {name: kind.replace("Q4", "Q5") for name, kind in Q4_K_M.items()} | {"token_embd": "Q6_K"},
    "Q3_K_M": {**Q4_K_M, "attn_q": "Q3_K", "attn_v": "Q5_K", "ffn_gate": "Q3_K", "ffn_up": "Q3_K", "token_embd": "Q3_K", "output": "Q6_K"},
    "odd widths": {"attn_q": "Q5_0", "attn_k": "IQ4_NL", "attn_v": "Q8_0", "ffn_gate": "Q5_1", "ffn_up": "Q5_0", "output": "Q4_1"},
    "IQ4_XS": dict.fromkeys(Q4_K_M, "IQ4_XS") | {"token_embd": "IQ4_XS", "output": "Q5_K"},
    "not kept": {**Q4_K_M, "attn_q": "Q2_K", "ffn_up": "Q2_K", "output": "Q6_K"},
}


SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 200, "num_attention_heads": 8, "num_key_value_heads": 2}
FAMILIES = {
    "qwen2": ("Qwen2", {"num_hidden_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 32, "num_hidden_layers": 2}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "phi3": ("Phi3", {"sliding_window": 8}),
    "gemma3": ("Gemma3Text", {"head_dim": 32, "sliding_window": 9, "query_pre_attn_scalar": 32, "num_hidden_layers": 7}),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_of_types_equals_the_transformer(mixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quiet_model("Llama", num_hidden_layers=2, tie_word_embeddings="tied" in mixture)
    check_step(write_gguf(tmp_path / "model.gguf", "llama", model, kinds=MIXTURES[mixture]), monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_the_transformer(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What GGUF files of other families have besides: biases where the types are split, norms with their offset in them, fused matrices,
    two rotations, windows."""
    name, changes = FAMILIES[family]
    kinds = {**Q4_K_M, "attn_qkv": "Q5_K", "output": "Q6_K", "token_embd": "Q6_K"}
    check_step(write_gguf(tmp_path / "model.gguf", family, quiet_model(name, **changes), kinds=kinds), monkeypatch)


def quiet_model(family: str, **changes: Any) -> PreTrainedModel:
    """With small norms, so that no softmax hangs on a rounding."""
    model = tiny_model(family, **SIZES, **changes)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.fill_(-0.9 if "Gemma" in family else 0.1)
    return model


def check_step(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = model_spec(files)
    step = load_quantized(files, spec, bits=None, threads=2, kv_type=KV_TYPES["float32"]).step
    pools = [KVPool(_zeros(spec.num_layers), _zeros(spec.num_layers), 1) for _ in range(2)]
    batch = batch_of([(list(range(40, 100)), 0, torch.arange(64)), ([5, 7], 0, torch.arange(64, 128))])
    found, expected = logits_of(step, batch, pools[0]), transformer_logits(files, batch, pools[1], monkeypatch)
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    # A scale's rounding moves an activation now and then to the next of its 255 steps, which is one percent.
    assert error.quantile(0.9) < 0.1
    assert error.median() < 0.03


def _zeros(num_layers: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(128, 2, 32) for _ in range(num_layers))


def transformer_logits(files: ModelFiles, batch: ForwardBatch, pool: KVPool, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Over the file's numbers, activations rounded as the kernels round them."""
    loaded, attention = load_model(ModelConfig(), device="cpu", dtype=torch.float32, files=files), TorchAttention()
    monkeypatch.setattr(Linear, "forward", lambda layer, x: F.linear(rounded(x), layer.weight, layer.bias))
    head = loaded.model.embed if loaded.model.head is None else loaded.model.head
    monkeypatch.setattr(Transformer, "logits", lambda model, hidden: F.linear(rounded(model.norm(hidden)), head.weight))
    attention.prepare(batch, pool)
    with torch.inference_mode():
        logits: torch.Tensor = loaded.model(batch, attention)
    return logits
