"""What is done to whole rows of logits, whether they lie in torch's tensors or in numpy's arrays. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ramet.runtime.executor.draws import Draw
from ramet.runtime.request import SamplingParams


class Array(Protocol):
    """A tensor or an array: both are read and written by lists of places."""

    def __getitem__(self, places: Any, /) -> Any: ...

    def __setitem__(self, places: Any, values: Any, /) -> None: ...


A = TypeVar("A", bound=Array)
A_contra = TypeVar("A_contra", bound=Array, contravariant=True)


class TokenChoice(Protocol[A]):
    """`logits` are [n, vocab] float32, contiguous; `rows` name some of them. A row's token depends on nothing but the row."""

    def forbid(self, logits: A, rows: Sequence[int], masks: Sequence[int], bits: npt.NDArray[np.uint32]) -> None:
        """-inf in row i wherever `bits[masks[i]]` (bit t of a line: token t) is not set."""

    def likeliest(self, logits: A, rows: Sequence[int]) -> A:
        """Token ids [len(rows)]."""

    def draw(self, logits: A, rows: Sequence[int], draws: Sequence[Draw]) -> A:
        """Token ids [len(rows)], by the distribution that `random_choice` describes. May overwrite the rows."""


class Penalties(Protocol[A_contra]):
    """How often the requests in penalised slots have put out each token, and which tokens occurred at all (prompt included)."""

    def reset(self, slot: int, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        """Start counting for a request in `slot`, from what it brings."""

    def release(self, slot: int) -> None: ...

    def add(self, slots: Sequence[int], tokens: A_contra) -> None:
        """Count one more output token per slot; a slot may occur several times."""

    def apply(self, logits: A_contra, at: Sequence[int], slots: Sequence[int], params: Sequence[SamplingParams]) -> None:
        """Penalise rows `at` of `logits` [S, vocab] in place. Repetition first (Keskar et al. 2019: positive logits are divided,
        negative ones multiplied), then frequency * count + presence * (count > 0), as OpenAI defines them."""


@dataclass(frozen=True, slots=True)
class RowArithmetic(Generic[A]):
    """All that the sampler does with numbers. `array`: plain values, and their type, in the kind of array that the rows are."""

    choice: TokenChoice[A]
    penalties: Penalties[A]
    array: Callable[[object, npt.DTypeLike], A]


def is_penalised(params: SamplingParams) -> bool:
    return bool(params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1.0)
