"""A worker in a process of its own, and its twin on a thread: how they start, and how their end is noticed.

Front and worker process share a socket pair, the lifeline. The front sends the worker's description down it, and after that nobody
writes: whichever process ends, however it ends, the kernel closes its end and the other one sees that at once. No signal
handler, no polling of process ids, no `multiprocessing` (which would import the user's script again).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

from ramet.log import get_logger
from ramet.runtime.engine.channel import Address, Channel, MemoryChannel, ZmqChannel
from ramet.runtime.engine.messages import Shutdown
from ramet.runtime.engine.worker_parts import WorkerSpec

_log = get_logger(__name__)
_WORKER_MODULE = "ramet.runtime.engine.worker_main"


class WorkerHandle(Protocol):
    """One life of one worker. Its channel raises `ChannelClosed` when the worker has ended."""

    @property
    def channel(self) -> Channel: ...

    @property
    def process_id(self) -> int | None:
        """None: the worker is a thread."""

    def kill(self) -> None:
        """End it now; `release` still has to be called."""

    def release(self) -> str:
        """Free what the ended worker held here (ends it first if need be) and say how it ended."""


class ProcessWorker:
    def __init__(self, spec: WorkerSpec) -> None:
        description = spec.to_json()
        self._address = Address.create()
        self._lifeline, theirs = socket.socketpair()
        self._channel = ZmqChannel.front(self._address, self._lifeline.fileno())
        with theirs:
            self._process = subprocess.Popen(  # `release` waits for it
                [sys.executable, "-P", "-m", _WORKER_MODULE, "--directory", self._address.directory],
                stdin=theirs.fileno(),
                env=_environment(),
                start_new_session=True,  # Ctrl-C in the terminal is the front's to decide
            )
        self._lifeline.sendall(description.encode() + b"\n")

    @property
    def channel(self) -> ZmqChannel:
        return self._channel

    @property
    def process_id(self) -> int | None:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def release(self) -> str:
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._channel.close()
        self._lifeline.close()
        self._address.remove()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class ThreadWorker:
    """The same worker on a thread: for tests, and where a second process is not wanted. A thread cannot be killed: `kill` closes its
    channel, and it ends before its next step."""

    def __init__(self, spec: WorkerSpec) -> None:
        from ramet.runtime.engine.worker_main import serve  # all of a worker, which a process that only starts others has no use for

        self._channel, theirs = MemoryChannel.pair()
        self._thread = threading.Thread(target=serve, args=(spec, theirs), name="ramet-worker", daemon=True)
        self._thread.start()

    @property
    def channel(self) -> Channel:
        return self._channel

    @property
    def process_id(self) -> int | None:
        return None

    def kill(self) -> None:
        self._channel.close()

    def release(self) -> str:
        self._channel.send(Shutdown())
        self._channel.close()
        self._thread.join(timeout=5.0)
        return "the worker's thread ended"


def _environment() -> dict[str, str]:
    """The worker must find the same `ramet` as we did, also where only our `sys.path` knows it (a checkout)."""
    root = str(Path(__file__).parents[3])
    environment = dict(os.environ)
    if Path(root).name not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return environment
