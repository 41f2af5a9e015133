"""Lowering in a process of its own, which can be killed: a constraint from the network may be built to hang or to eat memory.

The process says what the grammar is in llguidance's terms, having compiled it once for trial. What is left for the caller runs without the
interpreter lock and in known time. Most constraints take milliseconds and go through the fast lane, one after the other. One that takes
longer than `FAST_SECONDS` is killed there and begins anew in the slow lane, which gets the time that nothing else on the machine wants.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Semaphore
from typing import Any

from ramet.errors import GrammarError, InternalError, QueueFull
from ramet.grammar.json_layout import COMPACT
from ramet.grammar.lowering import MAX_SOURCE, Lowered
from ramet.grammar.lowering_nursery import LoweringProcess, Nursery

FAST_SECONDS = 0.2
"""Of processor time."""
LARGE_SOURCE = 1 << 16
"""Sources of more characters go to the slow lane at once."""
MAX_SLOW = 2
"""Processes in the slow lane: each may fill the memory that it is allowed."""
MAX_WAITING = 48
"""Constraints that wait for the slow lane. A thread of the caller waits with each."""
PATIENCE = 12
"""Times the limit of processor time, until a compilation that the machine gives none is ended."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one compilation. `seconds`: of processor time."""

    seconds: float = 10.0
    memory_mib: int = 2048


class LoweringProcesses:
    """Started when first needed, or `ahead`; those of the fast lane are kept. Safe to call from many threads."""

    def __init__(self, limits: Limits | None = None, *, ahead: bool = False) -> None:
        self._limits = limits or Limits()
        self._nursery = Nursery(self._limits.memory_mib, ahead=ahead)
        self._fast = Semaphore(max(1, (os.cpu_count() or 1) // 8))
        self._slow = Semaphore(MAX_SLOW)
        self._num_slow = 0
        self._lock = Lock()
        self._idle: SimpleQueue[LoweringProcess] = SimpleQueue()
        self._busy: set[LoweringProcess] = set()
        self._is_closed = False

    def lower(self, kind: str, source: str, whitespace: str = COMPACT) -> Lowered:
        """As `lowering.lower`; raises `GrammarError` also for what takes too long or too much, and `QueueFull` where too many such came."""
        if len(source) > MAX_SOURCE:
            raise GrammarError(f"{kind}: the source has {len(source)} characters; the limit is {MAX_SOURCE}", param=kind)
        question = json.dumps({"kind": kind, "source": source, "whitespace": whitespace}).encode()
        try:
            answer = self._quickly(question) if len(source) <= LARGE_SOURCE else None
            head, language = answer or self._slowly(question, kind)
        except (EOFError, OSError) as error:
            limit = f"{self._limits.memory_mib} MiB"
            raise GrammarError(f"{kind}: compiling it needs more than the limit of {limit}", param=kind) from error
        return _lowered(json.loads(head), language, kind)

    def close(self) -> None:
        """What is being compiled ends with an error."""
        self._is_closed = True
        for process in list(self._busy):
            process.kill()
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                break
        self._nursery.close()

    # ── the two lanes ──

    def _quickly(self, question: bytes) -> tuple[bytes, bytes] | None:
        """None where it takes too long for that."""
        with self._fast:
            try:
                process = self._idle.get_nowait()
            except Empty:
                process = self._spawn()
            try:
                answer = self._ask(process, question, FAST_SECONDS)
            except TimeoutError:
                process.close()
                return None
            except (EOFError, OSError):
                process.close()
                raise
        self._idle.put(process)
        return answer

    def _slowly(self, question: bytes, kind: str) -> tuple[bytes, bytes]:
        self._line_up()
        try:
            with self._slow:
                process = self._spawn()
                process.set_back()
                try:
                    return self._ask(process, question, self._limits.seconds)
                finally:
                    process.close()
        except TimeoutError as error:
            raise GrammarError(f"{kind}: compiling it takes longer than the limit of {self._limits.seconds:g} s", param=kind) from error
        finally:
            with self._lock:
                self._num_slow -= 1

    def _line_up(self) -> None:
        with self._lock:
            if self._num_slow >= MAX_WAITING + MAX_SLOW:
                raise QueueFull("too many constraints that take long to compile are waiting; try again later", retry_after=10)
            self._num_slow += 1

    def _spawn(self) -> LoweringProcess:
        if self._is_closed:
            raise InternalError("the grammar compiler is closed")
        return self._nursery.spawn()

    def _ask(self, process: LoweringProcess, question: bytes, seconds: float) -> tuple[bytes, bytes]:
        """Raises `TimeoutError` after `seconds` of processor time."""
        begin, started = process.used_seconds, time.monotonic()

        def check() -> None:
            if process.used_seconds - begin > seconds or time.monotonic() - started > PATIENCE * self._limits.seconds:
                raise TimeoutError

        self._busy.add(process)
        try:
            return process.ask(question, check)
        finally:
            self._busy.discard(process)


def _lowered(answer: dict[str, Any], language: bytes, kind: str) -> Lowered:
    if "lowered" in answer:
        return Lowered.load(answer["lowered"], language)
    if "internal" in answer:
        raise InternalError(f"{kind}: the grammar compiler failed: {answer['internal']}")
    where = answer["where"]
    raise GrammarError(answer["message"].removesuffix(f" (at {where})"), where=where, param=answer["param"])
