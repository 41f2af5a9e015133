"""All tokens of a vocabulary at once through an automaton over bytes: a trie, level by level, as numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class _Level(NamedTuple):
    """Nodes of one depth: their parent one level up, the byte that leads to them, and the tokens that end here."""

    parents: Ints
    bytes: Ints
    ends: Ints  # node of the token
    tokens: Ints  # its id


class TokenTrie:
    """Tokens that stand for no bytes are left out."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self.size = len(token_bytes)
        self.levels: list[_Level] = []
        lengths = np.array([len(piece) for piece in token_bytes], dtype=np.int64)
        text = np.frombuffer(b"".join(token_bytes), dtype=np.uint8).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        alive = np.flatnonzero(lengths)
        nodes = np.zeros(len(alive), dtype=np.int64)
        depth = 0
        while len(alive):
            keys, nodes = np.unique(nodes * 256 + text[starts[alive] + depth], return_inverse=True)
            depth += 1
            ending = lengths[alive] == depth
            self.levels.append(_Level(keys // 256, keys % 256, nodes[ending], alive[ending]))
            alive, nodes = alive[~ending], nodes[~ending]


class ByteTable:
    """An automaton that is worked out as far as it is walked. State 0 is dead. `step(state, byte)` names states by any number ≥ 0,
    with 0 for dead; here they are numbered as they come up. `cuts(state)`: bytes at which a class of bytes begins that lead to one
    state each."""

    def __init__(self, step: Callable[[int, int], int], cuts: Callable[[int], Iterable[int]], max_states: int = 20_000) -> None:
        self._step, self._cuts = step, cuts
        self._max_states = max_states
        self._clear()

    def _clear(self) -> None:
        self._next = np.full((64, 256), -1, dtype=np.int32)
        self._next[0] = 0
        self._names = [0]
        self._index = {0: 0}

    def sweep(self, trie: TokenTrie, state: int) -> tuple[list[int], npt.NDArray[np.int64]]:
        """The states that tokens lead to, and of each token which of these; the first stands for no state at all."""
        if len(self._names) > self._max_states:
            self._clear()
        found = np.zeros(trie.size, dtype=np.int64)
        states = np.array([self._number(state)])
        for level in trie.levels:
            parents = states[level.parents]
            alive = np.flatnonzero(parents)
            if not len(alive):
                break
            states = np.zeros(len(parents), dtype=np.int64)
            states[alive] = self._advance(parents[alive], level.bytes[alive])
            found[level.tokens] = states[level.ends]
        present = np.flatnonzero(np.bincount(found, minlength=1) + (np.arange(found.max() + 1) == 0))
        place = np.zeros(found.max() + 1, dtype=np.int64)
        place[present] = np.arange(len(present))
        return [self._names[number] for number in present.tolist()], place[found]

    def _advance(self, states: Ints, byte: Ints) -> Ints:
        following = self._next[states, byte]
        unknown = following < 0
        if unknown.any():
            for state in np.unique(states[unknown]).tolist():
                self._work_out(state)
            following = self._next[states, byte]
        return following.astype(np.int64)

    def _work_out(self, state: int) -> None:
        name = self._names[state]
        for first, end in pairwise(sorted({0, 256, *self._cuts(name)})):
            self._next[state, first:end] = self._number(self._step(name, first))

    def _number(self, name: int) -> int:
        number = self._index.get(name)
        if number is None:
            number = self._index[name] = len(self._names)
            self._names.append(name)
            if number == len(self._next):
                self._next = np.concatenate((self._next, np.full_like(self._next, -1)))
        return number
