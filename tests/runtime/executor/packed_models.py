"""Quantised checkpoints of tiny random models, packed bit by bit as the formats' documentation has it, and transformers' model beside
them with the numbers that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ramet.runtime.model_files import ModelFiles, locate_model
from tests.runtime.models.tiny_models import tiny_model

Parts = dict[str, torch.Tensor]
Packer = Callable[[torch.Tensor, str], tuple[Parts, torch.Tensor]]
"""A weight [N, K] and its name → the tensors that stand for it, and the numbers that these mean."""
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
}


@dataclass(frozen=True)
class Integers:
    codes: torch.Tensor  # [N, K]
    scales: torch.Tensor  # [N, K / group] float16
    zeros: torch.Tensor

    def numbers(self, groups: Sequence[int]) -> torch.Tensor:
        """`groups`: the group of every input."""
        return (self.codes - self.zeros[:, groups]).float() * self.scales[:, groups].float()


def integers(weight: torch.Tensor, bits: int, group: int, *, symmetric: bool = False) -> Integers:
    """Any codes, scales and zeros will do: nobody asks how near they are to `weight`."""
    generator = torch.Generator().manual_seed(int(weight.abs().sum() * 1000))
    rows, columns, most = *weight.shape, 1 << bits
    codes = torch.randint(0, most, (rows, columns), generator=generator)
    zeros = torch.full((rows, columns // group), most // 2)
    if not symmetric:
        zeros = torch.randint(1, most, zeros.shape, generator=generator)
    scales = (torch.rand(zeros.shape, generator=generator) * 0.4 + 0.1).div(most).half()
    return Integers(codes, scales, zeros)


def words(values: torch.Tensor, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """[n, m] → [n, m · bits / 32] int32; part i of a word holds value `order[i]` of those that it takes."""
    count = 32 // bits
    packed = torch.zeros(values.shape[0], values.shape[1] // count, dtype=torch.int64)
    for i in range(count):
        packed |= values[:, (order or range(count))[i] :: count].long() << (bits * i)
    return (packed - ((packed >> 31) << 32)).to(torch.int32)


def awq(group: int = 32, *, symmetric: bool = False) -> Packer:
    def pack(weight: torch.Tensor, name: str) -> tuple[Parts, torch.Tensor]:
        made = integers(weight, 4, group, symmetric=symmetric)
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        parts = {
            "qweight": words(made.codes.t(), 4, order),
            "qzeros": words(made.zeros.t(), 4, order),
            "scales": made.scales.t().contiguous(),
        }
        return parts, made.numbers([i // group for i in range(weight.shape[1])])

    return pack


def gptq(bits: int = 4, group: int = 32, *, symmetric: bool = False, act_order: bool = False, version: int = 1) -> Packer:
    def pack(weight: torch.Tensor, name: str) -> tuple[Parts, torch.Tensor]:
        made, columns = integers(weight, bits, group, symmetric=symmetric), weight.shape[1]
        groups = torch.arange(columns) // group
        if act_order:
            groups = groups[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        stored = made.zeros - int(version == 1)
        parts = {
            "qweight": words(made.codes, bits).t().contiguous(),
            "qzeros": words(stored.t(), bits),
            "scales": made.scales.t().contiguous(),
            "g_idx": groups.to(torch.int32),
            "bias": torch.zeros(len(weight), dtype=torch.float16),  # as AutoGPTQ writes it
        }
        return parts, made.numbers(groups.tolist())

    return pack


def compressed_integers(bits: int = 4, group: int = 32, *, symmetric: bool = True) -> Packer:
    def pack(weight: torch.Tensor, name: str) -> tuple[Parts, torch.Tensor]:
        made = integers(weight, bits, group, symmetric=symmetric)
        parts = {"weight_packed": words(made.codes, bits), "weight_scale": made.scales, "weight_shape": torch.tensor(weight.shape)}
        if not symmetric:
            parts["weight_zero_point"] = words(made.zeros.t(), bits).t().contiguous()
        return parts, made.numbers([i // group for i in range(weight.shape[1])])

    return pack


def compressed_int8(weight: torch.Tensor, name: str) -> tuple[Parts, torch.Tensor]:
    made = integers(weight, 8, weight.shape[1], symmetric=True)
    parts = {"weight": (made.codes - 128).to(torch.int8), "weight_scale": made.scales}
    return parts, made.numbers([0] * weight.shape[1])


def fp8(*, per: str, inverse: bool = False, static: bool = False, block: int = 32) -> Packer:
    """`per`: tensor, row or block."""

    def pack(weight: torch.Tensor, name: str) -> tuple[Parts, torch.Tensor]:
        rows, columns = weight.shape
        shape = {"tensor": (1, 1), "row": (rows, 1), "block": (-(-rows // block), columns // block)}[per]
        scales = torch.rand(shape, generator=torch.Generator().manual_seed(rows)) * 0.002 + 0.001
        tall = scales.repeat_interleave(-(-rows // shape[0]), 0)[:rows]
        wide = tall.repeat_interleave(columns // shape[1], 1)
        codes = (weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored = scales.reshape(()) if per == "tensor" else scales
        parts = {"weight": codes, "weight_scale_inv" if inverse else "weight_scale": stored}
        if static:
            parts["input_scale"] = torch.tensor(0.02)
        return parts, codes.float() * wide

    return pack


def write(folder: Path, packer: Packer, quantization: dict[str, Any], *, family: str = "Llama", **changes: Any) -> PreTrainedModel:
    """A checkpoint whose layers' matrices are packed. Returns the model that it is."""
    model = tiny_model(family, **SIZE, **changes)
    tensors = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not changes.get("tie_word_embeddings")
    }
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            parts, numbers = packer(module.weight.data, name)
            del tensors[f"{name}.weight"]
            known = {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items() if f"{name}.{part}" not in tensors}
            tensors |= known
            module.weight.data.copy_(numbers)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**model.config.to_dict(), "architectures": [type(model).__name__], "dtype": "float16", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return model


def files_of(folder: Path) -> ModelFiles:
    return locate_model(str(folder))


FP8_CONFIG = {"quant_method": "fp8", "activation_scheme": "dynamic"}
AWQ_CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def gptq_config(bits: int = 4, group: int = 32, **fields: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False, **fields}


def compressed_config(stored: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": stored, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


CASES: dict[str, tuple[Packer, dict[str, Any]]] = {
    "awq": (awq(), AWQ_CONFIG),
    "awq, wider groups": (awq(64), {**AWQ_CONFIG, "group_size": 64}),
    "gptq 4": (gptq(), gptq_config()),
    "gptq 8": (gptq(8), gptq_config(8)),
    "gptq 4, symmetric": (gptq(symmetric=True), gptq_config(sym=True)),
    "gptq 4, sorted inputs": (gptq(act_order=True), gptq_config(desc_act=True)),
    "gptq 8, sorted inputs": (gptq(8, 16, act_order=True), gptq_config(8, 16, desc_act=True)),
    "gptq v2": (gptq(version=2), gptq_config(checkpoint_format="gptq_v2")),
    "compressed 4": (compressed_integers(), compressed_config("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32)),
    "compressed 4, zeros": (
        compressed_integers(symmetric=False),
        compressed_config("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=False),
    ),
    "compressed int8": (compressed_int8, compressed_config("int-quantized", num_bits=8, type="int", strategy="channel")),
    "compressed fp8": (fp8(per="row"), compressed_config("float-quantized", num_bits=8, type="float", strategy="channel")),
    "compressed fp8, one scale": (
        fp8(per="tensor", static=True),
        compressed_config("float-quantized", num_bits=8, type="float", strategy="tensor"),
    ),
    "fp8": (fp8(per="tensor"), FP8_CONFIG),
    "fp8, static": (fp8(per="tensor", static=True), {**FP8_CONFIG, "activation_scheme": "static"}),
    "fp8, blocks": (fp8(per="block", inverse=True), {**FP8_CONFIG, "weight_block_size": [32, 32]}),
}
