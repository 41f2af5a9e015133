"""Output that can always be closed: when few tokens are left, masks allow only what leaves enough of them for a shortest ending.

`Closing` belongs to a grammar and knows its automaton; `Budget` is one request's account. A token is allowed where the text after it can be
completed with what is left, counted in bytes (a token is at least one) or, where that is not enough, in the tokens of a shortest ending as
the tokenizer writes it. Of such an ending a request keeps one at hand, its plan: following it always works. While more is left than any
place in the grammar needs, nothing is computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ramet.grammar.arena import NONE
from ramet.grammar.derivatives import INFINITE, Walker
from ramet.grammar.token_trie import ByteTable, TokenTrie

MAX_KEPT = 64
Tokenize = Callable[[bytes], list[int]]


class _After(NamedTuple):
    """What the tokens lead to: the distinct states, their shortest endings in bytes, and of each token which of these it is."""

    states: list[int]
    bytes_left: npt.NDArray[np.int64]
    of_token: npt.NDArray[np.int64]
    most: int


class Closing:
    """`tokenize`: bytes → tokens that spell them. Safe to share between threads."""

    def __init__(self, walker: Walker, start: int, trie: TokenTrie, token_bytes: Sequence[bytes], tokenize: Tokenize) -> None:
        self.start = start
        self.token_bytes = token_bytes
        self._walker = walker
        self._trie = trie
        self._tokenize = tokenize
        self._table = ByteTable(walker.step)
        self._after: OrderedDict[int, _After] = OrderedDict()
        self._endings: dict[int, list[int]] = {}
        self._lock = Lock()

    def walk(self, state: int, token: int) -> int:
        with self._lock:
            return self._walker.walk(state, self.token_bytes[token])

    def ending(self, state: int) -> list[int]:
        """Tokens of a shortest ending."""
        with self._lock:
            return self._ending(state)

    def allowed(self, state: int, num_left: int) -> npt.NDArray[np.bool_] | None:
        """Tokens after which `num_left` more suffice; None when that is true of all that the grammar allows."""
        with self._lock:
            after = self._look(state)
            if after.most <= num_left:
                return None
            fits = after.bytes_left <= num_left
            for index in np.flatnonzero(~fits & (after.bytes_left < INFINITE)).tolist():
                fits[index] = len(self._ending(after.states[index])) <= num_left
            found: npt.NDArray[np.bool_] = fits[after.of_token]
            return found

    def _ending(self, state: int) -> list[int]:
        if state not in self._endings:
            if len(self._endings) > 50_000:
                self._endings.clear()
            self._endings[state] = self._tokenize(self._walker.witness(state))
        return self._endings[state]

    def _look(self, state: int) -> _After:
        if state in self._after:
            self._after.move_to_end(state)
            return self._after[state]
        states, of_token = self._table.sweep(self._trie, state)
        lengths = np.array([INFINITE if node == NONE else self._walker.shortest(node) for node in states])
        most = int(max(lengths[lengths < INFINITE], default=0))
        self._after[state] = _After(states, lengths, of_token, most)
        while len(self._after) > MAX_KEPT:
            self._after.popitem(last=False)
        return self._after[state]


class ClosingSource(NamedTuple):
    """`make` is called when first needed. `worst`: bytes of the shortest ending at the worst place; INFINITE when there is no bound."""

    make: Callable[[], Closing]
    worst: int


class Budget:
    """`num_tokens` may be accepted in all. `always`: tokens that a mask keeps whatever is left (ends of text)."""

    def __init__(self, source: ClosingSource, num_tokens: int, always: Sequence[int]) -> None:
        self._source = source
        self._num_tokens = num_tokens
        self._always = list(always)
        self._taken: list[int] = []
        self._states: list[int] = []  # after each of the tokens taken that have been walked
        self._plan: list[int] | None = None
        self._planned_at = 0

    def accept(self, token_ids: Sequence[int]) -> None:
        self._taken += token_ids

    def rollback(self, num_tokens: int) -> None:
        if num_tokens:
            del self._taken[-num_tokens:]
            del self._states[len(self._taken) :]
        if self._planned_at > len(self._taken):
            self._plan = None

    @property
    def is_low(self) -> bool:
        """The next token must be looked at."""
        return self.num_unwatched <= 0

    @property
    def num_unwatched(self) -> int:
        """How many tokens may come before one must be looked at."""
        return self._num_tokens - len(self._taken) - self._source.worst

    def narrow(self, row: npt.NDArray[np.uint32]) -> None:
        """Take out of a mask what would leave too little."""
        closing, num_left = self._source.make(), self._num_tokens - len(self._taken)
        state = self._state(closing)
        if state == NONE:
            return  # an end was taken
        plan = self._current_plan(closing.ending(state))
        allowed = closing.allowed(state, num_left - 1) if len(plan) <= num_left else None  # else it was too little from the beginning
        if allowed is None:
            return
        allowed[self._always] = True
        bits = np.zeros(row.nbytes, dtype=np.uint8)
        packed = np.packbits(allowed, bitorder="little")
        bits[: len(packed)] = packed
        row &= bits.view(np.uint32)
        if plan:
            row[plan[0] >> 5] |= np.uint32(1 << (plan[0] & 31))

    def affords(self, token_ids: Sequence[int]) -> bool:
        """Whether the text can be completed after these tokens. Of what is forced, the tokenizer's spelling may be a longer one."""
        if not self.is_low:
            return True
        closing, num_left = self._source.make(), self._num_tokens - len(self._taken)
        state = self._state(closing)
        if state == NONE or len(self._current_plan(closing.ending(state))) > num_left:
            return True  # there is nothing to save
        num_left -= len(token_ids)
        for token in token_ids:
            state = closing.walk(state, token)
        return state != NONE and num_left >= 0 and len(closing.ending(state)) <= num_left

    def _state(self, closing: Closing) -> int:
        state = self._states[-1] if self._states else closing.start
        for token in self._taken[len(self._states) :]:
            state = closing.walk(state, token)
            self._states.append(state)
        return state

    def _current_plan(self, fresh: list[int]) -> list[int]:
        """The shorter of the old plan, if it was followed, and a fresh one."""
        since = self._taken[self._planned_at :]
        followed = self._plan is not None and self._plan[: len(since)] == since
        if self._plan is not None and followed and len(self._plan) - len(since) < len(fresh):
            fresh = self._plan[len(since) :]
        self._plan, self._planned_at = fresh, len(self._taken)
        return fresh
