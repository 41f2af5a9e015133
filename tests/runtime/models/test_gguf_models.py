"""GGUF files of every architecture give the logits of the transformers model that they were written from; SmolLM2's file likewise.

The writer below stores tensors as llama.cpp's converter does: rotated pairs side by side for llama, whole norm weights for Gemma.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ramet.errors import ConfigError, Unsupported
from ramet.runtime.config import ModelConfig
from ramet.runtime.gguf_file import open_gguf
from ramet.runtime.model_files import ModelFiles, locate_model
from ramet.runtime.models.hf_config import model_spec
from tests.runtime.models.tiny_models import check_against, load, tiny_model
from tests.runtime.test_gguf_file import HALVES, TYPES

Array = npt.NDArray[np.float32]
Blocks = npt.NDArray[np.uint8]

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {}),
    "llama, tied, biases": ("llama", "Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama, windows (Mistral)": ("llama", "Mistral", {"sliding_window": 7}),
    "smollm3": ("smollm3", "SmolLM3", {"num_hidden_layers": 4}),
    "qwen2": ("qwen2", "Qwen2", {}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 16}),
    "phi3": ("phi3", "Phi3", {"sliding_window": 8}),
    "gemma2": ("gemma2", "Gemma2", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3", "Gemma3Text", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 16, "num_hidden_layers": 7}),
}
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    name, family, changes = ARCHITECTURES[case]
    model = tiny_model(family, **changes)
    check_against(model, load(write_gguf(tmp_path / "model.gguf", name, model)))


def test_frequency_factors_equal_llama3_scaling(tmp_path: Path) -> None:
    """Llama 3.1 files hold the scaling as a tensor of factors."""
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = tiny_model("Llama", rope_parameters={**rope, "original_max_position_embeddings": 32})
    plain = 1.0 / 1e4 ** (torch.arange(0, 12, 2).float() / 12)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    check_against(model, load(write_gguf(tmp_path / "model.gguf", "llama", model, {"rope_freqs.weight": factors})))


def test_a_mixture_of_types_gives_the_logits_of_its_numbers(tmp_path: Path) -> None:
    """As in a file named Q4_K_M, where one matrix has this type and the next one that."""
    kinds = {"attn_q": "Q4_K", "attn_k": "Q2_K", "attn_v": "Q6_K", "attn_output": "Q3_K"}
    kinds |= {"ffn_gate": "IQ4_XS", "ffn_up": "IQ4_NL", "ffn_down": "Q5_K", "token_embd": "Q8_0"}
    model = tiny_model("Llama", hidden_size=256, intermediate_size=512, num_hidden_layers=2, tie_word_embeddings=True)
    files = write_gguf(tmp_path / "model.gguf", "llama", model, kinds=kinds)
    loading = model.load_state_dict(dict(_as_transformers(files.path, heads=4, kv_heads=2)), strict=False)
    assert loading.missing_keys == ["lm_head.weight"] and not loading.unexpected_keys
    assert {tensor.type.name for tensor in open_gguf(files.path).tensors.values()} == {"F32", *kinds.values()}
    check_against(model, load(files))


def test_unknown_metadata_of_the_architecture_is_refused(tmp_path: Path) -> None:
    files = write_gguf(tmp_path / "model.gguf", "llama", tiny_model("Llama"), metadata={"llama.expert_count": 8})
    with pytest.raises(Unsupported, match=r"llama\.expert_count"):
        model_spec(files)


@pytest.mark.parametrize("key", ["attention.head_count", "block_count"])
def test_a_count_of_nothing_is_named(key: str, tmp_path: Path) -> None:
    files = write_gguf(tmp_path / "model.gguf", "llama", tiny_model("Llama"), metadata={f"llama.{key}": 0})
    with pytest.raises(ConfigError, match=rf"llama\.{key} must be a positive integer, but is 0"):
        model_spec(files)


@pytest.mark.parametrize("name", ["mamba", "qwen3moe"])
def test_unknown_architecture_is_refused(name: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", name)
    _finish(writer)
    with pytest.raises(Unsupported, match=f"{name}.*supported: gemma2, gemma3, llama"):
        model_spec(ModelFiles("gguf", tmp_path / "model.gguf", "m"))


@pytest.mark.model
def test_smollm2_gives_the_logits_of_transformers() -> None:
    files = locate_model(None)
    loaded = load(files, ModelConfig(context_length=256))
    assert loaded.info.num_parameters == 134_515_008
    assert loaded.spec.eos_token_ids == (2,)
    config = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    config |= {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
    rope = {"rope_type": "default", "rope_theta": 1e5}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config, rope_parameters=rope, tie_word_embeddings=True)).eval()
    loading = model.load_state_dict(dict(_as_transformers(files.path, heads=9, kv_heads=3)), strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config)  # its frequencies were meta, too
    assert loading.missing_keys == ["lm_head.weight"] and not loading.unexpected_keys
    check_against(model, loaded, length=28)


def _as_transformers(path: Path, heads: int, kv_heads: int) -> Iterator[tuple[str, torch.Tensor]]:
    """A llama's tensors, dequantised by the gguf package and put in order as transformers does when it reads such a file."""
    layers = {gguf_name: name for name, gguf_name in PARTS.items() if "qkv" not in name and "gate_up" not in name}
    layers["ffn_norm"] = "post_attention_layernorm"
    for name, tensor in open_gguf(path).tensors.items():
        values = gguf.quants.dequantize(tensor.blocks, gguf.GGMLQuantizationType[tensor.type.name]).reshape(tensor.shape)
        kind = name.split(".")[-2]
        if kind in ("attn_q", "attn_k"):
            shape = (heads if kind == "attn_q" else kv_heads, -1, 2, tensor.shape[1])
            values = values.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)
        whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}.get(kind)
        stem = whole or f"model.layers.{name.split('.')[1]}.{layers[kind]}"
        yield f"{stem}.weight", torch.from_numpy(np.array(values))


def write_gguf(
    path: Path,
    name: str,
    model: PreTrainedModel,
    extra: dict[str, Array] | None = None,
    metadata: dict[str, int] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> ModelFiles:
    """`kinds`: parts of the model whose matrices get random numbers of this GGML type instead of their own."""
    writer = gguf.GGUFWriter(path, name)
    _write_metadata(writer, model.config)
    for key, value in (metadata or {}).items():
        writer.add_uint32(key, value)
    tied = model.config.tie_word_embeddings
    for tensor_name, values in {**_tensors(name, model), **(extra or {})}.items():
        if tied and tensor_name == "output.weight":
            continue
        kind = (kinds or {}).get(tensor_name.split(".")[-2]) if values.ndim == 2 else None
        if kind is not None:
            writer.add_tensor(tensor_name, _random_blocks(kind, values.shape), raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(tensor_name, values)
    _finish(writer)
    return ModelFiles("gguf", path, "tiny")


def _random_blocks(kind: str, shape: tuple[int, ...]) -> Blocks:
    """Numbers of about the size that the tiny models' have."""
    _, size, num_bytes = TYPES[kind]
    blocks = np.random.default_rng(shape[0]).integers(0, 256, (shape[0] * shape[1] // size, num_bytes), np.uint8)
    _set_scales(blocks, kind, 1.0)
    spread = float(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]).std())
    _set_scales(blocks, kind, 0.2 / spread)
    return blocks.reshape(shape[0], -1)


def _set_scales(blocks: Blocks, kind: str, scale: float) -> None:
    for start in HALVES[kind]:
        blocks[:, start : start + 2] = np.array([scale], np.float16).view(np.uint8)


def _write_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _tensors(name: str, model: PreTrainedModel) -> dict[str, Array]:
    config, gemma = model.config, name.startswith("gemma")
    found = {}
    for full_name, parameter in model.state_dict().items():
        values, (stem, kind) = parameter.numpy(), full_name.rsplit(".", 1)
        if gemma and "norm" in stem:
            values = values + np.float32(1)
        if name in ("llama", "smollm3") and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        found[f"{_gguf_name(stem, gemma)}.{kind}"] = np.ascontiguousarray(values)
    return found


def _gguf_name(stem: str, gemma: bool) -> str:
    if stem in WHOLE:
        return WHOLE[stem]
    _, _, layer, part = stem.split(".", 3)
    behind = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"}
    behind |= {"post_feedforward_layernorm": "post_ffw_norm"}
    norms = behind if gemma else {"post_attention_layernorm": "ffn_norm"}
    return f"blk.{layer}.{ {**PARTS, **norms}[part] }"


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
