"""Quantised checkpoints: every layout read number by number, refusals by field, and rounding while loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ramet.errors import ConfigError, InvalidRequest, Unsupported
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.packed_checkpoint import PackedCheckpoint
from ramet.runtime.executor.weight_storage import ROUNDED, check_quantization
from ramet.runtime.executor.weights import fill, load_model
from ramet.runtime.layers.quantized_weight import GroupedMatrix, QuantizedWeight, WeightScheme, pack, quantise, unpack
from ramet.runtime.layers.weight_slot import Region
from ramet.runtime.models.hf_config import model_spec, spec_of_config
from ramet.runtime.models.transformer import Transformer
from tests.runtime.executor.packed_models import AWQ_CONFIG, CASES, FP8_CONFIG, awq, compressed_config, files_of, gptq_config, write
from tests.runtime.models.tiny_models import Sequencer, check_against, load, one_thread, tiny_model


@pytest.mark.parametrize("case", CASES)
def test_numbers_and_logits(case: str, tmp_path: Path) -> None:
    packer, config = CASES[case]
    model = write(tmp_path, packer, config)
    loaded = load(files_of(tmp_path))
    stored, spec = model.state_dict(), model_spec(files_of(tmp_path))
    assert spec.checkpoint is not None
    source = PackedCheckpoint(files_of(tmp_path), spec, spec.checkpoint)
    for name in ("model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj"):
        matrix = source.matrix(name)
        assert matrix is not None and torch.equal(matrix.dequantise(), stored[f"{name}.weight"].float())
    check_against(model, loaded)


@pytest.mark.parametrize("case", ["awq", "gptq 8", "gptq 4, sorted inputs", "compressed fp8", "fp8, blocks"])
@one_thread()
def test_matrices_kept_in_few_bits_give_the_same_logits(case: str, tmp_path: Path) -> None:
    """As on a GPU, by the torch reference: the whole model over codes, never over numbers."""
    packer, config = CASES[case]
    write(tmp_path, packer, config)
    files, plain = files_of(tmp_path), load(files_of(tmp_path))
    spec = plain.spec
    assert spec.checkpoint is not None
    source = PackedCheckpoint(files, spec, spec.checkpoint)
    model = Transformer(spec, dtype=torch.float32, device=torch.device("cpu"), storage=lambda name, _: source.scheme(name)).eval()
    fill(model.slots(), source, files, spec)
    matrices = [module for module in model.modules() if isinstance(module, QuantizedWeight)]
    assert len(matrices) == 4 * spec.num_layers
    kept = type(plain)(model, plain.info, spec)
    ids = list(range(3, 30))
    torch.testing.assert_close(Sequencer(kept).run(ids), Sequencer(plain).run(ids), atol=1e-4, rtol=1e-4)


def test_a_bias_that_is_not_zero_is_not_dropped(tmp_path: Path) -> None:
    write(tmp_path, *CASES["gptq 4"])
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.bias"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidRequest, match=r"1 unexpected: model.layers.0.mlp.up_proj.bias"):
        load(files_of(tmp_path))


def test_biases_of_the_model_are_kept(tmp_path: Path) -> None:
    check_against(write(tmp_path, *CASES["awq"], family="Qwen2"), load(files_of(tmp_path)))


def test_a_config_beside_the_checkpoint_is_read(tmp_path: Path) -> None:
    packer, config = CASES["gptq 4"]
    model = write(tmp_path, packer, config)
    whole = json.loads((tmp_path / "config.json").read_text())
    beside = whole.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(whole))
    (tmp_path / "quantize_config.json").write_text(json.dumps({k: v for k, v in beside.items() if k != "quant_method"}))
    check_against(model, load(files_of(tmp_path)))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"quant_method": "bitsandbytes"}, "quant_method='bitsandbytes'"),
    "awq layout": ({**AWQ_CONFIG, "version": "gemv"}, "version='gemv'"),
    "awq without zeros": ({**AWQ_CONFIG, "zero_point": False}, "zero_point=False"),
    "gptq bits": (gptq_config(3), "bits=3"),
    "gptq layers": (gptq_config(dynamic={"-:.*down.*": {}}), "dynamic="),
    "gptq head": (gptq_config(lm_head=True), "lm_head=True"),
    "gptq format": (gptq_config(checkpoint_format="marlin"), "checkpoint_format='marlin'"),
    "fp8 kind": ({**FP8_CONFIG, "fmt": "e5m2"}, "fmt='e5m2'"),
    "compressed format": (compressed_config("marlin-24", num_bits=4, type="int"), "format='marlin-24"),
    "compressed fp4": (compressed_config("nvfp4-pack-quantized", num_bits=4, type="float"), "format='nvfp4"),
    "two groups": ({"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}}, "config_groups="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_implemented_is_refused_by_its_field(case: str) -> None:
    quantization, says = REFUSED[case]
    config = {**tiny_model("Llama").config.to_dict(), "architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    with pytest.raises(Unsupported) as caught:
        spec_of_config(config)
    assert f"quantization_config.{says}" in caught.value.message and caught.value.param == "quantization_config"


@pytest.mark.parametrize(("wanted", "case"), [("fp8", "awq"), ("int4", "awq"), ("gptq", "awq"), ("awq", None), ("q8_0", "fp8")])
def test_what_the_checkpoint_is_not_is_refused(wanted: str, case: str | None, tmp_path: Path) -> None:
    if case is None:
        tiny_model("Llama").save_pretrained(tmp_path)
    else:
        write(tmp_path, *CASES[case])
    with pytest.raises(ConfigError, match="quantization"):
        check_quantization(ModelConfig(quantization=wanted), model_spec(files_of(tmp_path)))


def test_rows_of_one_matrix_must_sort_their_inputs_alike() -> None:
    weight = QuantizedWeight(4, 64, WeightScheme("int4", 32), torch.device("cpu"))
    matrix = quantise(torch.randn(2, 64), WeightScheme("int4", 32))
    weight.store(0, matrix)
    with pytest.raises(Unsupported, match="sort them differently"):
        weight.store(2, GroupedMatrix(matrix.codes, matrix.scales, matrix.zeros, torch.arange(63, -1, -1)))


@pytest.mark.parametrize(("kind", "group", "error"), [("fp8", None, 0.03), ("fp8", 32, 0.03), ("int8", None, 0.02), ("int4", 32, 0.11)])
def test_rounding(kind: Any, group: int | None, error: float) -> None:
    torch.manual_seed(0)
    values, scheme = torch.randn(48, 128), WeightScheme(kind, group, torch.float16 if kind != "fp8" else torch.float32)
    values[3] = 0
    matrix = quantise(values, scheme)
    assert 0.001 < (matrix.dequantise() - values).norm() / values.norm() < error
    assert (matrix.dequantise()[3] == 0).all()
    again = quantise(matrix.dequantise(), scheme)
    assert torch.allclose(again.dequantise(), matrix.dequantise(), rtol=2e-2, atol=2e-3)
    rows, columns = (range(3, 9), range(20, 24)), range(32, 96)
    if group is not None:
        part = matrix.part(Region(rows, columns)).dequantise()
        assert torch.equal(part, Region(rows, columns).of(matrix.dequantise()))
        with pytest.raises(Unsupported, match="whole groups"):
            matrix.part(Region(None, range(16, 96)))


def test_packing_is_its_own_inverse() -> None:
    codes = torch.randint(0, 16, (5, 96), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes)), codes)


@pytest.mark.parametrize("kind", ROUNDED)
def test_rounded_while_loading(kind: str, tmp_path: Path) -> None:
    """On a CPU the rounded numbers are computed with as numbers."""
    tiny_model("Llama", hidden_size=64, intermediate_size=96, head_dim=16).save_pretrained(tmp_path)
    exact, rounded = (
        load_model(ModelConfig(quantization=q), device="cpu", dtype=torch.float32, files=files_of(tmp_path)).model for q in (None, kind)
    )
    changed = [
        name for (name, a), (_, b) in zip(exact.named_parameters(), rounded.named_parameters(), strict=True) if not torch.equal(a, b)
    ]
    assert len(changed) == 4 * 3 and all(name.startswith("layers.") and "norm" not in name for name in changed)
    for name in changed:
        a, b = exact.get_parameter(name), rounded.get_parameter(name)
        assert (a - b).norm() / a.norm() < {"fp8": 0.03, "int8": 0.02, "int4": 0.12}[kind]


def test_few_bits_take_little_memory(tmp_path: Path) -> None:
    write(tmp_path, awq(), AWQ_CONFIG)
    files = files_of(tmp_path)
    spec = model_spec(files)
    assert spec.checkpoint is not None
    source = PackedCheckpoint(files, spec, spec.checkpoint)
    model = Transformer(spec, dtype=torch.float16, device=torch.device("cpu"), storage=lambda name, _: source.scheme(name))
    layer = sum(p.nbytes for p in model.layers[0].parameters())
    plain = sum(p.nbytes for p in Transformer(spec, dtype=torch.float16, device=torch.device("meta")).layers[0].parameters())
    assert layer < 0.4 * plain
