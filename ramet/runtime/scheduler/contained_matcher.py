"""A matcher whose errors end its own request, and no other one of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ramet.errors import InternalError, RametError
from ramet.grammar.matcher import MaskTask, Matcher
from ramet.log import get_logger

ALL_ALLOWED = np.uint32(0xFFFFFFFF)

_log = get_logger(__name__)


class ContainedMatcher:
    """Implements `Matcher` over the one that `make` gives. After an error in it `failure` says which: masks then allow everything, since
    the step of the others must be sampled, and no token is accepted, which ends the request."""

    def __init__(self, make: Callable[[], Matcher]) -> None:
        self.failure: RametError | None = None
        try:
            self._matcher = make()
        except Exception as error:
            self._fail(error)

    def accept(self, token_ids: Sequence[int]) -> int:
        try:
            return self._matcher.accept(token_ids)
        except Exception as error:
            self._fail(error)
            return 0

    def rollback(self, num_tokens: int) -> None:
        try:
            self._matcher.rollback(num_tokens)
        except Exception as error:
            self._fail(error)

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        self._write(row, lambda: self._matcher.fill_mask(row))

    def start_mask(self, row: npt.NDArray[np.uint32]) -> MaskTask | None:
        try:
            task = self._matcher.start_mask(row)
        except Exception as error:
            self._fail(error)
            row[:] = ALL_ALLOWED
            return None
        if task is None:
            return None
        return task._replace(run=lambda: self._write(row, task.run), finish=lambda: self._write(row, task.finish))

    def forced_tokens(self) -> list[int]:
        try:
            return self._matcher.forced_tokens()
        except Exception as error:
            self._fail(error)
            return []

    @property
    def complete(self) -> bool:
        return self._matcher.complete

    @property
    def stopped(self) -> bool:
        return self._matcher.stopped

    def _write(self, row: npt.NDArray[np.uint32], write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            self._fail(error)
            row[:] = ALL_ALLOWED

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, RametError):
            _log.error("a grammar failed while its request was running; the request ends with an error", exc_info=error)
            error = InternalError(f"the grammar failed: {error}")
        self.failure = error
        self._matcher = _Broken()


class _Broken:
    def accept(self, token_ids: Sequence[int]) -> int:
        return 0

    def rollback(self, num_tokens: int) -> None:
        pass

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        row[:] = ALL_ALLOWED

    def start_mask(self, row: npt.NDArray[np.uint32]) -> MaskTask | None:
        self.fill_mask(row)
        return None

    def forced_tokens(self) -> list[int]:
        return []

    complete = stopped = False
