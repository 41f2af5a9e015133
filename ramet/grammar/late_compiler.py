"""A compiler that is made while requests are already served, at low priority."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ramet.grammar.matcher import CompiledGrammar, GrammarCompiler
from ramet.grammar.thread_priority import stand_back


class LateCompiler:
    """Implements `GrammarCompiler`: `make` runs on a thread of its own, and who compiles before it has ended waits for it. Raises from
    `compile` what `make` raised."""

    def __init__(self, make: Callable[[], GrammarCompiler]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ramet-grammar-start", initializer=stand_back)
        self._made = self._thread.submit(make)

    def compile(self, kind: str, source: str) -> CompiledGrammar:
        return self._made.result().compile(kind, source)

    def close(self) -> None:
        """Waits for a compiler that is being made, and closes it."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if not self._made.cancelled() and self._made.exception() is None:
            self._made.result().close()
