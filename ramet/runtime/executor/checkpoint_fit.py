"""Whether a checkpoint, and the device, are what the model's config and the options ask for. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ramet.errors import ConfigError, InvalidRequest, Unsupported
from ramet.runtime.config import BackendConfig, ModelConfig
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec

ONLY_CHECKPOINTS = ("awq", "gptq", "compressed-tensors")
"""--quantization that a checkpoint has or has not: numbers are not rounded to it."""
NAMED_IN_ERRORS = 4
FORMAT_FILES = {"safetensors": "huggingface", "gguf": "gguf"}


def check_quantization(config: ModelConfig, spec: ModelSpec) -> None:
    """Whether what was asked for is what the checkpoint is, or can be made of it."""
    wanted, found = config.quantization, None if spec.checkpoint is None else spec.checkpoint.method
    if wanted in (None, "none", found) or (found is None and wanted not in ONLY_CHECKPOINTS):
        return
    advice = f"it is {found}: leave --quantization out, or none to dequantise it" if found else "its config says nothing of quantization"
    raise ConfigError(f"quantization={wanted} does not fit the checkpoint: {advice}", param="quantization")


def check_attention_backend(config: BackendConfig, device_type: str) -> None:
    """Whether the device has it."""
    if device_type != "cuda" and config.attention_backend not in ("auto", "torch"):
        raise ConfigError(f"attention_backend={config.attention_backend} needs a CUDA device; use torch", param="attention_backend")


def check_load_format(config: ModelConfig, files: ModelFiles) -> None:
    """Whether the files are of the format that was asked for."""
    if config.load_format != "auto" and FORMAT_FILES[config.load_format] != files.format:
        raise ConfigError(f"load_format={config.load_format} does not fit {files.path}, which is {files.format}", param="load_format")


def check_experts(config: ModelConfig, spec: ModelSpec, *, keeps_codes: bool) -> None:
    """Raises Unsupported where the matrices of a mixture of experts would be in few bits. `keeps_codes`: the device computes with a
    checkpoint's codes, and not with the numbers that they stand for."""
    stored = None if spec.checkpoint is None or not keeps_codes else spec.checkpoint.method
    method = config.quantization or stored
    if spec.experts is not None and method not in (None, "none"):
        raise Unsupported(
            f"quantization={method}: experts ({spec.architecture}) are computed with as numbers only; --quantization none takes the "
            "checkpoint's numbers, dequantised where it has codes",
            param="quantization",
        )


def check_fit(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], files: ModelFiles, spec: ModelSpec) -> None:
    """Raise one InvalidRequest that names what is missing, unexpected and mis-shaped."""
    mis_shaped = [f"{name} is {found[name]} instead of {wanted[name]}" for name in wanted if name in found and found[name] != wanted[name]]
    problems = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted(name for name in set(found) - set(wanted) if not _known_surplus(name, spec)),
        "of another shape": mis_shaped,
    }
    if text := "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names):
        raise InvalidRequest(f"the weights in {files.path} do not fit its config ({spec.architecture}). Tensors {text}")


def _known_surplus(name: str, spec: ModelSpec) -> bool:
    """Tensors that hold nothing new: the copy of tied embeddings, and tables that old checkpoints kept."""
    return (spec.tied_embeddings and name == "lm_head.weight") or bool(re.search(r"rotary_emb\.inv_freq$|\.masked_bias$", name))


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_IN_ERRORS
    return ", ".join(names[:NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
