"""Restarts, and when to give up, over workers that follow a script."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from ramet import errors
from ramet.errors import InternalError, OutOfMemory, RametError, WorkerDied
from ramet.runtime.config import SupervisionConfig
from ramet.runtime.engine.channel import MemoryChannel
from ramet.runtime.engine.faults import error_of
from ramet.runtime.engine.messages import Fault, Ready, Shutdown
from ramet.runtime.engine.supervisor import Supervisor
from ramet.runtime.plan import Capacity
from tests.fakes import FAKE_MODEL
from tests.waiting import PATIENCE, wait_until

READY = Ready(FAKE_MODEL, Capacity(8, 1, 1))
FIRST_BACKOFF = 0.01


class OneLife:
    """Sends its messages and dies, or (`stays`) lives until it is told to end."""

    process_id = None

    def __init__(self, messages: list, *, stays: bool = False) -> None:
        self.channel, self._worker = MemoryChannel.pair()
        for message in messages:
            self._worker.send(message)
        if stays:
            threading.Thread(target=self._wait, daemon=True).start()
        else:
            self._worker.close()

    def _wait(self) -> None:
        while not any(isinstance(message, Shutdown) for message in self._worker.receive(None)):
            pass
        self._worker.close()

    def kill(self) -> None:
        self._worker.close()

    def release(self) -> str:
        return "exit code 3"


class Recorder:
    has_work = False

    def __init__(self) -> None:
        self.deaths: list[WorkerDied] = []
        self.ends: list[RametError] = []
        self.ended = threading.Event()

    def on_outputs(self, outputs) -> None: ...

    def on_reply(self, reply) -> None: ...

    def on_death(self, error) -> None:
        self.deaths.append(error)

    def on_end(self, error) -> None:
        self.ends.append(error)
        self.ended.set()


def supervise(lives: list, **options) -> tuple[Supervisor, Recorder, list[float]]:
    """`lives`: what each launch gives, in turn; the last one is repeated."""
    launched: list[float] = []
    recorder = Recorder()

    def launch():
        launched.append(time.monotonic())
        return lives[min(len(launched), len(lives)) - 1]()

    return Supervisor(launch, recorder, SupervisionConfig(**options), first_backoff=FIRST_BACKOFF), recorder, launched


def test_gives_up_after_five_starts_in_a_row_that_fail():
    supervisor, recorder, launched = supervise([lambda: OneLife([READY]), lambda: OneLife([])])
    supervisor.start()
    supervisor.wait_ready()
    assert recorder.ended.wait(PATIENCE)
    assert len(launched) == 1 + 5
    assert (len(recorder.deaths), len(recorder.ends)) == (1, 1)
    pauses = [later - earlier for earlier, later in pairwise(launched[1:])]
    assert all(pause > 0.99 * FIRST_BACKOFF * 2**failures for failures, pause in enumerate(pauses, start=1)), pauses
    with pytest.raises(WorkerDied, match="exit code 3"):
        supervisor.check_alive()
    supervisor.close()


def test_a_worker_that_came_up_again_starts_the_count_anew():
    dies, lives = (lambda: OneLife([READY])), (lambda: OneLife([READY], stays=True))
    fails = lambda: OneLife([])  # noqa: E731
    supervisor, recorder, launched = supervise([dies, fails, fails, fails, dies, fails, fails, fails, lives])
    supervisor.start()
    supervisor.wait_ready()
    wait_until(lambda: len(launched) == 9 and supervisor.health().alive)
    assert len(recorder.deaths) == 2
    assert not recorder.ends
    supervisor.close()
    assert len(recorder.ends) == 1
    assert supervisor.closing


def test_the_first_start_is_tried_once_and_raises_the_workers_error():
    supervisor, recorder, launched = supervise([lambda: OneLife([Fault("OutOfMemory", "lower --x", "x")])])
    supervisor.start()
    with pytest.raises(OutOfMemory, match="lower --x"):
        supervisor.wait_ready()
    assert len(launched) == 1
    assert not recorder.deaths


def test_a_launch_that_raises_is_told():
    def cannot():
        raise OSError("no more processes")

    supervisor, _, _ = supervise([cannot])
    supervisor.start()
    with pytest.raises(InternalError, match="no more processes"):
        supervisor.wait_ready()


def test_every_error_type_survives_the_channel():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RametError)]
    assert len(kinds) > 15
    for kind in kinds:
        error = error_of(Fault(kind.__name__, "why", "field"))
        assert (type(error), error.message, error.param) == (kind, "why", "field")
    assert "ValueError: why" in error_of(Fault("ValueError", "why", details="trace")).message
