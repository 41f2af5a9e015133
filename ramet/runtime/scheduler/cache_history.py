"""What was asked of the cache, remembered longer than the cache itself can: why a prompt missed, and what would have been possible."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ramet.runtime.cache.eviction import EvictionQueue, lru
from ramet.runtime.cache.radix_tree import RadixTree, TokenArray
from ramet.runtime.cache_view import Divergence, Lookup, MissReason
from ramet.runtime.scheduler.request_state import RequestState

_MAX_LOOKUPS = 1024
_MAX_PLACES = 256
_SEEN_TOKENS = 192
_GRAM = 8  # tokens in a row that say "the same text again"
_LEAST_MEMORY = 1 << 18


@dataclass(frozen=True, slots=True)
class _Admission:
    name: str
    namespace: str
    tokens: TokenArray
    num_reusable: int
    num_cached: int
    num_loaded: int


@dataclass(frozen=True, slots=True)
class _End:
    namespace: str
    tokens: TokenArray


class CacheHistory:
    """A second tree, of tokens without KV, holds what was asked and said, up to `memory` tokens. What it would have found is what a
    cache of unlimited size would have found. Events are taken at once and looked into by `settle`, when nobody waits for it."""

    def __init__(self, page_size: int, pool_tokens: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._leaves = EvictionQueue(lru)
        self._tree = RadixTree(page_size, self._leaves.push)
        self._memory = max(_LEAST_MEMORY, 4 * pool_tokens)
        self._lookups: OrderedDict[str, tuple[Lookup, TokenArray]] = OrderedDict()
        self._places: OrderedDict[bytes, Divergence] = OrderedDict()
        self._ticks: list[tuple[int, float]] = []
        self._possible_tokens = 0
        self._events: deque[_Admission | _End] = deque()

    def admitted(self, state: RequestState, num_cached: int, tick: int) -> None:
        """`state` starts for the first time with `num_cached` tokens; `tick` is the cache's own time."""
        prompt, num_reusable = state.tokens[: state.prompt_len], min(len(state.reusable), state.prompt_len)
        name = state.request_id.rpartition("#")[0] or state.request_id
        self._events.append(_Admission(name, state.request.cache_namespace, prompt, num_reusable, num_cached, state.loaded_tokens))
        self._note_time(tick)

    def left(self, state: RequestState) -> None:
        """What was said can be gone on from, too."""
        self._events.append(_End(state.request.cache_namespace, state.computed_tokens()))

    def settle(self) -> None:
        """Look into what has happened."""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, _Admission):
                self._look_up(event)
            self._add(event.namespace, event.tokens)

    @property
    def possible_tokens(self) -> int:
        """Prompt tokens that a cache of unlimited size would have had."""
        self.settle()
        return self._possible_tokens

    def _look_up(self, asked: _Admission) -> None:
        matched, seen = self._tree.continuation(asked.namespace, asked.tokens, _SEEN_TOKENS)
        possible = max(asked.num_cached, min(matched - matched % self._tree.page_size, asked.num_reusable))
        self._possible_tokens += possible
        lookup = Lookup(
            request_id=asked.name,
            prompt_tokens=len(asked.tokens),
            cached_tokens=asked.num_cached,
            possible_tokens=possible,
            loaded_tokens=asked.num_loaded,
            reason=self._reason(asked, possible, matched, seen),
            position=matched,
            seen=tuple(seen.tolist()),
        )
        self._remember(lookup, asked.tokens)

    def explain(self, request_id: str) -> Lookup | None:
        """The last request of this name; None when it is too long ago."""
        self.settle()
        found = self._lookups.get(request_id)
        return None if found is None else _with_prompt(*found)

    def divergences(self, most: int) -> tuple[Divergence, ...]:
        """Where most was computed behind a place at which prompts part."""
        self.settle()
        return tuple(sorted(self._places.values(), key=lambda place: -place.computed_tokens)[:most])

    def seconds_since(self, tick: int) -> float:
        """How long ago the cache's `tick` was, as far as admissions tell."""
        at = bisect_right(self._ticks, (tick, float("inf")))
        return self._clock() - self._ticks[at - 1][1] if at else 0.0

    def _reason(self, asked: _Admission, possible: int, matched: int, seen: TokenArray) -> MissReason:
        if possible > asked.num_cached:
            return MissReason.EVICTED
        if matched >= len(asked.tokens) - 1:
            return MissReason.NONE
        others = (each for each in self._tree.namespaces(most=16) if each != asked.namespace)
        if matched == 0 and any(self._tree.peek(other, asked.tokens)[1] for other in others):
            return MissReason.NAMESPACE
        if len(seen):
            return MissReason.DIFFERS
        return MissReason.NEW if matched else MissReason.EMPTY

    def _remember(self, lookup: Lookup, prompt: TokenArray) -> None:
        self._lookups.pop(lookup.request_id, None)
        self._lookups[lookup.request_id] = (lookup, prompt)
        if len(self._lookups) > _MAX_LOOKUPS:
            self._lookups.popitem(last=False)
        if lookup.reason is MissReason.DIFFERS:
            self._count_place(lookup, prompt)

    def _count_place(self, lookup: Lookup, prompt: TokenArray) -> None:
        key = prompt[max(0, lookup.position - 16) : lookup.position].tobytes() + lookup.position.to_bytes(4, "big")
        known = self._places.pop(key, None)
        wanted = prompt[lookup.position : lookup.position + _SEEN_TOKENS]
        again = _goes_on_alike(wanted.tolist(), lookup.seen)
        computed = lookup.prompt_tokens - lookup.cached_tokens
        self._places[key] = Divergence(
            count=1 + (known.count if known else 0),
            again=again + (known.again if known else 0),
            computed_tokens=computed + (known.computed_tokens if known else 0),
            example=_with_prompt(lookup, prompt) if again or known is None else known.example,
        )
        if len(self._places) > _MAX_PLACES:
            del self._places[min(list(self._places)[: _MAX_PLACES // 2], key=lambda each: self._places[each].computed_tokens)]

    def _add(self, namespace: str, tokens: TokenArray) -> None:
        tree = self._tree
        tokens = tokens[: len(tokens) - len(tokens) % tree.page_size]
        node, matched = tree.match(namespace, tokens)
        if matched < len(tokens):
            node = tree.insert(node, tokens[matched:], np.zeros((len(tokens) - matched) // tree.page_size, dtype=np.int32).tolist()).node
        tree.lock(node)
        tree.unlock(node)
        while tree.num_tokens > self._memory and (leaf := self._leaves.pop()) is not None:
            tree.trim(leaf, len(leaf.pages))

    def _note_time(self, tick: int) -> None:
        self._ticks.append((tick, self._clock()))
        if len(self._ticks) > 8192:
            self._ticks = self._ticks[::2]


def _goes_on_alike(wanted: list[int], seen: tuple[int, ...]) -> bool:
    """Whether some run of tokens stands behind the place in both."""
    grams = {seen[i : i + _GRAM] for i in range(len(seen) - _GRAM + 1)}
    return any(tuple(wanted[i : i + _GRAM]) in grams for i in range(len(wanted) - _GRAM + 1))


def _with_prompt(lookup: Lookup, prompt: TokenArray) -> Lookup:
    return replace(lookup, prompt_ids=tuple(prompt[: lookup.position + _SEEN_TOKENS].tolist()))
