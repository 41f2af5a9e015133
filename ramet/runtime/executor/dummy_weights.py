"""Random weights: the shape and speed of a model without its file. A model divided among ranks has those of the whole one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ramet.runtime.layers.embedding import Embedding
from ramet.runtime.layers.experts import Experts
from ramet.runtime.layers.linear import Linear
from ramet.runtime.layers.rms_norm import HeadNorm, RMSNorm
from ramet.runtime.layers.weight_slot import WHOLE, Slot


def fill_randomly(model: nn.Module, seed: int) -> None:
    """Norms are one; matrices are uniform with the variance that keeps activations at their scale; biases are zero. The same seed on the
    same kind of device gives the same model."""
    for module in model.modules():
        if isinstance(module, RMSNorm | HeadNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, Experts):
            for weight, into in (stack for stacks in module.matrices() for stack in stacks):
                _fill_uniformly(weight, list(into.values()), seed)
                seed += 1
        elif isinstance(module, Linear | Embedding):
            if isinstance(module, Linear) and module.bias is not None:
                module.bias.zero_()
            slots = [slot for name, slot in module.slots().items() if name.endswith("weight")]
            if isinstance(module, Linear) and module.quantized is not None:
                _fill_rounded(module.quantized.codes.device, slots, seed)
            else:
                _fill_uniformly(module.weight, slots, seed)
            seed += 1


def _fill_rounded(device: torch.device, slots: Sequence[Slot], seed: int) -> None:
    """Slots of a weight in few bits round what they are given."""
    generator = torch.Generator(device).manual_seed(seed)
    for slot in slots:
        bound = (3.0 / slot.shape[1]) ** 0.5
        slot.fill(slot.region.of(torch.empty(slot.shape, device=device).uniform_(-bound, bound, generator=generator)))


def _fill_uniformly(weight: torch.Tensor, slots: Sequence[Slot], seed: int) -> None:
    """`slots`: the stacked matrices of a weight, which is drawn as a whole and cut where only a part of it is here."""
    generator = torch.Generator(weight.device).manual_seed(seed)
    num_columns = slots[0].shape[1]
    bound = (3.0 / num_columns) ** 0.5
    if all(slot.region == WHOLE for slot in slots):
        weight.uniform_(-bound, bound, generator=generator)
        return
    whole = weight.new_empty(sum(slot.shape[0] for slot in slots), num_columns).uniform_(-bound, bound, generator=generator)
    for slot, part in zip(slots, torch.split(whole, [slot.shape[0] for slot in slots]), strict=True):
        slot.fill(slot.region.of(part))
