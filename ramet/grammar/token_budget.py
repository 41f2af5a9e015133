"""Output that can always be closed: when few tokens are left, masks allow only what leaves enough of them for a shortest ending.

`Closing` belongs to a grammar and knows its automaton; `Budget` is one request's account. A token is allowed where the text after it can be
completed with what is left, counted in bytes (a token is at least one) or, where that is not enough, in the tokens of a shortest ending as
the tokenizer writes it. Of such an ending a request keeps one at hand, its plan: following it always works. While more is left than any
place in the grammar needs, nothing is computed.

Where items of a series must differ the engine knows nothing of it: a token is allowed where the text after it can be completed at all. Such
an automaton is one request's own, since its places are as many as texts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ramet.grammar.arena import INFINITE, NONE
from ramet.grammar.language import Language
from ramet.grammar.token_trie import ByteTable, TokenTrie

MAX_KEPT = 256
MAX_ROWS = 1024
NO_LIMIT = INFINITE - 1
Tokenize = Callable[[bytes], list[int]]


class _After(NamedTuple):
    """What the tokens lead to: the distinct states, their shortest endings in bytes, and of each token which of these it is."""

    states: list[int]
    bytes_left: npt.NDArray[np.int64]
    of_token: npt.NDArray[np.unsignedinteger]
    most: int


class Closing:
    """`tokenize`: bytes → tokens that spell them. Safe to share between threads."""

    def __init__(self, language: Language, trie: TokenTrie, token_bytes: Sequence[bytes], tokenize: Tokenize) -> None:
        walker = language.walker
        self.start = language.start
        self.token_bytes = token_bytes
        self._walker = walker
        self._longest = language.endings
        self._longest_piece = len(trie.levels)
        self._trie = trie
        self._tokenize = tokenize
        self._table = ByteTable(walker.step, walker.cuts)
        self._after: OrderedDict[int, _After] = OrderedDict()
        self._rows: OrderedDict[tuple[int, bytes], npt.NDArray[np.uint32]] = OrderedDict()
        self._endings: dict[int, list[int]] = {}
        self._lock = Lock()
        self.is_guard = walker.series.is_needed

    def worst(self, state: int) -> int:
        """Bytes of the shortest ending at the worst place that can still be reached."""
        with self._lock:
            return self._longest.of(state)

    def walk(self, state: int, token: int, taken: Sequence[int] = ()) -> int:
        """`taken`: the tokens before."""
        with self._lock:
            return self._walker.walk(state, self.token_bytes[token], self._text(taken) if self.is_guard else b"")

    def _text(self, tokens: Sequence[int]) -> bytes:
        return b"".join([self.token_bytes[token] for token in tokens])

    def is_dead(self, state: int) -> bool:
        with self._lock:
            return self._is_dead(state)

    def _is_dead(self, state: int) -> bool:
        return state == NONE or self._walker.is_empty(state)

    def ending(self, state: int, num_left: int, taken: Sequence[int] = ()) -> list[int] | None:
        """Tokens of a shortest ending; None when there are certainly more than `num_left`: millions of bytes need no tokenizer to tell."""
        with self._lock:
            if self.is_guard:
                self._walker.series.text = self._text(taken)
            return self._ending(state) if self._walker.shortest(state) <= num_left * self._longest_piece else None

    def allowed(self, state: int, num_left: int, taken: Sequence[int] = ()) -> npt.NDArray[np.uint32] | None:
        """As mask bits, tokens after which `num_left` more suffice; None when that is true of all that the grammar allows."""
        with self._lock:
            after = self._look(state)
            if after.most <= num_left and not self.is_guard:
                return None
            fits = after.bytes_left <= num_left
            self._walker.series.text = b""
            for index in np.flatnonzero(~fits & (after.bytes_left <= num_left * self._longest_piece)).tolist():
                fits[index] = self._fits(after.states[index], num_left)
            row = self._row(state, after, fits)
            return self._without_repeats(row.copy(), state, after, num_left, taken) if self.is_guard else row

    def _fits(self, state: int, num_left: int) -> bool:
        if state == NONE or self._walker.is_empty(state):
            return False
        return self._walker.shortest(state) <= num_left or len(self._ending(state)) <= num_left

    def _without_repeats(
        self, row: npt.NDArray[np.uint32], state: int, after: _After, num_left: int, taken: Sequence[int]
    ) -> npt.NDArray[np.uint32]:
        """Tokens that end an item must be walked alone to tell where they lead."""
        walker, text = self._walker, self._text(taken)
        is_open = np.array([node != NONE and walker.series.is_uncertain(node) for node in after.states])
        for token in np.flatnonzero(is_open[after.of_token]).tolist():
            bit = np.uint32(1 << (token & 31))
            fits = self._fits(walker.walk(state, self.token_bytes[token], text), num_left)
            row[token >> 5] = row[token >> 5] | bit if fits else row[token >> 5] & ~bit
        return row

    def _row(self, state: int, after: _After, fits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
        """The bits of all tokens whose state `fits`: the same for a whole range of tokens left, and for all requests."""
        key = state, fits.tobytes()
        found = self._rows.get(key)
        if found is None:
            bits = np.packbits(fits[after.of_token], bitorder="little")
            found = self._rows[key] = np.pad(bits, (0, -len(bits) % 4)).view(np.uint32)
            while len(self._rows) > MAX_ROWS:
                self._rows.popitem(last=False)
        return found

    def _ending(self, state: int) -> list[int]:
        if self.is_guard:
            return self._tokenize(self._walker.witness(state))
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
        self._after[state] = _After(states, lengths, of_token.astype(np.min_scalar_type(len(states))), most)
        while len(self._after) > MAX_KEPT:
            self._after.popitem(last=False)
        return self._after[state]


class ClosingSource(NamedTuple):
    """`make` is called when first needed, or was already (`is_made`). `is_guard`: it is not only about endings, and this request's own.
    `worst`: bytes of the shortest ending at the worst place; INFINITE
    when there is no bound."""

    make: Callable[[], Closing]
    worst: int
    is_made: bool = False
    is_guard: bool = False


class Budget:
    """`num_tokens` may be accepted in all. `always`: tokens that a mask keeps whatever is left (ends of text)."""

    def __init__(self, source: ClosingSource, num_tokens: int, always: Sequence[int]) -> None:
        self._source = source
        self._num_tokens = num_tokens
        self._always = np.array(always, dtype=np.int64)
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
        """The next token must be looked at: places are in reach that need all that is left, or more."""
        num_left = self._num_tokens - len(self._taken)
        if num_left > self._source.worst:
            return False
        place = self.place if self._source.worst < INFINITE else NONE
        return place == NONE or self._source.make().worst(place) >= num_left

    @property
    def place(self) -> int:
        """Where the text so far stands in the language; NONE where that is not known. Ends of text do not count as text."""
        return self._state(self._source.make()) if self._source.is_made else NONE

    def narrow(self, row: npt.NDArray[np.uint32]) -> None:
        """Take out of a mask what would leave too little."""
        closing, num_left = self._source.make(), self._num_tokens - len(self._taken)
        state = self._state(closing)
        if state == NONE:
            return  # an end was taken
        plan = self._plan_within(closing, state, num_left)
        if plan is None and not closing.is_guard:
            return
        allowed = closing.allowed(state, NO_LIMIT if plan is None else num_left - 1, self._taken)
        if allowed is None:
            return
        kept = row[self._always >> 5] & (np.uint32(1) << (self._always & 31).astype(np.uint32))
        row[: len(allowed)] &= allowed
        row[len(allowed) :] = 0
        np.bitwise_or.at(row, self._always >> 5, kept)
        if plan and self.num_legal(plan[:1]):
            row[plan[0] >> 5] |= np.uint32(1 << (plan[0] & 31))

    def _plan_within(self, closing: Closing, state: int, num_left: int) -> list[int] | None:
        """None where it was too little from the beginning, or there is no limit."""
        ending = closing.ending(state, num_left, self._taken) if self._num_tokens < NO_LIMIT else None
        plan = None if ending is None else self._current_plan(ending)
        return plan if plan is None or len(plan) <= num_left else None

    def num_legal(self, token_ids: Sequence[int]) -> int:
        """How many of these come before one that a guard forbids. Ends of text are not for it to judge."""
        if not self._source.is_guard:
            return len(token_ids)
        closing = self._source.make()
        state, taken = self._state(closing), list(self._taken)
        for index, token in enumerate(token_ids):
            if token in self._always:
                return len(token_ids)
            state = closing.walk(state, token, taken)
            if closing.is_dead(state):
                return index
            taken.append(token)
        return len(token_ids)

    def affords(self, token_ids: Sequence[int]) -> bool:
        """Whether the text can be completed after these tokens. Of what is forced, the tokenizer's spelling may be a longer one."""
        if not self.is_low:
            return True
        closing, num_left = self._source.make(), self._num_tokens - len(self._taken)
        state, taken = self._state(closing), list(self._taken)
        if state == NONE or self._plan_within(closing, state, num_left) is None:
            return True  # there is nothing to save
        num_left -= len(token_ids)
        for token in token_ids:
            state = closing.walk(state, token, taken)
            taken.append(token)
        rest = None if state == NONE else closing.ending(state, max(num_left, 0), taken)
        return rest is not None and len(rest) <= num_left

    def _state(self, closing: Closing) -> int:
        state = self._states[-1] if self._states else closing.start
        for index in range(len(self._states), len(self._taken)):
            state = closing.walk(state, self._taken[index], self._taken[:index])
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
