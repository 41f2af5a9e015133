"""Keeps one worker alive: waits for it to be ready, passes its messages on, notices its end, and starts the next one.

One thread does all of it, so that nothing here happens at the same time as anything else:

    launch → (loading) → Ready → messages … → gone → every request told → launch again, or stay down
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ramet.errors import InternalError, RametError, WorkerDied
from ramet.log import get_logger
from ramet.runtime.config import SupervisionConfig
from ramet.runtime.engine.channel import ChannelClosed
from ramet.runtime.engine.faults import error_of
from ramet.runtime.engine.generation_engine import Health
from ramet.runtime.engine.messages import Fault, Message, Outputs, Ready, Reply, Shutdown, ToWorker
from ramet.runtime.engine.processes import WorkerHandle
from ramet.runtime.request import RequestOutput

_log = get_logger(__name__)
_TICK_SECONDS = 1.0
_MAX_START_FAILURES = 5
_SHUTDOWN_SECONDS = 10.0
_SHUTDOWN_WHILE_LOADING_SECONDS = 0.2


class Listener(Protocol):
    """Called on the supervisor's thread."""

    @property
    def has_work(self) -> bool: ...

    def on_outputs(self, outputs: Sequence[RequestOutput]) -> None: ...

    def on_reply(self, reply: Reply) -> None: ...

    def on_death(self, error: WorkerDied) -> None:
        """Every request that the worker held is lost. Comes once for each worker that had been ready."""

    def on_end(self, error: RametError) -> None:
        """No worker will come any more."""


class Supervisor:
    def __init__(
        self,
        launch: Callable[[], WorkerHandle],
        listener: Listener,
        config: SupervisionConfig,
        *,
        first_backoff: float = 0.5,
    ) -> None:
        self._launch = launch
        self._listener = listener
        self._config = config
        self._first_backoff = first_backoff  # seconds before the first restart; doubles with every start that fails
        self._worker: WorkerHandle | None = None
        self._ready: Ready | None = None
        self._fault: RametError | None = None
        self._started = threading.Event()  # the first worker came up, or will not
        self._closing = threading.Event()
        self._alive = False
        self._heard_at = 0.0
        self._message = "the worker is loading the model"
        self._thread = threading.Thread(target=self._run, name="ramet-supervisor", daemon=True)

    def start(self) -> None:
        """Launch the first worker; does not wait for it."""
        self._thread.start()

    def wait_ready(self) -> Ready:
        """Blocks until the first worker is ready. Raises what kept it from that, as the worker raised it."""
        self._started.wait()
        if self._ready is None:
            self._thread.join()
            raise self._fault or InternalError(self._message)
        return self._ready

    def send(self, message: ToWorker) -> None:
        if self._worker is not None:
            self._worker.channel.send(message)

    def check_alive(self) -> None:
        """Raises `WorkerDied` while there is no worker to serve a request."""
        if not self._alive:
            raise WorkerDied(self._message)

    def note_work(self) -> None:
        """The worker goes from idle to busy: its silence counts from now."""
        self._heard_at = time.monotonic()

    def health(self) -> Health:
        idle = time.monotonic() - self._heard_at if self._alive and self._listener.has_work else 0.0
        return Health(self._alive, idle, "" if self._alive else self._message)

    @property
    def closing(self) -> bool:
        """The end is wanted."""
        return self._closing.is_set()

    @property
    def process_id(self) -> int | None:
        return self._worker.process_id if self._worker is not None else None

    def close(self) -> None:
        """End the worker, and kill it if it does not. Idempotent."""
        self._closing.set()
        self.send(Shutdown())
        if self._thread.is_alive():
            self._thread.join(_SHUTDOWN_SECONDS if self._alive else _SHUTDOWN_WHILE_LOADING_SECONDS)
        if self._thread.is_alive() and self._worker is not None:
            self._worker.kill()
            self._thread.join(_SHUTDOWN_SECONDS)

    # The thread.

    def _run(self) -> None:
        start_failures = 0
        while True:
            came_up = self._live_once()
            start_failures = 0 if came_up else start_failures + 1
            if self._closing.is_set() or not self._goes_on(start_failures):
                break
            self._closing.wait(self._first_backoff * 2**start_failures)
            if self._closing.is_set():
                break
            _log.warning("Starting the worker again")
        self._started.set()
        self._listener.on_end(self._fault or WorkerDied(self._message))

    def _live_once(self) -> bool:
        """One worker from launch to end. Says whether it ever was ready."""
        self._fault = None
        try:
            worker = self._worker = self._launch()
        except Exception as error:
            self._message = f"the worker could not be started: {error}"
            _log.exception("The worker could not be started")
            return False
        try:
            while not self._given_up(worker):
                for message in worker.channel.receive(_TICK_SECONDS):
                    self._handle(message)
        except ChannelClosed:
            pass
        return self._bury(worker)

    def _handle(self, message: Message) -> None:
        self._heard_at = time.monotonic()
        match message:
            case Outputs(outputs):
                self._listener.on_outputs(outputs)
            case Reply():
                self._listener.on_reply(message)
            case Ready():
                self._ready = message
                self._alive = True
                self._started.set()
            case Fault():
                self._fault = error_of(message)

    def _given_up(self, worker: WorkerHandle) -> bool:
        """The watchdog: work, and no sign of life for too long. Loading has no limit."""
        silent = self.health().idle_seconds
        if silent <= self._config.watchdog_timeout:
            return False
        self._fault = WorkerDied(f"the worker made no progress for {silent:.0f} s (--watchdog-timeout) and was killed")
        worker.kill()
        return True

    def _bury(self, worker: WorkerHandle) -> bool:
        was_alive, self._alive = self._alive, False
        how = worker.release()
        reason = self._fault.message if self._fault is not None else how
        self._message = self._obituary(reason)
        if was_alive:
            if not self._closing.is_set():
                _log.error("The worker ended (%s); its requests end with an error", reason)
            self._listener.on_death(WorkerDied(self._message))
        return was_alive

    def _goes_on(self, start_failures: int) -> bool:
        """A worker that never came up is not tried again; one that did is, a few times and ever more slowly."""
        if self._ready is None or self._config.on_worker_death == "exit":
            return False
        if start_failures >= _MAX_START_FAILURES:
            _log.error("The worker failed to start %d times in a row; giving up", start_failures)
            return False
        return True

    def _obituary(self, reason: str) -> str:
        if self._closing.is_set():
            return "the engine was shut down"
        restarts = self._ready is not None and self._config.on_worker_death == "restart"
        return f"the worker ended ({reason})" + ("; a new one is starting, try again" if restarts else "")
