"""Lowering in a process of its own, which can be killed: a constraint from the network may be built to hang or to eat memory.

The process says what the grammar is in llguidance's terms, having compiled it once for trial. What is left for the caller runs without the
interpreter lock and in known time. One line of JSON goes there, two come back.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Semaphore
from typing import Any

from ramet.errors import GrammarError, InternalError
from ramet.grammar.json_layout import COMPACT
from ramet.grammar.lowering import MAX_SOURCE, Lowered

START_TIME = 60.0
"""Seconds for a fresh process to answer its first line, on a busy machine."""
NICENESS = 10
FRONT_SECONDS = 0.5
"""Of processor time. A compilation that takes longer goes on with what the machine has to spare, and no other waits for it."""
PATIENCE = 12
"""Times the limit of processor time, until a compilation that got none is given up."""
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one compilation. `seconds`: of processor time."""

    seconds: float = 10.0
    memory_mib: int = 2048


class LoweringProcesses:
    """As many processes as calls at a time, but for `FRONT_SECONDS` each, one after the other, so that many constraints at once take little
    from the model. Started when first needed, or one `ahead`; kept for the next call. Safe to call from many threads."""

    def __init__(self, limits: Limits | None = None, *, ahead: bool = False) -> None:
        self._limits = limits or Limits()
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._busy: set[_Process] = set()
        self._front = Semaphore(max(1, (os.cpu_count() or 1) // 8))
        if ahead:
            self._idle.put(_Process(self._limits.memory_mib))

    def lower(self, kind: str, source: str, whitespace: str = COMPACT) -> Lowered:
        """As `lowering.lower`; raises `GrammarError` also for what takes too long or too much."""
        if len(source) > MAX_SOURCE:
            raise GrammarError(f"{kind}: the source has {len(source)} characters; the limit is {MAX_SOURCE}", param=kind)
        with ExitStack() as front:
            front.enter_context(self._front)
            process = self._take()
            self._busy.add(process)
            try:
                answer = process.ask({"kind": kind, "source": source, "whitespace": whitespace}, self._limits.seconds, front.close)
            except TimeoutError as error:
                process.kill()
                limit = f"{self._limits.seconds:g} s"
                raise GrammarError(f"{kind}: compiling it takes longer than the limit of {limit}", param=kind) from error
            except (EOFError, OSError) as error:
                process.kill()
                limit = f"{self._limits.memory_mib} MiB"
                raise GrammarError(f"{kind}: compiling it needs more than the limit of {limit}", param=kind) from error
            finally:
                self._busy.discard(process)
        self._give_back(process)
        return _lowered(*answer, kind)

    def close(self) -> None:
        """What is being compiled ends with an error."""
        for process in list(self._busy):
            process.end()
        while True:
            try:
                self._idle.get_nowait().kill()
            except Empty:
                return

    def _take(self) -> _Process:
        try:
            return self._idle.get_nowait()
        except Empty:
            return _Process(self._limits.memory_mib)

    def _give_back(self, process: _Process) -> None:
        """One that was set back cannot be brought forward again."""
        if process.is_set_back:
            process.kill()
        else:
            self._idle.put(process)


class _Process:
    def __init__(self, memory_mib: int) -> None:
        command = [sys.executable, "-m", "ramet.grammar.lowering_main", str(memory_mib)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": _path()})
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._is_ready = False
        self.is_set_back = False
        os.setpriority(os.PRIO_PROCESS, self._process.pid, min(os.getpriority(os.PRIO_PROCESS, 0) + NICENESS, 19))  # the model comes first

    def ask(self, question: dict[str, Any], seconds: float, on_slow: Callable[[], None]) -> tuple[dict[str, Any], bytes]:
        """Calls `on_slow` once it has been set back. Raises `TimeoutError` after `seconds` of processor time."""
        self._wait_until_ready()
        self._stdin.write(json.dumps(question).encode() + b"\n")
        self._stdin.flush()
        begin, started = self._used(), time.monotonic()

        def check() -> None:
            used = self._used() - begin
            if used > seconds or time.monotonic() - started > PATIENCE * seconds:
                raise TimeoutError
            if used > FRONT_SECONDS and not self.is_set_back:
                self._set_back()
                on_slow()

        head, _, language = self._read_lines(check).partition(b"\n")
        return json.loads(head), language

    def end(self) -> None:
        """Who is waiting for its answer is told so."""
        self._process.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def _wait_until_ready(self) -> None:
        if self._is_ready:
            return
        deadline = time.monotonic() + START_TIME

        def check() -> None:
            if time.monotonic() > deadline:
                raise TimeoutError

        try:
            self._read_lines(check)
        except (EOFError, TimeoutError) as error:
            self.kill()
            raise InternalError("the process that compiles grammars did not start") from error
        self._is_ready = True
        if os.getpriority(os.PRIO_PROCESS, 0) + NICENESS > 19:  # as nice as can be is not nice enough beside a nice server
            _set_idle(self._process.pid)

    def _read_lines(self, check: Callable[[], None]) -> bytes:
        """Two lines; `check` is asked every now and then whether to wait on."""
        pieces: list[bytes] = []
        num_lines = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while num_lines < 2:
                if selector.select(POLL_SECONDS):
                    pieces.append(os.read(self._stdout.fileno(), 1 << 20))
                    if not pieces[-1]:
                        raise EOFError
                    num_lines += pieces[-1].count(b"\n")
                else:
                    check()
        return b"".join(pieces)

    def _used(self) -> float:
        """Seconds of processor time so far; where the system does not say, of any."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _set_back(self) -> None:
        """It runs when nothing else wants to."""
        self.is_set_back = True
        _set_idle(self._process.pid)


def _set_idle(pid: int) -> None:
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.setpriority(os.PRIO_PROCESS, pid, 19)


def _lowered(answer: dict[str, Any], language: bytes, kind: str) -> Lowered:
    if "lowered" in answer:
        return Lowered.load(answer["lowered"], language)
    if "internal" in answer:
        raise InternalError(f"{kind}: the grammar compiler failed: {answer['internal']}")
    where = answer["where"]
    raise GrammarError(answer["message"].removesuffix(f" (at {where})"), where=where, param=answer["param"])


def _path() -> str:
    return os.pathsep.join(path for path in sys.path if path)
