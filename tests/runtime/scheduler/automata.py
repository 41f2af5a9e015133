"""Grammars for tests as finite automata: `source` is JSON of one {token: next state} per state, and of the states where a text may end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ramet.runtime.request import GrammarSpec

EOS = 0


def automaton(moves: Sequence[Mapping[int, int]], ends: Sequence[int]) -> GrammarSpec:
    return GrammarSpec("regex", json.dumps([[sorted(move.items()) for move in moves], sorted(ends)]))


def line(*choices: int | Sequence[int]) -> GrammarSpec:
    """Each token, or one of several, in turn; then the end."""
    moves = [dict.fromkeys([choice] if isinstance(choice, int) else choice, i + 1) for i, choice in enumerate(choices)]
    return automaton([*moves, {}], [len(moves)])


class AutomatonCompiler:
    def compile(self, kind: str, source: str) -> Automaton:
        moves, ends = json.loads(source)
        return Automaton([dict(move) for move in moves], frozenset(ends))

    def close(self) -> None:
        """It started nothing."""


class Automaton:
    def __init__(self, moves: Sequence[Mapping[int, int]], ends: frozenset[int]) -> None:
        self.moves, self.ends = moves, ends

    def matcher(self, max_tokens: int | None = None) -> AutomatonMatcher:
        return AutomatonMatcher(self)


class AutomatonMatcher:
    """Names at most `MAX_RUN` forced tokens at once: there may be more behind them, without end."""

    MAX_RUN = 5

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._path = [0]

    @property
    def _state(self) -> int:
        return self._path[-1]

    def accept(self, token_ids: Sequence[int]) -> int:
        for count, token in enumerate(token_ids):
            following = self._automaton.moves[self._state].get(token)
            if following is None:
                return count
            self._path.append(following)
        return len(token_ids)

    def rollback(self, num_tokens: int) -> None:
        assert 0 <= num_tokens < len(self._path)
        self._path = self._path[: len(self._path) - num_tokens]

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        row[:] = 0
        for token in (*self._automaton.moves[self._state], *([EOS] if self.complete else [])):
            row[token // 32] |= np.uint32(1 << (token % 32))

    def start_mask(self, row: npt.NDArray[np.uint32]) -> None:
        self.fill_mask(row)

    def forced_tokens(self) -> list[int]:
        state, forced = self._state, []
        while len(forced) < self.MAX_RUN and len(self._automaton.moves[state]) == 1 and state not in self._automaton.ends:
            ((token, state),) = self._automaton.moves[state].items()
            forced.append(token)
        return forced

    @property
    def complete(self) -> bool:
        return self._state in self._automaton.ends

    @property
    def stopped(self) -> bool:
        return self.complete and not self._automaton.moves[self._state]
