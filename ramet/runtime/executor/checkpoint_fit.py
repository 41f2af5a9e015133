"""Whether a checkpoint is what the model's config and the options ask for. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ramet.errors import ConfigError, InvalidRequest
from ramet.runtime.config import ModelConfig
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec

ONLY_CHECKPOINTS = ("awq", "gptq", "compressed-tensors")
"""--quantization that a checkpoint has or has not: numbers are not rounded to it."""
NAMED_IN_ERRORS = 4


def check_quantization(config: ModelConfig, spec: ModelSpec) -> None:
    """Whether what was asked for is what the checkpoint is, or can be made of it."""
    wanted, found = config.quantization, None if spec.checkpoint is None else spec.checkpoint.method
    if wanted in (None, "none", found) or (found is None and wanted not in ONLY_CHECKPOINTS):
        return
    advice = (
        f"it is {found}: leave --quantization out, or none to dequantise it" if found else "its config.json says nothing of quantization"
    )
    raise ConfigError(f"quantization={wanted} does not fit the checkpoint: {advice}", param="quantization")


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
