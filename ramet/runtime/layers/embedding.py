"""Token embedding."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.layers.weight_slot import WeightSlot, empty_parameter, slot_of


class Embedding(nn.Module):
    """[T] token ids → [T, hidden], times `scale` (rounded to the weight's type, as the models were trained)."""

    def __init__(self, vocab_size: int, hidden_size: int, *, scale: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.scale = torch.tensor(scale, dtype=dtype).item()
        self.weight = empty_parameter(vocab_size, hidden_size, dtype=dtype, device=device)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        hidden = F.embedding(token_ids, self.weight)
        return hidden if self.scale == 1.0 else hidden.mul_(self.scale)

    def slots(self) -> dict[str, WeightSlot]:
        return {"weight": slot_of(self.weight)}
