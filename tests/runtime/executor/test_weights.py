"""Loading: single and sharded safetensors, dummy weights, and one honest error for a checkpoint that does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ramet.errors import ConfigError, InvalidRequest, ModelNotFound
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.weights import load_model
from ramet.runtime.layers.rms_norm import RMSNorm
from ramet.runtime.model_files import ModelFiles, locate_model
from tests.runtime.models.tiny_models import check_against, load, load_directory, tiny_model


def test_shards_load_as_one_file(tmp_path: Path) -> None:
    model = tiny_model("Qwen2")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    check_against(model, load_directory(tmp_path))


def test_info_counts_parameters_once(tmp_path: Path) -> None:
    model = tiny_model("Llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    info = load_directory(tmp_path).info
    assert info.num_parameters == sum(p.numel() for p in model.parameters())
    assert info.weight_bytes == 4 * info.num_parameters
    assert info.kv_bytes_per_token == 2 * 3 * 2 * 12 * 4
    assert (info.architecture, info.vocab_size, info.context_len, info.dtype) == ("LlamaForCausalLM", 96, 128, "float32")
    assert info.eos_token_ids == (2,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shorter_types_are_close_to_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    """Parameters are rounded, nothing else: their values are the checkpoint's."""
    model = tiny_model("Gemma2", head_dim=16)
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(), device="cpu", dtype=dtype, files=locate_model(str(tmp_path)))
    assert loaded.info.weight_bytes < 4 * loaded.info.num_parameters
    slot = loaded.model.slots()["model.layers.1.mlp.up_proj.weight"]
    torch.testing.assert_close(slot.target, model.model.layers[1].mlp.up_proj.weight.detach().to(dtype))
    norm = loaded.model.slots()["model.norm.weight"]
    assert norm.target.dtype == torch.float32, "1 + w would be rounded"
    torch.testing.assert_close(norm.target, 1 + model.model.norm.weight.detach())


def change(path: Path, edit: dict[str, torch.Tensor | None]) -> None:
    """Replace, add or (None) remove tensors of a saved model."""
    tensors = load_file(path / "model.safetensors") | edit
    save_file({name: value for name, value in tensors.items() if value is not None}, path / "model.safetensors", {"format": "pt"})


def test_everything_that_does_not_fit_is_in_one_error(tmp_path: Path) -> None:
    tiny_model("Llama").save_pretrained(tmp_path)
    edit = {"model.layers.1.mlp.up_proj.weight": None, "model.layers.0.self_attn.q_norm.weight": torch.ones(12)}
    change(tmp_path, {**edit, "model.norm.weight": torch.ones(47)})
    with pytest.raises(InvalidRequest) as caught:
        load_directory(tmp_path)
    for part in (
        "1 missing: model.layers.1.mlp.up_proj.weight",
        "1 unexpected: model.layers.0.self_attn.q_norm.weight",
        "model.norm.weight is (47,) instead of (48,)",
        str(tmp_path),
    ):
        assert part in caught.value.message


def test_tensors_that_old_checkpoints_carry_along_do_not_matter(tmp_path: Path) -> None:
    model = tiny_model("Llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    change(tmp_path, {"lm_head.weight": torch.ones(96, 48), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)})
    check_against(model, load_directory(tmp_path))


def test_a_config_without_weights_says_what_to_do(tmp_path: Path) -> None:
    tiny_model("Llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="ramet model fetch"):
        load_directory(tmp_path)


def test_a_missing_shard_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    tiny_model("Llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelNotFound, match=r"cannot read .*model\.safetensors"):
        load_directory(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(ModelNotFound, match=r"model-1\.safetensors"):
        load_directory(tmp_path)


def test_a_load_format_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tiny_model("Llama").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="load_format=gguf"):
        load(locate_model(str(tmp_path)), ModelConfig(load_format="gguf"))


def test_dummy_weights_need_only_a_config_and_follow_their_seed(tmp_path: Path) -> None:
    tiny_model("Gemma3Text", head_dim=16).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    files = ModelFiles("huggingface", tmp_path, "m")
    first, again, other = (load(files, ModelConfig(load_format="dummy", random_seed=seed)).model for seed in (1, 1, 2))
    assert torch.equal(first.embed.weight, again.embed.weight)
    assert not torch.equal(first.embed.weight, other.embed.weight)
    norms = [module for module in first.modules() if isinstance(module, RMSNorm)]
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)
    assert all(bool(parameter.isfinite().all()) for parameter in first.parameters())
