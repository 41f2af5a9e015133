"""Frequency, presence and repetition penalties on the CPU. The twin of `penalties`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ramet.runtime.request import SamplingParams

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Counts:
    """[vocab] each."""

    output: Floats
    occurred: npt.NDArray[np.bool_]


class CpuPenalties:
    """Implements `Penalties`."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._slots: dict[int, _Counts] = {}

    def reset(self, slot: int, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        counts = self._slots[slot] = _Counts(np.zeros(self._vocab_size, np.float32), np.zeros(self._vocab_size, np.bool_))
        counts.occurred[list(prompt_ids)] = True
        self.add([slot] * len(output_ids), np.array(output_ids, dtype=np.int64))

    def release(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def add(self, slots: Sequence[int], tokens: npt.NDArray[Any]) -> None:
        for slot, token in zip(slots, tokens.tolist(), strict=True):
            self._slots[slot].output[token] += 1
            self._slots[slot].occurred[token] = True

    def apply(self, logits: npt.NDArray[Any], at: Sequence[int], slots: Sequence[int], params: Sequence[SamplingParams]) -> None:
        for row, slot, wanted in zip(at, slots, params, strict=True):
            _penalise(logits[row], self._slots[slot], wanted)


def _penalise(logits: Floats, counts: _Counts, params: SamplingParams) -> None:
    if params.repetition_penalty != 1.0:
        factor = np.float32(params.repetition_penalty)
        seen = logits[counts.occurred]
        logits[counts.occurred] = seen * np.where(seen > 0, np.float32(1) / factor, factor)
    if params.frequency_penalty or params.presence_penalty:
        logits -= counts.output * np.float32(params.frequency_penalty)
        logits -= np.minimum(counts.output, 1) * np.float32(params.presence_penalty)
