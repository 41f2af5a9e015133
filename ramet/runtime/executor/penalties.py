"""Frequency, presence and repetition penalties: counts on the device, only for slots whose request uses a penalty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ramet.runtime.executor.inputs import device_tensor
from ramet.runtime.request import SamplingParams


class PenaltyCounts:
    """Implements `Penalties` in torch."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._counts = torch.zeros(0, vocab_size, dtype=torch.float32, device=device)
        self._occurred = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._row_of_slot: dict[int, int] = {}
        self._free: list[int] = []

    def __contains__(self, slot: int) -> bool:
        return slot in self._row_of_slot

    def reset(self, slot: int, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        row = self._row_of_slot.get(slot)
        if row is None:
            row = self._row_of_slot[slot] = self._free.pop() if self._free else self._grow()
        self._counts[row].zero_()
        self._occurred[row].zero_()
        self._occurred[row, self._tensor(prompt_ids)] = True
        self.add([slot] * len(output_ids), self._tensor(output_ids))

    def release(self, slot: int) -> None:
        row = self._row_of_slot.pop(slot, None)
        if row is not None:
            self._free.append(row)

    def add(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        rows = self._tensor([self._row_of_slot[slot] for slot in slots])
        self._counts.index_put_((rows, tokens), torch.ones((), device=tokens.device), accumulate=True)
        self._occurred[rows, tokens] = True

    def apply(self, logits: torch.Tensor, at: Sequence[int], slots: Sequence[int], params: Sequence[SamplingParams]) -> None:
        index, rows = self._tensor(at), self._tensor([self._row_of_slot[slot] for slot in slots])
        penalised = logits[index]
        if any(p.repetition_penalty != 1.0 for p in params):
            factor = self._column([p.repetition_penalty for p in params])
            factor = torch.where(penalised > 0, 1.0 / factor, factor)
            penalised = torch.where(self._occurred[rows], penalised * factor, penalised)
        counts = self._counts[rows]
        penalised -= counts * self._column([p.frequency_penalty for p in params])
        penalised -= counts.clamp_(max=1.0) * self._column([p.presence_penalty for p in params])
        logits[index] = penalised

    def _grow(self) -> int:
        """Double the rows; returns one new row and leaves the others free."""
        old = self._counts.shape[0]
        more = max(old, 4)
        self._counts = torch.cat([self._counts, self._counts.new_zeros(more, self._counts.shape[1])])
        self._occurred = torch.cat([self._occurred, self._occurred.new_zeros(more, self._occurred.shape[1])])
        self._free += range(old + 1, old + more)
        return old

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return device_tensor(values, np.int64, self._counts.device)

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        return device_tensor(values, np.float32, self._counts.device)[:, None]
