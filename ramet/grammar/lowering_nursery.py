"""Where the processes that compile grammars come from: forked off one that is warm, so that another one costs a millisecond or two."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

from ramet.errors import InternalError

START_TIME = 60.0
"""Seconds until the first process of a fresh nursery answers, on a busy machine."""
NICENESS_AT_START = 10
"""Half a second of processor time comes to about five where the model takes all cores: somebody may be waiting for it."""
POLL_SECONDS = 0.05
CLOSED = "the grammar compiler is closed"
SAYS_TIMES = Path("/proc/self/stat").exists()


class Nursery:
    """Started when first needed, or `ahead`. Safe to call from many threads."""

    def __init__(self, memory_mib: int, *, ahead: bool = False) -> None:
        self._memory_mib = memory_mib
        self._lock = Lock()
        self._mother: _Mother | None = _Mother(memory_mib) if ahead else None
        self._is_closed = False

    def spawn(self) -> LoweringProcess:
        """Raises `InternalError` when none comes, and once this is closed."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            if self._is_closed:
                ours.close()
                raise InternalError(CLOSED)
            if self._mother is None or not self._mother.adopt(theirs):
                self._mother = _Mother(self._memory_mib)
                self._mother.adopt(theirs)
        return LoweringProcess(ours)

    def close(self) -> None:
        """There will be no more; those that are about end when their connections do."""
        with self._lock:
            self._is_closed = True
            if self._mother is not None:
                self._mother.end()
            self._mother = None


class _Mother:
    def __init__(self, memory_mib: int) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "ramet.grammar.lowering_main", str(theirs.fileno()), str(memory_mib)]
            path = os.pathsep.join(path for path in sys.path if path)
            environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}  # who forks has one thread
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=environment)
        niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS_AT_START  # this thread itself may stand back
        os.setpriority(os.PRIO_PROCESS, self._process.pid, min(niceness, 19))  # the model comes first

    def adopt(self, connection: socket.socket) -> bool:
        """Have a child that answers on `connection`; False when it can have no more."""
        try:
            socket.send_fds(self._control, [b"+"], [connection.fileno()])
        except OSError:
            self.end()
            return False
        return True

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._control.close()


class LoweringProcess:
    """Answers one question after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        try:
            self.pid = int(self._read_lines(1, _until(time.monotonic() + START_TIME)))
        except (OSError, EOFError, TimeoutError) as error:
            connection.close()
            raise InternalError("the process that compiles grammars did not start") from error
        self._handle = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None

    def ask(self, question: bytes, check: Callable[[], None]) -> tuple[bytes, bytes]:
        """Two lines for a line. `check` is asked every now and then whether to wait on. Raises what it raises, and `EOFError` or `OSError`
        when the process has died."""
        self._connection.sendall(question + b"\n")
        head, _, language = self._read_lines(2, check).partition(b"\n")
        return head, language

    @property
    def used_seconds(self) -> float | None:
        """Of processor time so far; where the system does not say, of any. None: it has ended."""
        if not SAYS_TIMES:
            return time.monotonic()
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def set_back(self) -> None:
        """From now on it runs when nothing else wants to. That cannot be undone."""
        with suppress(ProcessLookupError):  # who asks it will be told
            if hasattr(os, "SCHED_IDLE"):
                os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, self.pid, 19)

    def kill(self) -> None:
        """Who is waiting for its answer is told so. Idempotent."""
        with suppress(ProcessLookupError):
            if self._handle is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def close(self) -> None:
        """Only for who asks it: end it, and let go of it."""
        self.kill()
        self._connection.close()
        if self._handle is not None:
            os.close(self._handle)

    def _read_lines(self, num_lines: int, check: Callable[[], None]) -> bytes:
        pieces: list[bytes] = []
        num_read = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            while num_read < num_lines:
                if not selector.select(POLL_SECONDS):
                    check()
                    continue
                pieces.append(self._connection.recv(1 << 20))
                if not pieces[-1]:
                    raise EOFError
                num_read += pieces[-1].count(b"\n")
        return b"".join(pieces)


def _until(deadline: float) -> Callable[[], None]:
    def check() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    return check
