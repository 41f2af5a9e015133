"""Token embedding."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.layers.rank_group import RankGroup
from ramet.runtime.layers.weight_slot import WHOLE, Region, WeightSlot, empty_parameter


class Embedding(nn.Module):
    """[T] token ids → [T, hidden], times `scale` (rounded to the weight's type, as the models were trained). With `ranks`, rows `held`
    of the table are here and the others elsewhere."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        scale: float,
        dtype: torch.dtype,
        device: torch.device,
        held: range,
        ranks: RankGroup | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size, self.held, self.ranks = vocab_size, held, ranks
        self.scale = torch.tensor(scale, dtype=dtype).item()
        self.weight = empty_parameter(len(held), hidden_size, dtype=dtype, device=device)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        hidden = F.embedding(token_ids, self.weight) if self.ranks is None else self._divided(token_ids, self.ranks)
        return hidden if self.scale == 1.0 else hidden.mul_(self.scale)

    def slots(self) -> dict[str, WeightSlot]:
        region = WHOLE if len(self.held) == self.vocab_size else Region((self.held,))
        return {"weight": WeightSlot(self.weight, (self.vocab_size, self.weight.shape[1]), region=region)}

    def _divided(self, token_ids: torch.Tensor, ranks: RankGroup) -> torch.Tensor:
        """Every row comes from the one rank that has it; the others add zeros."""
        local = token_ids - self.held.start
        elsewhere = (local < 0) | (local >= len(self.held))
        hidden = F.embedding(local.masked_fill_(elsewhere, 0), self.weight).masked_fill_(elsewhere[:, None], 0)
        return ranks.all_reduce(hidden)
