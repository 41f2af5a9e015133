"""Guessing where it is faster: found in few steps, found again when it changes, and never felt in what is said."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.executor.executor import PendingResult
from ramet.runtime.plan import BatchPlan, TokenMasks
from ramet.runtime.request import SamplingParams
from ramet.runtime.scheduler.guess_policy import FIRST, RUN, TRIAL, GuessPolicy
from ramet.runtime.scheduler.request_state import RequestState
from tests.runtime.scheduler.drive import Drive, request

Step = Callable[[bool], tuple[int, float]]
"""Whether it guesses → tokens, seconds."""


def played(policy: GuessPolicy, step: Step, num_steps: int, num_requests: int = 4) -> list[bool]:
    """Which way each step went."""
    found = []
    for _ in range(num_steps):
        guesses = policy.guesses(num_requests)
        tokens, seconds = step(guesses)
        policy.observe(num_requests, guesses=guesses, tokens=tokens, seconds=seconds)
        found.append(guesses)
    return found


def wins(guesses: bool) -> tuple[int, float]:
    return (10, 0.006) if guesses else (4, 0.004)


def loses(guesses: bool) -> tuple[int, float]:
    return (5, 0.009) if guesses else (4, 0.004)


@pytest.mark.parametrize(("step", "best"), [(wins, True), (loses, False)])
def test_the_better_way_runs(step: Step, best: bool) -> None:
    found = played(GuessPolicy(), step, 2000)
    settled = found[FIRST + TRIAL + 4 :]
    assert settled.count(not best) < 0.04 * len(settled)
    assert settled.count(not best) >= (len(settled) // (RUN + TRIAL + 2)) * TRIAL


def test_it_is_found_out_when_texts_change() -> None:
    policy = GuessPolicy()
    assert not played(policy, loses, 100)[-1]
    found = played(policy, wins, 2 * RUN)
    assert found[-1] and found.index(True) < RUN


def test_a_trial_forgets_other_texts() -> None:
    """Without guesses these texts are faster than with, and than all before."""
    policy = GuessPolicy()
    played(policy, lambda guesses: (80, 0.1) if guesses else (40, 0.1), 4 * RUN)
    found = played(policy, lambda guesses: (60, 0.1) if guesses else (66, 0.1), RUN + 4 * TRIAL)
    assert not any(found[-2 * TRIAL :])


def test_a_pause_decides_nothing() -> None:
    policy, number = GuessPolicy(), 0

    def step(guesses: bool) -> tuple[int, float]:
        nonlocal number
        number += 1
        return (10, 0.3) if guesses and number % 7 == 0 else wins(guesses)

    assert sum(played(policy, step, 1000)) > 900


def test_every_crowd_has_its_own_way() -> None:
    policy = GuessPolicy()
    played(policy, wins, 100, num_requests=2)
    played(policy, loses, 100, num_requests=60)
    assert policy.guesses(3) and not policy.guesses(33) and policy.guesses(12) and not policy.guesses(200)


def test_always() -> None:
    assert all(played(GuessPolicy(always=True), loses, 200))


class Fitful(GuessPolicy):
    """Changes its mind at random, whenever it is asked."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)

    def guesses(self, num_requests: int) -> bool:
        return self._rng.random() < 0.6


@given(seed=st.integers(0, 10**6), overlap=st.booleans(), page_size=st.sampled_from([1, 4]))
@settings(max_examples=30, deadline=None)
def test_output_does_not_depend_on_it(seed: int, overlap: bool, page_size: int) -> None:
    """Requests come and go, and repeat themselves, so that guesses are in flight when guessing ends."""
    rng = random.Random(seed)
    runs = Drive(
        num_guesses=4, guess_policy=Fitful(seed), overlap=overlap, page_size=page_size, num_pages=rng.choice([64, 256]) // page_size
    )
    for number in range(rng.randint(1, 6)):
        sampling = SamplingParams(max_new_tokens=rng.randint(1, 40), temperature=rng.choice([0.0, 1.0]))
        runs.add(request(str(number), [1, 2, 3] * rng.randint(1, 5), sampling=sampling, seed=number))
        for _ in range(rng.randint(0, 5)):
            runs.step()
    runs.run()
    runs.assert_outputs()


class Oracle:
    """A guesser that knows what will be said, or something else at every place."""

    has_failed = False

    def __init__(self, expected: Sequence[int], *, right: bool) -> None:
        self._expected = [token if right else token % 60 + 1 for token in expected]

    def guess(self, wanted: Sequence[tuple[RequestState, int]]) -> list[list[int]]:
        return [self._expected[state.num_outputs : state.num_outputs + most] for state, most in wanted]

    def forget(self, request_id: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("overlap", [True, False])
def test_the_scheduler_finds_out_which_steps_pay(right: bool, overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device on which a step with guesses takes half as long again."""
    asked = request("a", range(1, 9), 400)
    twin = Drive(num_pages=512)
    twin.add(asked)
    expected = twin.expected("a")
    runs = Drive(num_guesses=3, guess_policy=GuessPolicy(), guesser=Oracle(expected, right=right), num_pages=512, overlap=overlap)
    sample, guessed = runs.executor.sample, list[bool]()

    def timed(plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        guessed.append(len(plan.rows) > 1)
        runs.now += 1.5 if guessed[-1] else 1.0
        return sample(plan, masks)

    monkeypatch.setattr(runs.executor, "sample", timed)
    runs.add(asked)
    runs.run()
    runs.assert_outputs()
    settled = guessed[FIRST + TRIAL + 6 : -2]
    assert settled.count(not right) < 0.1 * len(settled)
