"""Models with experts from every form of their checkpoints, on one rank and on several; what would be in few bits is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ramet.errors import ConfigError, InvalidRequest, Unsupported
from ramet.runtime.config import EngineConfig, ModelConfig
from ramet.runtime.executor.computation import activation_bytes
from ramet.runtime.executor.cpu_executor import create_cpu_executor
from ramet.runtime.executor.expert_tensors import ExpertTensors
from ramet.runtime.executor.safetensors_weights import SafetensorsSource
from ramet.runtime.executor.weight_storage import open_weights
from ramet.runtime.model_files import locate_model
from ramet.runtime.model_shard import divide
from ramet.runtime.model_spec import ExpertSpec, LayerSpec, ModelSpec
from ramet.runtime.models.hf_config import model_spec
from tests.runtime.executor.packed_models import FP8_CONFIG, fp8
from tests.runtime.executor.rank_threads import load_ranks
from tests.runtime.models.tiny_models import check_against, load, load_directory, tiny_model

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 40},
    "Qwen3Moe": {**EXPERTS, "mlp_only_layers": [1]},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_experts_are_those_apart(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, **FAMILIES[family])
    model.save_pretrained(tmp_path / "apart", max_shard_size="100KB")
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    apart, stacked = load_directory(tmp_path / "apart"), load_directory(tmp_path / "stacked")
    for (name, one), (other_name, other) in zip(apart.model.named_parameters(), stacked.model.named_parameters(), strict=True):
        assert name == other_name and torch.equal(one, other), name
    check_against(model, stacked)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_rank_reads_its_own_part(stacked: bool, tmp_path: Path) -> None:
    """Of a stack's `down_proj` the rows whole, since columns are not contiguous."""
    tiny_model("Mixtral", num_local_experts=4).save_pretrained(tmp_path, save_original_format=not stacked)
    files = locate_model(str(tmp_path))
    (alone,), source = load_ranks(files, 1), ExpertTensors(SafetensorsSource(files))
    whole = {name: slot.target for name, slot in alone.model.slots().items()}
    read = dict.fromkeys(whole, 0)
    for loaded in load_ranks(files, 2):
        slots = loaded.model.slots()
        for name, slot in slots.items():
            torch.testing.assert_close(slot.target, slot.region.of(whole[name]), rtol=0, atol=0)
        for piece in source.pieces({name: slot.region for name, slot in slots.items()}):
            values = piece.read()
            assert isinstance(values, torch.Tensor)
            read[piece.name] += values.numel()
            if not (stacked and "down_proj" in piece.name):
                assert piece.num_bytes == values.numel(), piece.name
    for name, count in read.items():
        times = 2 if "norm" in name or name.endswith("mlp.gate.weight") else 1
        assert count == times * prod(source.shapes()[name]), name


def test_every_expert_is_counted(tmp_path: Path) -> None:
    model = tiny_model("Qwen2Moe", **FAMILIES["Qwen2Moe"])
    model.save_pretrained(tmp_path)
    for loaded in (load_directory(tmp_path), *load_ranks(locate_model(str(tmp_path)), 2)):
        assert loaded.info.num_parameters == sum(p.numel() for p in model.parameters())
        assert loaded.info.weight_bytes == 4 * loaded.info.num_parameters


def test_a_token_takes_room_in_each_of_its_experts() -> None:
    experts = ExpertSpec(count=8, per_token=3, intermediate_size=32, renormalise=True, shared_size=40)
    spec = model_spec_of(experts=experts)
    assert activation_bytes(spec, torch.bfloat16) == 3 * (2 * 48 + 3 * (48 + 32) + 3 * 40)
    assert activation_bytes(replace(spec, experts=None), torch.bfloat16) == 3 * (2 * 48 + 3 * 60)


def model_spec_of(**changes: Any) -> ModelSpec:
    return ModelSpec(
        architecture="Test", vocab_size=96, hidden_size=48, intermediate_size=60, num_heads=1, num_kv_heads=1, head_dim=16,
        layers=(LayerSpec(None, sparse=True),), norm_eps=1e-5, activation="silu", context_len=64, attention_scale=1.0, tied_embeddings=True,
        **changes,
    )  # fmt: skip


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    tiny_model("Mixtral", num_local_experts=4).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidRequest, match=r"1 missing: model\.layers\.1\.mlp\.experts\.3\.down_proj\.weight"):
        load_directory(tmp_path)


def test_a_checkpoint_in_few_bits_is_dequantised(tmp_path: Path) -> None:
    model = tiny_model("Qwen3Moe", **EXPERTS)
    model.save_pretrained(tmp_path)
    tensors, pack = load_file(tmp_path / "model.safetensors"), fp8(per="row")
    for name in [name for name in tensors if ".experts." in name]:
        parts, numbers = pack(tensors.pop(name), name)
        prefix = name.removesuffix(".weight")
        tensors |= {f"{prefix}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        layer, expert, kind = name.split(".")[2], int(name.split(".")[5]), name.split(".")[6]
        stack = getattr(model.model.layers[int(layer)].mlp.experts, "down_proj" if kind == "down_proj" else "gate_up_proj").data[expert]
        place = slice(32, 64) if kind == "up_proj" else slice(0, len(numbers))
        stack[place].copy_(numbers)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": FP8_CONFIG}))
    check_against(model, load_directory(tmp_path))
    files = locate_model(str(tmp_path))
    check_against(model, load(files, ModelConfig(quantization="none")))
    with pytest.raises(Unsupported, match=r"quantization=fp8: experts \(Qwen3MoeForCausalLM\).*--quantization none"):
        open_weights(ModelConfig(), files, model_spec(files), torch.device("cuda"))


@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4", "q4_1", "q8_0"])
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_rounding_is_refused(quantization: Any, load_format: Any, tmp_path: Path) -> None:
    tiny_model("Mixtral", num_local_experts=4).save_pretrained(tmp_path)
    options = {"model_path": str(tmp_path), "quantization": quantization, "device": "cpu"}
    with pytest.raises(Unsupported, match=r"experts.*--quantization none"):
        if load_format == "dummy" or create_cpu_executor(EngineConfig.from_options(options)) is None:
            load(locate_model(str(tmp_path)), ModelConfig(quantization=quantization, load_format=load_format))


def test_experts_that_ranks_cannot_divide_are_named(tmp_path: Path) -> None:
    tiny_model("Qwen2Moe", **{**FAMILIES["Qwen2Moe"], "shared_expert_intermediate_size": 42}).save_pretrained(tmp_path)
    spec = model_spec(locate_model(str(tmp_path)))
    with pytest.raises(ConfigError, match="tp_size=4 cannot divide a shared expert of intermediate size 42"):
        divide(spec, 0, 4)
