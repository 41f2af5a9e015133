"""Choices at token borders. A tokenizer may merge the end of the prompt with the beginning of a choice, so prompt and choice are always
tokenised as one text, and every choice is scored from the same position: the last one up to which all of them agree with the prompt.
What the choices share after that weighs equally in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ramet.errors import InternalError
from ramet.program.backend import ChoiceScore


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """`rows`: prompt + choice as token ids; scored are the tokens from `start` on."""

    rows: tuple[tuple[int, ...], ...]
    start: int

    @property
    def ask_from(self) -> int:
        """One position earlier, since some servers leave the first logprob out."""
        return max(0, self.start - 1)

    def alone(self) -> ScoredRows:
        """The same tokens without their prompt, behind the first token of all texts only (a BOS, where the model has one)."""
        first = self.rows[0][:1] if self.start > 0 else ()
        return ScoredRows(tuple((*first, *row[self.start :]) for row in self.rows), len(first))

    def scores(self, logprobs: Sequence[Sequence[float | None]], alone: Sequence[Sequence[float | None]] | None) -> list[ChoiceScore]:
        """From the logprobs of each row's tail (and of each choice alone)."""
        nothing: list[Sequence[float | None]] = [()] * len(self.rows)
        return [
            ChoiceScore(row[self.start :], self._tail(row, own), self._tail(row, other) if alone is not None else ())
            for row, own, other in zip(self.rows, logprobs, alone if alone is not None else nothing, strict=True)
        ]

    def _tail(self, row: tuple[int, ...], logprobs: Sequence[float | None]) -> tuple[float, ...]:
        count = len(row) - self.start
        if len(logprobs) < count:
            raise InternalError(f"the server sent {len(logprobs)} prompt logprobs where {count} were asked for")
        # Without any left context the first token has no probability; it counts as certain in every choice.
        return tuple(0.0 if value is None else value for value in logprobs[len(logprobs) - count :])


def scored_rows(prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> ScoredRows:
    """`texts`: each prompt + choice, tokenised as one text."""
    start = min(min(_shared(prompt, text), len(text) - 1) for text in texts)
    return ScoredRows(tuple(map(tuple, texts)), start)


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
