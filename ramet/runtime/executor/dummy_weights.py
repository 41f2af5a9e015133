"""Random weights: the shape and speed of a model without its file."""

from __future__ import annotations

import torch
from torch import nn

from ramet.runtime.layers.rms_norm import HeadNorm, RMSNorm


def fill_randomly(model: nn.Module, seed: int) -> None:
    """Norms are one; matrices are uniform with the variance that keeps activations at their scale; biases are zero. The same seed on the
    same kind of device gives the same model."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, RMSNorm | HeadNorm):
                parameter.fill_(1.0)
            elif name == "bias":
                parameter.zero_()
            else:
                _fill_uniformly(parameter, seed)
                seed += 1


def _fill_uniformly(weight: torch.Tensor, seed: int) -> None:
    generator = torch.Generator(weight.device).manual_seed(seed)
    bound = (3.0 / weight.shape[-1]) ** 0.5
    weight.uniform_(-bound, bound, generator=generator)
