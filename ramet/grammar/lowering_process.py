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
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from ramet.errors import GrammarError, InternalError
from ramet.grammar.json_layout import COMPACT
from ramet.grammar.lowering import MAX_SOURCE, Lowered

START_TIME = 60.0
"""Seconds for a fresh process to answer its first line, on a busy machine."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one compilation."""

    seconds: float = 10.0
    memory_mib: int = 2048


class LoweringProcesses:
    """As many processes as calls at a time; started when first needed, or one `ahead`; kept for the next call. Safe to call from many
    threads."""

    def __init__(self, limits: Limits | None = None, *, ahead: bool = False) -> None:
        self._limits = limits or Limits()
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        if ahead:
            self._idle.put(_Process(self._limits.memory_mib))

    def lower(self, kind: str, source: str, whitespace: str = COMPACT) -> Lowered:
        """As `lowering.lower`; raises `GrammarError` also for what takes too long or too much."""
        if len(source) > MAX_SOURCE:
            raise GrammarError(f"{kind}: the source has {len(source)} characters; the limit is {MAX_SOURCE}", param=kind)
        process = self._take()
        try:
            answer = process.ask({"kind": kind, "source": source, "whitespace": whitespace}, self._limits.seconds)
        except TimeoutError as error:
            process.kill()
            raise GrammarError(f"{kind}: compiling it takes longer than the limit of {self._limits.seconds:g} s", param=kind) from error
        except (EOFError, OSError) as error:
            process.kill()
            raise GrammarError(f"{kind}: compiling it needs more than the limit of {self._limits.memory_mib} MiB", param=kind) from error
        self._idle.put(process)
        return _lowered(*answer, kind)

    def close(self) -> None:
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


class _Process:
    def __init__(self, memory_mib: int) -> None:
        command = [sys.executable, "-m", "ramet.grammar.lowering_main", str(memory_mib)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": _path()})
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._is_ready = False

    def ask(self, question: dict[str, Any], seconds: float) -> tuple[dict[str, Any], bytes]:
        self._wait_until_ready()
        self._stdin.write(json.dumps(question).encode() + b"\n")
        self._stdin.flush()
        head, _, language = self._read_lines(seconds).partition(b"\n")
        return json.loads(head), language

    def _wait_until_ready(self) -> None:
        if self._is_ready:
            return
        try:
            self._read_lines(START_TIME)
        except (EOFError, TimeoutError) as error:
            self.kill()
            raise InternalError("the process that compiles grammars did not start") from error
        self._is_ready = True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def _read_lines(self, seconds: float) -> bytes:
        """Two lines."""
        deadline = time.monotonic() + seconds
        pieces: list[bytes] = []
        num_lines = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while num_lines < 2:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise TimeoutError
                pieces.append(os.read(self._stdout.fileno(), 1 << 20))
                if not pieces[-1]:
                    raise EOFError
                num_lines += pieces[-1].count(b"\n")
        return b"".join(pieces)


def _lowered(answer: dict[str, Any], language: bytes, kind: str) -> Lowered:
    if "lowered" in answer:
        return Lowered.load(answer["lowered"], language)
    if "internal" in answer:
        raise InternalError(f"{kind}: the grammar compiler failed: {answer['internal']}")
    where = answer["where"]
    raise GrammarError(answer["message"].removesuffix(f" (at {where})"), where=where, param=answer["param"])


def _path() -> str:
    return os.pathsep.join(path for path in sys.path if path)
