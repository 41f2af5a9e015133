"""The steps before the first request are of the sizes that steps have later."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from ramet.runtime.executor.eagle_runner import GRAPH_SIZES
from ramet.runtime.executor.executor import PendingResult
from ramet.runtime.executor.fake import FakeExecutor, FakeModel
from ramet.runtime.executor.gpu_warm_up import warm_up
from ramet.runtime.plan import BatchPlan, Capacity, StepResult, TokenMasks

SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 256)


class Noted(FakeExecutor):
    """Which steps it was asked for, tokens of each row; none is run, since warming up lets rows write to one place."""

    def __init__(self, capacity: Capacity) -> None:
        super().__init__(capacity, FakeModel(vocab_size=64))
        self.steps: list[tuple[int, ...]] = []

    def launch(self, plan: BatchPlan) -> None:
        """The pages of a row reach as far as its tokens."""
        assert len({row.slot for row in plan.rows}) == len(plan.rows) <= self.capacity.max_running
        own = [row for row in plan.rows if row.new_pages]  # a head brings pages by itself
        assert all(row.end <= (row.first_page + len(row.new_pages)) * self.capacity.page_size for row in own)
        self.steps.append(tuple(len(row.token_ids) for row in plan.rows))

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        return Nothing()


class Nothing:
    """Implements `PendingResult`."""

    def result(self) -> StepResult:
        return StepResult(())


def warmed_up(page_size: int, *, pieces: bool) -> list[tuple[int, ...]]:
    executor = Noted(Capacity(num_pages=-(-16384 // page_size), page_size=page_size, max_running=256))
    warm_up(executor, SIZES, nullcontext(), pieces=pieces)
    return executor.steps


@pytest.mark.parametrize("page_size", [1, 16])
def test_pieces_of_prompts_ride_on_steps_of_many_sizes(page_size: int) -> None:
    plain, steps = warmed_up(page_size, pieces=False), warmed_up(page_size, pieces=True)
    assert steps[: len(plain)] == plain and {(1,) * size for size in SIZES} <= set(plain)
    riding = {(len(step), sum(step)) for step in steps[len(plain) :]}
    assert riding == {(rows, tokens) for rows in (8, 16, 32, 64) for tokens in (32, 64, 96, 128, 160, 192) if rows < tokens}
    assert all(step[:-1] == (1,) * (len(step) - 1) and step[-1] > 1 for step in steps[len(plain) :])


@pytest.mark.parametrize("max_running", [5, 48, 256])
def test_a_head_guesses_for_as_many_as_it_has_recordings_for(max_running: int) -> None:
    executor, head = (Noted(Capacity(num_pages=16384, page_size=1, max_running=max_running)) for _ in range(2))
    warm_up(executor, (), nullcontext(), head)
    assert {min(size, max_running) for size in GRAPH_SIZES} <= {len(step) for step in head.steps}


def test_a_pool_that_is_too_small_is_left_alone() -> None:
    executor = Noted(Capacity(num_pages=512, page_size=1, max_running=8))
    warm_up(executor, SIZES, nullcontext(), pieces=True)
    assert not executor.steps
