"""From logits to tokens, all rows of a step at once; a row pays only for the parameters it uses.

Order of application (SGLang's; what comes first sees what came before it):

    1. repetition, frequency, presence penalty     on slots that use them
    2. min_new_tokens                              stop ids get the lowest finite logit
    3. grammar mask                                forbidden tokens get -inf
    4. logit_bias                                  added; cannot revive a forbidden token
    5. temperature, then top_k, top_p, min_p       judged together, see `random_choice`
    6. greedy rows: argmax after step 4; the others: inverse CDF at hash(seed, output position)

Stop ids keep a finite logit in step 2 so that a grammar which allows nothing but the end has the last word. No torch: `RowArithmetic`
brings it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from ramet.runtime.executor.draws import Draw, uniforms
from ramet.runtime.executor.token_choice import A, RowArithmetic, is_penalised
from ramet.runtime.plan import PlanRow, RowStart, TokenMasks

_FORBIDDEN = float(np.finfo(np.float32).min)


@dataclass(slots=True)
class SlotSampling:
    """How the request in a slot samples. `counted`: length of the sequence whose output tokens are counted for penalties."""

    start: RowStart
    penalised: bool
    counted: int

    def output_position(self, row: PlanRow) -> int:
        """Number of output tokens before the one that `row` samples."""
        return row.end - len(self.start.prompt_ids)


class Sampler(Generic[A]):
    """State per slot and the sampling of a step. Used by one thread; `begin` and `sample` alternate in the order of the steps."""

    def __init__(self, vocab_size: int, arithmetic: RowArithmetic[A], *, chooses: bool = True) -> None:
        """Without `chooses` it only remembers what each slot's request is: somebody else samples."""
        self._vocab_size, self._chooses, self._array = vocab_size, chooses, arithmetic.array
        self._choice, self._penalties = arithmetic.choice, arithmetic.penalties
        self._slots: dict[int, SlotSampling] = {}

    def __getitem__(self, slot: int) -> SlotSampling:
        return self._slots[slot]

    def begin(self, rows: Sequence[PlanRow]) -> None:
        """Reset the slots of new requests; count output tokens that come with the plan instead of from sampling (forced ones)."""
        for row in rows:
            if row.reset is not None:
                self._reset(row.slot, row.reset)
            if (state := self._slots[row.slot]).penalised and row.end > state.counted:
                forced = row.token_ids[max(state.counted - row.start, 0) :]
                self._penalties.add([row.slot] * len(forced), self._array(forced, np.int64))
                state.counted = row.end

    def sample(self, rows: Sequence[PlanRow], logits: A, masks: TokenMasks | None) -> A:
        """One token [S] for each of `rows`, from `logits` [S, vocab] float32, which are overwritten."""
        states = [self._slots[row.slot] for row in rows]
        penalised = [i for i, state in enumerate(states) if state.penalised]
        if penalised:
            slots, params = [rows[i].slot for i in penalised], [states[i].start.sampling for i in penalised]
            self._penalties.apply(logits, penalised, slots, params)
        self._forbid_stops(rows, states, logits)
        if masks is not None:
            self._apply_masks(rows, logits, masks)
        self._add_biases(states, logits)
        tokens = self._choose(rows, states, logits)
        if penalised:
            self._penalties.add([rows[i].slot for i in penalised], tokens[self._array(penalised, np.int64)])
            for i in penalised:
                states[i].counted = rows[i].end + 1
        return tokens

    def is_plain(self, rows: Sequence[PlanRow]) -> bool:
        """Whether the tokens of `rows` are nothing but the likeliest ones of untouched logits."""
        return all(row.mask_row is None and _is_plain(self._slots[row.slot], row) for row in rows)

    def _reset(self, slot: int, start: RowStart) -> None:
        penalised = self._chooses and is_penalised(start.sampling)
        self._slots[slot] = SlotSampling(start, penalised, len(start.prompt_ids) + len(start.output_ids))
        if penalised:
            self._penalties.reset(slot, start.prompt_ids, start.output_ids)
        else:
            self._penalties.release(slot)

    def _forbid_stops(self, rows: Sequence[PlanRow], states: Sequence[SlotSampling], logits: A) -> None:
        early = [
            (i, token)
            for i, (row, state) in enumerate(zip(rows, states, strict=True))
            if state.start.sampling.min_new_tokens > state.output_position(row)
            for token in state.start.stop_token_ids
            if token < self._vocab_size
        ]
        if early:
            where = self._array(early, np.int64)
            logits[where[:, 0], where[:, 1]] = _FORBIDDEN

    def _apply_masks(self, rows: Sequence[PlanRow], logits: A, masks: TokenMasks) -> None:
        constrained = [(i, row.mask_row) for i, row in enumerate(rows) if row.mask_row is not None]
        if constrained:
            self._choice.forbid(logits, [i for i, _ in constrained], [mask_row for _, mask_row in constrained], masks.bits)

    def _add_biases(self, states: Sequence[SlotSampling], logits: A) -> None:
        biased = [
            (i, token, bias)
            for i, state in enumerate(states)
            for token, bias in state.start.sampling.logit_bias.items()
            if 0 <= token < self._vocab_size
        ]
        if biased:
            row, token, bias = zip(*biased, strict=True)
            where = self._array([row, token], np.int64)
            logits[where[0], where[1]] += self._array(bias, np.float32)

    def _choose(self, rows: Sequence[PlanRow], states: Sequence[SlotSampling], logits: A) -> A:
        drawing = [i for i, state in enumerate(states) if not state.start.sampling.greedy]
        greedy = [i for i, state in enumerate(states) if state.start.sampling.greedy]
        if not drawing:
            return self._choice.likeliest(logits, greedy)
        seeds = [states[i].start.seed for i in drawing]
        numbers = uniforms(seeds, [states[i].output_position(rows[i]) for i in drawing])
        draws = [Draw(states[i].start.sampling, float(number)) for i, number in zip(drawing, numbers, strict=True)]
        if not greedy:
            return self._choice.draw(logits, drawing, draws)
        tokens = self._array([0] * len(rows), np.int64)
        at_greedy, at_drawing = (self._array(part, np.int64) for part in (greedy, drawing))
        tokens[at_greedy] = self._choice.likeliest(logits, greedy)
        tokens[at_drawing] = self._choice.draw(logits, drawing, draws)
        return tokens


def _is_plain(state: SlotSampling, row: PlanRow) -> bool:
    start = state.start
    params = start.sampling
    if state.penalised or start.logprobs is not None or params.logit_bias or not params.greedy:
        return False
    return params.min_new_tokens <= state.output_position(row) or not start.stop_token_ids
