"""A model divided among ranks is the model: equal tokens and log-probabilities for 1, 2 and 4 ranks of every family, over Gloo; each rank
reads its own part of the checkpoint and no more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import ConfigError
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.gguf_weights import GgufSource
from ramet.runtime.executor.safetensors_weights import SafetensorsSource
from ramet.runtime.executor.weight_source import WeightSource
from ramet.runtime.gguf_file import open_gguf
from ramet.runtime.gguf_quants import dequantise
from ramet.runtime.layers.weight_slot import WHOLE
from ramet.runtime.model_files import ModelFiles, locate_model
from ramet.runtime.model_shard import divide
from ramet.runtime.model_spec import LayerSpec, ModelSpec, RopeSpec
from ramet.runtime.models.hf_config import model_spec
from tests.runtime.executor.rank_plans import check_equal, steps
from tests.runtime.executor.rank_threads import load_ranks, run_plans
from tests.runtime.models.test_gguf_models import write_gguf
from tests.runtime.models.tiny_models import one_thread, tiny_model

GEMMA = {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24, "num_hidden_layers": 2}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 40}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, biases everywhere": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, 6 heads over 3": ("Llama", {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "phi3, fused checkpoint": ("Phi3", {"num_key_value_heads": 2, "sliding_window": 8}),
    "gemma2, caps": ("Gemma2", {**GEMMA, "final_logit_softcapping": 2.0}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen2 moe": ("Qwen2Moe", EXPERTS),
    "gemma3": ("Gemma3Text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
}


def check_ranks(files: ModelFiles) -> None:
    plans, masks = steps()
    with one_thread():
        alone = run_plans(files, 1, plans, masks)
        for size in (2, 4):
            together = run_plans(files, size, plans, masks)
            check_equal(alone, together)
    assert alone[4][0].token_ids[0] in (11, 67), "the mask was applied"


@pytest.mark.parametrize("case", FAMILIES)
def test_ranks_give_the_tokens_of_one(case: str, tmp_path: Path) -> None:
    family, changes = FAMILIES[case]
    tiny_model(family, **changes).save_pretrained(tmp_path)
    check_ranks(locate_model(str(tmp_path)))


@pytest.mark.parametrize(("name", "family"), [("llama", "Llama"), ("phi3", "Phi3")])
def test_ranks_over_a_gguf_file(name: str, family: str, tmp_path: Path) -> None:
    check_ranks(write_gguf(tmp_path / "model.gguf", name, tiny_model(family, attention_bias=True)))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_a_rank_reads_its_own_part_of_the_checkpoint(form: str, size: int, tmp_path: Path) -> None:
    """All ranks together read every matrix once, but for key and value heads that several of them hold."""
    model = tiny_model("Llama", num_attention_heads=8, num_key_value_heads=2, head_dim=8)
    model.save_pretrained(tmp_path)
    files = write_gguf(tmp_path / "model.gguf", "llama", model) if form == "gguf" else locate_model(str(tmp_path))
    source = GgufSource(files, model_spec(files)) if form == "gguf" else SafetensorsSource(files)
    read: dict[str, int] = dict.fromkeys(source.shapes(), 0)
    for loaded in load_ranks(files, size):
        pieces = list(source.pieces({name: slot.region for name, slot in loaded.model.slots().items()}))
        for piece in pieces:
            read[piece.name] += piece.read().numel()
        assert sum(piece.num_bytes for piece in pieces) < (0.7 if size == 2 else 0.45) * _total(source)
    for name, shape in source.shapes().items():
        times = size if "norm" in name else size // 2 if re.search("[kv]_proj", name) else 1
        assert read[name] == times * np.prod(shape), name


def _total(source: WeightSource) -> int:
    return sum(piece.num_bytes for piece in source.pieces(dict.fromkeys(source.shapes(), WHOLE)))


def test_columns_that_cut_blocks_are_read_exactly(tmp_path: Path) -> None:
    """A rank's inputs need not begin where a block of the file does."""
    values = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("a", gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = open_gguf(tmp_path / "model.gguf").tensors["a"]
    whole = dequantise(tensor)
    for columns in (range(96), range(24, 48), range(31, 33), range(64, 96)):
        np.testing.assert_array_equal(dequantise(tensor, 1, 5, columns), whole[1:5, columns.start : columns.stop])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("family", "changes"), [("Phi3", {"num_key_value_heads": 2}), ("Qwen2Moe", EXPERTS)])
def test_dummy_weights_are_those_of_one_rank(family: str, changes: dict[str, Any], size: int, tmp_path: Path) -> None:
    tiny_model(family, **changes).save_pretrained(tmp_path)
    config = ModelConfig(load_format="dummy", random_seed=3)
    (alone,) = load_ranks(locate_model(str(tmp_path)), 1, config)
    whole = {name: slot.target for name, slot in alone.model.slots().items()}
    for loaded in load_ranks(locate_model(str(tmp_path)), size, config):
        assert loaded.info == alone.info
        for name, slot in loaded.model.slots().items():
            torch.testing.assert_close(slot.target, slot.region.of(whole[name]).expand_as(slot.target), rtol=0, atol=0)


def spec_of(**changes: Any) -> ModelSpec:
    numbers = {"vocab_size": 96, "intermediate_size": 96, "num_heads": 9, "num_kv_heads": 3, **changes}
    return ModelSpec(
        architecture="Test", hidden_size=72, head_dim=8, layers=(LayerSpec(RopeSpec(1e4, 8)),), norm_eps=1e-5, activation="silu",
        context_len=64, attention_scale=1.0, tied_embeddings=True, **numbers,
    )  # fmt: skip


@given(num_kv_heads=st.integers(1, 8), group=st.integers(1, 8), size=st.integers(1, 12))
def test_every_head_is_somewhere_with_its_keys(num_kv_heads: int, group: int, size: int) -> None:
    spec = spec_of(num_heads=num_kv_heads * group, num_kv_heads=num_kv_heads, intermediate_size=5 * size, vocab_size=3 * size)
    if -(-size // num_kv_heads) > group:
        with pytest.raises(ConfigError, match="query heads"):
            divide(spec, 0, size)
        return
    shards = [divide(spec, rank, size) for rank in range(size)]
    assert [head for shard in shards for head in shard.heads] == list(range(spec.num_heads))
    for shard in shards:
        local = shard.local
        assert local.num_heads > 0 and local.num_heads % local.num_kv_heads == 0
        for i, head in enumerate(shard.heads):
            assert shard.kv_heads[i // (local.num_heads // local.num_kv_heads)] == head // group


@pytest.mark.parametrize(
    ("changes", "size", "what"),
    [
        ({"num_heads": 3}, 4, "3 query heads over 3 key/value heads"),
        ({"intermediate_size": 90}, 4, "an intermediate size of 90"),
        ({"vocab_size": 95}, 2, "a vocabulary of 95 tokens"),
    ],
)
def test_what_cannot_be_divided_is_named(changes: dict[str, int], size: int, what: str) -> None:
    with pytest.raises(ConfigError, match=f"tp_size={size} cannot divide {what}") as caught:
        divide(spec_of(**changes), 0, size)
    assert caught.value.param == "tp_size"
