"""Decode steps on the CPU without tensors made for them: the C++ step follows the slots' own page tables.

A step of one row takes 4 ms, and small tensor operations right after it, on cold caches, 0.1 ms each: this path needs six array
operations where `SlotTables.build` needs thirty. Its twin is `build`, which gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ramet.runtime.attention.attention_backend import KVPool, SharedPrefix
from ramet.runtime.executor.inputs import SlotTables
from ramet.runtime.executor.token_choice import TokenChoice
from ramet.runtime.models.decoder_step import DecodeRows, DecoderStep
from ramet.runtime.plan import PENDING_TOKEN, PlanRow


@dataclass(frozen=True, slots=True)
class CpuResult:
    """Implements `FastResult`."""

    logits: torch.Tensor
    slots: torch.Tensor
    choice: TokenChoice

    @property
    def tokens(self) -> torch.Tensor:
        return self.choice.likeliest(self.logits, range(len(self.logits)))


class CpuDecode:
    """Implements `FastPath` for steps whose rows all have one token."""

    def __init__(self, step: DecoderStep, pool: KVPool, tables: SlotTables, choice: TokenChoice) -> None:
        self._step, self._pool, self._page_size, self._choice = step, pool, tables.page_size, choice
        self._pages, self._last_token = tables.pages.numpy(), tables.last_token.numpy()
        self._logits = torch.empty(0, step.vocab_size)

    def covers(self, rows: Sequence[PlanRow]) -> bool:
        return all(len(row.token_ids) == 1 for row in rows)

    def run(self, rows: Sequence[PlanRow], shared: Sequence[SharedPrefix]) -> CpuResult:
        """The C++ step finds shared prefixes by itself."""
        columns = np.array([(row.slot, row.token_ids[0], row.start) for row in rows], dtype=np.int64)
        slots, tokens, positions = np.ascontiguousarray(columns.T)
        places = self._pages[slots, positions // self._page_size].astype(np.int64) * self._page_size + positions % self._page_size
        given = np.where(tokens == PENDING_TOKEN, self._last_token[slots], tokens)
        if len(self._logits) < len(rows):
            self._logits = torch.empty(len(rows), self._step.vocab_size)
        logits = self._logits[: len(rows)]
        self._step.decode(DecodeRows(given, positions, places, slots, self._pages), self._pool, logits)
        return CpuResult(logits, torch.from_numpy(slots), self._choice)
