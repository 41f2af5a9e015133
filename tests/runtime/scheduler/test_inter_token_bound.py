"""Prompts do not hold up those that decode, and those that decode do not hold up prompts; priorities take what they need."""

from __future__ import annotations

import random

import pytest

from ramet.errors import ConfigError
from ramet.runtime.config import EngineConfig
from ramet.runtime.plan import BatchPlan
from ramet.runtime.resolve import check
from ramet.runtime.scheduler.step_costs import MIN_CHUNK, StepCosts
from tests.runtime.scheduler.drive import Drive, request

BOUND = 0.05
SLACK = 1.1  # the estimate may be off by the noise of a step


def seconds(plan: BatchPlan, dice: random.Random) -> float:
    prompt = sum(len(row.token_ids) for row in plan.rows if len(row.token_ids) > 1)
    return (0.01 + 0.0002 * prompt) * dice.uniform(0.97, 1.03)


def gaps_under_load(bound: float | None, steps: int = 400) -> tuple[list[float], Drive]:
    """Seconds between the tokens of one request while long prompts keep coming."""
    dice = random.Random(3)
    driven = Drive(num_pages=8192, max_running=8, chunked_prefill_size=1024, max_inter_token_seconds=bound, schedule_policy="fcfs")
    driven.add(request("talker", [1, 2, 3], new=steps + 50))
    gaps, last, count = [], 0.0, 0
    for number in range(steps):
        if driven.scheduler.planner.num_waiting < 2:
            driven.add(request(f"p{number}", [dice.randrange(60) for _ in range(900)], new=2))
        plan = driven.scheduler.plan()
        assert plan is not None
        driven.executor.launch(plan)
        result = driven.executor.sample(plan, None).result()
        driven.now += seconds(plan, dice)
        driven._take(driven.scheduler.commit(plan, result))
        if len(driven.tokens["talker"]) > count:
            gaps.append(driven.now - last)
            last, count = driven.now, len(driven.tokens["talker"])
    return gaps[1:], driven


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def test_the_bound_is_kept_under_a_saturating_load_and_prompts_go_on() -> None:
    bounded, driven = gaps_under_load(BOUND)
    free, other = gaps_under_load(None)
    assert p99(bounded) <= BOUND * SLACK < p99(free)
    ended, ended_free = (sum(name.startswith("p") for name in each.ends) for each in (driven, other))
    assert ended >= 20 and ended_free > ended  # what the bound costs is prompt throughput per step
    per_second = [each.prefill_tokens / each.now for each in (driven, other)]
    assert per_second[0] > 0.7 * per_second[1]


def test_a_bound_that_cannot_be_kept_still_lets_prompts_through() -> None:
    _, driven = gaps_under_load(0.001, steps=200)
    assert MIN_CHUNK * 150 < driven.prefill_tokens <= MIN_CHUNK * 200 + 1024


def test_costs_are_learned_from_steps_with_prompts() -> None:
    costs = StepCosts()
    unknown = costs.chunk_within(1.0)
    for _ in range(50):
        costs.observe(0, 0.005)  # less than the line through the others says
        costs.observe(50, 0.020)
        costs.observe(150, 0.040)
    assert unknown < 100 and costs.chunk_within(0.050) == pytest.approx(200, abs=2)
    costs.observe(100, 0.0)  # a clock that stands still says nothing
    assert costs.chunk_within(0.005) == MIN_CHUNK


def test_the_bound_needs_prompts_that_may_be_split() -> None:
    with pytest.raises(ConfigError, match="max_inter_token_seconds"):
        check(EngineConfig.from_options({"chunked_prefill_size": -1, "max_inter_token_seconds": 0.1}))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_much_higher_priority_takes_the_place_of_a_running_request(overlap: bool) -> None:
    driven = Drive(num_pages=256, max_running=2, schedule_policy="priority", overlap=overlap)
    driven.add(request("a", [1] * 8, new=30), request("b", [2] * 8, new=30, priority=5))
    for _ in range(4):
        driven.step()
    driven.add(request("urgent", [3] * 8, new=2, priority=20), request("pushy", [4] * 8, new=2, priority=14))
    driven.step()
    assert "urgent" in driven.scheduler.planner.running and "a" not in driven.scheduler.planner.running
    driven.run()
    assert driven.ends["a"].num_retractions == 1 and driven.ends["b"].num_retractions == 0
    assert next(iter(driven.ends)) == "urgent" and list(driven.ends).index("pushy") < list(driven.ends).index("a")
    driven.assert_outputs()


def test_a_slightly_higher_priority_waits_for_its_turn() -> None:
    driven = Drive(num_pages=256, max_running=1, schedule_policy="priority")
    driven.add(request("low", [1] * 8, new=10))
    driven.step()
    driven.add(request("higher", [3] * 8, new=2, priority=10))
    driven.run()
    assert list(driven.ends) == ["low", "higher"] and driven.ends["low"].num_retractions == 0


def test_priority_takes_pages_too() -> None:
    driven = Drive(num_pages=64, max_running=8, schedule_policy="priority")
    driven.add(*[request(f"low{index}", [index + 1] * 16, new=8) for index in range(2)])
    for _ in range(3):
        driven.step()
    driven.add(request("large", [9] * 40, new=2, priority=50))
    driven.run()
    assert next(iter(driven.ends)) == "large" and driven.scheduler.counters.retractions >= 1
    driven.assert_outputs()
