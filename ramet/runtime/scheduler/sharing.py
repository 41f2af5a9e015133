"""In-batch prefix sharing: what is being computed right now is not computed a second time.

While prompts are prefilled, their tokens are in a radix tree of their own. A waiting request whose common prefix with one of them is
longer than its cached prefix lets that one go ahead: it is admitted when the shared tokens have come into the cache.
"""

from __future__ import annotations

from ramet.runtime.cache.radix_tree import Node, RadixTree, TokenArray
from ramet.runtime.scheduler.request_state import RequestState


class PrefixesInFlight:
    """The prompts that are being prefilled, of all namespaces."""

    def __init__(self, page_size: int) -> None:
        self._tree = RadixTree(page_size)
        self._ends: dict[str, Node] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, state: RequestState) -> None:
        size = self._tree.page_size
        tokens = state.tokens[: state.prefill_end - state.prefill_end % size]
        node, matched = self._tree.match(state.request.cache_namespace, tokens)
        if matched < len(tokens):
            node = self._tree.insert(node, tokens[matched:], range((len(tokens) - matched) // size)).node
        self._tree.lock(node)
        self._ends[state.request_id] = node

    def remove(self, state: RequestState) -> None:
        """Its tokens are in the cache, or will not come. Does nothing for a request that is not here."""
        end = self._ends.pop(state.request_id, None)
        if end is None:
            return
        self._tree.unlock(end)
        node: Node | None = end
        while node is not None and node.is_idle_leaf:
            above = node.parent
            self._tree.trim(node, len(node.pages))
            node = above

    def is_worth_waiting(self, namespace: str, tokens: TokenArray, cached_len: int) -> bool:
        """Whether more of `tokens` than the cached prefix is on its way."""
        return bool(self._ends) and self._tree.peek(namespace, tokens)[1] > cached_len
