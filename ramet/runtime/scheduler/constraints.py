"""Grammars of requests: compiled beside the scheduler's thread, cached by their source, turned into masks."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from ramet.errors import InternalError, RametError
from ramet.grammar.matcher import CompiledGrammar, GrammarCompiler, MaskFiller, Matcher
from ramet.grammar.thread_priority import stand_back
from ramet.log import get_logger
from ramet.runtime.plan import TokenMasks
from ramet.runtime.request import GrammarSpec
from ramet.runtime.scheduler.contained_matcher import ALL_ALLOWED
from ramet.runtime.scheduler.forced_runs import ForcedRuns

_log = get_logger(__name__)

Compiled = CompiledGrammar | RametError


class GrammarCache:
    """Compiles each grammar once, in the background, and keeps the last `max_cached`. Failures are not kept. Threads mostly wait for the
    processes of the compiler: there are so many that some slow grammars do not hold up the others."""

    def __init__(self, compiler: GrammarCompiler, vocab_size: int, *, max_cached: int = 256, num_threads: int = 64) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._max_cached = max_cached
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="ramet-grammar", initializer=stand_back)
        self._cached: OrderedDict[GrammarSpec, CompiledGrammar] = OrderedDict()
        self._waiting: dict[GrammarSpec, list[str]] = {}
        self._done: SimpleQueue[tuple[GrammarSpec, Compiled, float]] = SimpleQueue()
        self.num_compiled, self.compile_seconds = 0, 0.0

    def get(self, spec: GrammarSpec) -> CompiledGrammar | None:
        """The compiled grammar, if it is at hand."""
        if spec in self._cached:
            self._cached.move_to_end(spec)
        return self._cached.get(spec)

    def request(self, spec: GrammarSpec, request_id: str, max_tokens: int | None = None) -> None:
        """Compile `spec` for a request of `max_tokens`; `ready` will name it."""
        if spec in self._waiting:
            self._waiting[spec].append(request_id)
            return
        self._waiting[spec] = [request_id]
        begin = time.monotonic()
        future = self._pool.submit(self._compile, spec, max_tokens)
        future.add_done_callback(lambda done: self._done.put((spec, _outcome(done), time.monotonic() - begin)))

    def ready(self) -> list[tuple[str, GrammarSpec, Compiled]]:
        """Requests whose grammar has been compiled, or refused, since the last call."""
        found: list[tuple[str, GrammarSpec, Compiled]] = []
        while not self._done.empty():
            spec, outcome, seconds = self._done.get()
            self.num_compiled += 1
            self.compile_seconds += seconds
            if not isinstance(outcome, RametError):
                self._keep(spec, outcome)
            found += [(request_id, spec, outcome) for request_id in self._waiting.pop(spec, [])]
        return found

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._compiler.close()

    def _compile(self, spec: GrammarSpec, max_tokens: int | None) -> CompiledGrammar:
        grammar = self._compiler.compile(spec.kind, spec.source)
        self._look_ahead(grammar, max_tokens)
        return grammar

    def _look_ahead(self, grammar: CompiledGrammar, max_tokens: int | None) -> None:
        """What the scheduler will ask first takes longest, and is remembered: milliseconds, near the end of a budget, that no step waits
        for here."""
        matcher = ForcedRuns(grammar.matcher(max_tokens))
        forced = matcher.forced_tokens()
        if (max_tokens is None or len(forced) < max_tokens) and matcher.accept(forced) == len(forced):
            matcher.fill_mask(np.empty(-(-self._vocab_size // 32), np.uint32))

    def _keep(self, spec: GrammarSpec, grammar: CompiledGrammar) -> None:
        self._cached[spec] = grammar
        while len(self._cached) > self._max_cached:
            self._cached.popitem(last=False)


def fill_masks(matchers: Sequence[Matcher | None], vocab_size: int, filler: MaskFiller) -> TokenMasks:
    """One row of bits per matcher, in order; None (the request ended meanwhile) allows everything."""
    bits: npt.NDArray[np.uint32] = np.full((len(matchers), -(-vocab_size // 32)), ALL_ALLOWED, dtype=np.uint32)
    filler.fill(matchers, bits)
    return TokenMasks(bits)


def _outcome(done: Future[CompiledGrammar]) -> Compiled:
    error = RametError("the compilation was cancelled") if done.cancelled() else done.exception()
    if error is None:
        return done.result()
    if isinstance(error, RametError):
        return error
    _log.error("a grammar could not be compiled", exc_info=error)
    return InternalError(f"the grammar compiler failed: {error}")
