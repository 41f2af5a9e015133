"""Lowering in a process of its own, which can be killed: a constraint from the network may be built to hang or to eat memory.

The process says what the grammar is in llguidance's terms, having compiled it once for trial. What is left for the caller runs without the
interpreter lock and in known time. Most constraints take milliseconds and go through the fast lane, one after the other. One that takes
longer than `FAST_SECONDS` is killed there and begins anew in the slow lane.

A constraint that comes with few others is compiled at low priority. In the slow lane, and in the fast one while many wait for it, they are
patient: they get the time that nothing else on the machine wants, so that who generates already keeps the pace whatever arrives. Where that
is next to nothing, a constraint begins anew at low priority.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Semaphore
from typing import Any

from ramet.errors import GrammarError, InternalError, QueueFull
from ramet.grammar.json_layout import COMPACT
from ramet.grammar.lowering import MAX_SOURCE, Lowered
from ramet.grammar.lowering_nursery import CLOSED, LoweringProcess, Nursery

FAST_SECONDS = 0.2
"""Of processor time."""
LARGE_SOURCE = 1 << 16
"""Sources of more characters go to the slow lane at once."""
FEW = 4
"""While no more are in the fast lane, they are not patient."""
STARVING_SECONDS, STARVING_SHARE = 1.0, 0.02
"""Who has had less than this share of a core for so long does not get on. A model on all cores leaves about ten times as much."""
PRESSED_SECONDS = 20.0
"""After that, for so long, nobody is patient."""
MAX_SLOW = 2
"""Processes in the slow lane: each may fill the memory that it is allowed."""
MAX_WAITING = 48
"""Constraints that wait for the slow lane. A thread of the caller waits with each."""
PATIENCE = 12
"""Times the limit of processor time, until a compilation that the machine gives none is ended."""

Free = dict[bool, SimpleQueue[LoweringProcess]]
"""Processes that wait for a question, by whether they are patient; none are kept where there is no queue for them."""


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
        self._num_fast = self._num_slow = 0
        self._lock = Lock()
        self._free: Free = {True: SimpleQueue(), False: SimpleQueue()}
        self._pressed_until = 0.0
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
        for free in self._free.values():
            while not free.empty():
                free.get().close()
        self._nursery.close()

    # ── the two lanes ──

    def _quickly(self, question: bytes) -> tuple[bytes, bytes] | None:
        """None where it takes too long for that."""
        with self._lock:
            self._num_fast += 1
        try:
            with self._fast:
                return self._ask(question, FAST_SECONDS, self._num_fast > FEW, self._free)
        except TimeoutError:
            return None
        finally:
            with self._lock:
                self._num_fast -= 1

    def _slowly(self, question: bytes, kind: str) -> tuple[bytes, bytes]:
        self._line_up()
        try:
            with self._slow:
                return self._ask(question, self._limits.seconds, True, {})
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

    def _ask(self, question: bytes, seconds: float, is_patient: bool, free: Free) -> tuple[bytes, bytes]:
        """Raises `TimeoutError` after `seconds` of processor time."""
        if is_patient and time.monotonic() >= self._pressed_until:
            try:
                return self._ask_one(question, seconds, True, free)
            except _Starving:
                self._pressed_until = time.monotonic() + PRESSED_SECONDS
        return self._ask_one(question, seconds, False, free)

    def _ask_one(self, question: bytes, seconds: float, is_patient: bool, free: Free) -> tuple[bytes, bytes]:
        process, is_well = self._take(is_patient, free), False
        self._busy.add(process)
        try:
            if self._is_closed:  # since then: `close` may not have seen this one
                raise InternalError(CLOSED)
            answer = process.ask(question, self._watch(process, seconds, is_patient))
            is_well = True
        finally:
            self._busy.discard(process)
            if is_well and is_patient in free:
                free[is_patient].put(process)
            else:
                process.close()
        return answer

    def _take(self, is_patient: bool, free: Free) -> LoweringProcess:
        """One that is free, or a new one."""
        try:
            return free[is_patient].get_nowait()
        except (KeyError, Empty):
            pass
        process = self._nursery.spawn()
        if is_patient:
            process.set_back()
        return process

    def _watch(self, process: LoweringProcess, seconds: float, is_patient: bool) -> Callable[[], None]:
        begin, started = process.used_seconds or 0.0, time.monotonic()

        def check() -> None:
            so_far, waited = process.used_seconds, time.monotonic() - started
            if so_far is None:
                return  # its connection says so next
            used = so_far - begin
            if used > seconds or waited > PATIENCE * self._limits.seconds:
                raise TimeoutError
            if is_patient and waited > STARVING_SECONDS and used < STARVING_SHARE * waited:
                raise _Starving

        return check


class _Starving(Exception):
    """Nothing on the machine is left for who is patient."""


def _lowered(answer: dict[str, Any], language: bytes, kind: str) -> Lowered:
    if "lowered" in answer:
        return Lowered.load(answer["lowered"], language)
    if "internal" in answer:
        raise InternalError(f"{kind}: the grammar compiler failed: {answer['internal']}")
    where = answer["where"]
    raise GrammarError(answer["message"].removesuffix(f" (at {where})"), where=where, param=answer["param"])
