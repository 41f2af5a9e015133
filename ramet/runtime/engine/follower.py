"""A tensor-parallel rank other than 0: it has an executor and no scheduler, and runs what it is told in the order in which it is told."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ramet.errors import InternalError
from ramet.log import get_logger
from ramet.runtime.engine.channel import Channel, ChannelClosed, say_last_words
from ramet.runtime.engine.faults import fault_of
from ramet.runtime.engine.messages import Message, RunForward, RunSampling, Shutdown
from ramet.runtime.executor.executor import Executor, PendingResult
from ramet.runtime.plan import BatchPlan

_log = get_logger(__name__)


class Follower:
    """Runs until `Shutdown`, or until rank 0 is gone. A step that fails ends the process by `end`, since the other ranks wait for it."""

    def __init__(self, channel: Channel, executor: Executor, end: Callable[[], None]) -> None:
        self._channel, self._executor, self._end = channel, executor, end
        self._plan: BatchPlan | None = None
        self._results = ThreadPoolExecutor(1, thread_name_prefix="ramet-results")

    def run(self) -> None:
        try:
            while all(self._handle(message) for message in self._channel.receive(None)):
                pass
        except ChannelClosed:
            _log.info("Rank 0 is gone; this rank ends")
        finally:
            self._executor.close()
            self._results.shutdown(wait=True, cancel_futures=True)

    def _handle(self, message: Message) -> bool:
        match message:
            case RunForward(plan):
                self._plan = plan
                self._executor.launch(plan)
            case RunSampling():
                if self._plan is None:
                    raise InternalError("told to sample before any plan was given")
                self._results.submit(self._check, self._executor.sample(self._plan, None))
            case Shutdown():
                return False
        return True

    def _check(self, pending: PendingResult) -> None:
        """Wait for a step beside the loop, which has the next one to launch meanwhile."""
        try:
            pending.result()
        except Exception as error:
            _log.exception("A step failed on this rank")
            say_last_words(self._channel, fault_of(error))
            self._end()
