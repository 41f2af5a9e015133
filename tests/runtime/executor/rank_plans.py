"""Plans that every number of ranks must answer alike, over a vocabulary of 96."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, PlanRow, RowResult, RowStart, TokenMasks
from ramet.runtime.request import LogprobParams, SamplingParams

VOCAB = 96
PARAMS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.2, top_k=9, top_p=0.9),
    SamplingParams(temperature=0.9, repetition_penalty=1.2, frequency_penalty=0.3, min_new_tokens=4, logit_bias={3: 1.5}),
)


def steps() -> tuple[list[BatchPlan], list[TokenMasks | None]]:
    """A chunk of a prompt that wants no logits; then four requests sampled in four ways: prompts with prompt log-probabilities, then tokens
    that only the device knows. One step forces two tokens on one of them and masks another."""
    chunk = PlanRow("chunk", 4, (5, 6, 7), 0, 0, (63,), False, RowStart(PARAMS[0], 0, None, (5, 6, 7, 8)))
    plans: list[BatchPlan] = [BatchPlan(0, (chunk,))]
    masks: list[TokenMasks | None] = [None]
    length = [0] * len(PARAMS)
    for step in range(7):
        rows = []
        for slot, params in enumerate(PARAMS):
            prompt = tuple((7 * i + slot) % VOCAB for i in range(5 + 4 * slot))
            if step == 0:
                start = RowStart(params, 10 + slot, LogprobParams(0, 2, (1,)), prompt, stop_token_ids=(5,))
                pages = tuple(range(slot * 16, slot * 16 + 8))
                row = PlanRow(str(slot), slot, prompt, 0, 0, pages, True, start, prompt_logprobs_from=0)
            else:
                tokens = (PENDING_TOKEN, 8, 9) if (step, slot) == (3, 3) else (PENDING_TOKEN,)
                row = PlanRow(str(slot), slot, tokens, length[slot], 8, (), True, mask_row=0 if (step, slot) == (3, 0) else None)
            length[slot] = row.end
            rows.append(row)
        plans.append(BatchPlan(step + 1, tuple(rows), num_masks=int(step == 3)))
        masks.append(TokenMasks(np.array([[1 << 11, 0, 1 << 3]], dtype=np.uint32)) if step == 3 else None)
    return plans, masks


def check_equal(alone: Sequence[Sequence[RowResult]], together: Sequence[Sequence[RowResult]]) -> None:
    """The same tokens; log-probabilities but for rounding."""
    for expected, given in zip((row for rows in alone for row in rows), (row for rows in together for row in rows), strict=True):
        assert given.token_ids == expected.token_ids
        for a, b in zip((*expected.logprobs, *expected.prompt_logprobs), (*given.logprobs, *given.prompt_logprobs), strict=True):
            assert a.token_id == b.token_id
            assert a.logprob is b.logprob is None or a.logprob == pytest.approx(b.logprob, abs=1e-3)
