"""The seam between constraints and the scheduler: a compiled grammar is shared and immutable, a matcher is one request's place in it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token id → the bytes it stands for (special tokens: b""), plus what ends a text. `size` is the width of the logits and may
    exceed len(token_bytes); ids past the end are never allowed."""

    token_bytes: tuple[bytes, ...]
    special_ids: frozenset[int]
    eos_ids: tuple[int, ...]
    size: int


class MaskTask(NamedTuple):
    """A mask that is still to be computed: `run` it, or have `engine`, the constraint engine's own matcher, write it, and `finish`.
    `place`: equal for tasks of which one will do, since masks are remembered by it; None where it is not known."""

    run: Callable[[], None]
    engine: Any
    finish: Callable[[], None]
    place: Hashable | None


class Matcher(Protocol):
    """One request's position in a grammar. Not thread-safe; cheap to create."""

    def accept(self, token_ids: Sequence[int]) -> int:
        """Advance over `token_ids`; returns how many were legal (all of them, when they came from our masks)."""

    def rollback(self, num_tokens: int) -> None:
        """Take the last `num_tokens` accepted tokens back."""

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        """Write the allowed next tokens into `row`, ceil(vocab/32) words (layout: `TokenMasks`). EOS ids are allowed exactly where the
        text so far is complete."""

    def start_mask(self, row: npt.NDArray[np.uint32]) -> MaskTask | None:
        """`fill_mask` in two halves, for who fills many rows: None where the first did it all."""

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next whatever the model says; [] when there is a choice. Does not advance."""

    @property
    def complete(self) -> bool:
        """The text so far is a full sentence of the grammar (it might also go on)."""

    @property
    def stopped(self) -> bool:
        """Nothing but the end can follow."""


class CompiledGrammar(Protocol):
    """Immutable; cached by GrammarSpec; safe to share between threads."""

    def matcher(self, max_tokens: int | None = None) -> Matcher:
        """`max_tokens`: how many tokens may be accepted in all. Masks then see to it that the text can be completed with them, if the
        grammar allows that from the start and is one whose shortest endings are known. None: no limit."""


class MaskFiller(Protocol):
    """Fills the rows of a step."""

    def fill(self, matchers: Sequence[Matcher | None], bits: npt.NDArray[np.uint32]) -> None:
        """Row i of `bits` as `matchers[i].fill_mask` would; left as it is for None. No matcher may come twice."""


class SerialMasks:
    """The slow twin of every other `MaskFiller`."""

    def fill(self, matchers: Sequence[Matcher | None], bits: npt.NDArray[np.uint32]) -> None:
        for row, matcher in zip(bits, matchers, strict=True):
            if matcher is not None:
                matcher.fill_mask(row)


class GrammarCompiler(Protocol):
    """Bound to one vocabulary."""

    def compile(self, kind: str, source: str) -> CompiledGrammar:
        """Raises `GrammarError` naming the place."""

    def close(self) -> None:
        """End what it started: threads, processes. Idempotent; nothing is compiled afterwards."""
