"""A matcher whose forced tokens are binding, so that output is the same whether they are appended at once or masked one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ramet.grammar.matcher import MaskTask, Matcher


class ForcedRuns:
    """Implements `Matcher` over another one.

    A run that the grammar forces is tokenised where it begins, and whole. Asked again inside the run, with less text before it, the
    tokenizer may cut the rest otherwise (a word after a quotation mark, half a character); so masks inside the run follow what was
    said at its beginning.
    """

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._run: Sequence[int] = ()
        self._done = 0  # tokens of the run that were accepted
        self._asked = False  # behind the run: whether another begins here was asked, and none does
        self._before: list[tuple[Sequence[int], int]] = []  # (run, done) before each accepted token

    def accept(self, token_ids: Sequence[int]) -> int:
        for count, token in enumerate(token_ids):
            in_run = self._done < len(self._run)
            if (in_run and token != self._run[self._done]) or self._matcher.accept((token,)) != 1:
                return count
            self._before.append((self._run, self._done))
            self._done += in_run
            self._asked = False
        return len(token_ids)

    def rollback(self, num_tokens: int) -> None:
        self._matcher.rollback(num_tokens)
        if num_tokens:
            self._run, self._done = self._before[-num_tokens]
            del self._before[-num_tokens:]
            self._asked = False

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        self._begin_run()
        if self._done < len(self._run):
            allow_only(row, self._run[self._done])
        else:
            self._matcher.fill_mask(row)

    def start_mask(self, row: npt.NDArray[np.uint32]) -> MaskTask | None:
        self._begin_run()
        if self._done == len(self._run):
            return self._matcher.start_mask(row)
        allow_only(row, self._run[self._done])
        return None

    def forced_tokens(self) -> list[int]:
        self._begin_run()
        return list(self._run[self._done :])

    def _begin_run(self) -> None:
        if self._done == len(self._run) and not self._asked:
            self._run, self._done, self._asked = self._matcher.forced_tokens(), 0, True

    @property
    def complete(self) -> bool:
        return self._matcher.complete

    @property
    def stopped(self) -> bool:
        return self._matcher.stopped


def allow_only(row: npt.NDArray[np.uint32], token: int) -> None:
    """Write the mask (layout: `TokenMasks`) that leaves no choice."""
    row[:] = 0
    row[token // 32] = np.uint32(1 << token % 32)
