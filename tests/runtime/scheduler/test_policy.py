"""Orders of the waiting queue, on a cache that holds some prefixes; and that nobody starves."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.request import SamplingParams
from ramet.runtime.scheduler.admission import NewTokenRatio, PrefillBudget
from ramet.runtime.scheduler.policy import POLICIES, PolicyContext
from ramet.runtime.scheduler.request_state import Phase, RequestState
from tests.runtime.scheduler.drive import Drive, request


def context(*cached: list[int]) -> PolicyContext:
    cache = PrefixCache(256, 1)
    for ids in cached:
        lease = cache.acquire("", np.array(ids, dtype=np.int32))
        lease.pages.extend(cache.allocate(len(ids) - len(lease.pages)) or [])
        cache.insert(lease, np.array(ids, dtype=np.int32))
        cache.release(lease)
    return PolicyContext(cache, random.Random(0), max_overtakes=10)


def waiting(*prompts: list[int], new: tuple[int, ...] = (), priority: tuple[int, ...] = ()) -> list[RequestState]:
    states = []
    for index, prompt in enumerate(prompts):
        sampling = SamplingParams(max_new_tokens=new[index] if new else 4)
        one = request(str(index), prompt, sampling=sampling, priority=priority[index] if priority else 0)
        states.append(RequestState(one, index, sampling.max_new_tokens, Phase.WAITING))
    return states


def order(policy: str, states: list[RequestState], where: PolicyContext) -> list[str]:
    return [state.request_id for state in POLICIES[policy](states, where)]


def test_lpm_takes_the_longest_cached_prefix_first() -> None:
    states = waiting([9, 9], [1, 2, 8, 8], [1, 2, 3, 4, 5])
    assert order("lpm", states, context([1, 2, 3, 4])) == ["2", "1", "0"]


def test_lpm_looks_again_when_the_tree_changed() -> None:
    where, states = context([1, 2, 3]), waiting([7, 7, 7], [1, 2, 3, 4])
    assert order("lpm", states, where) == ["1", "0"]
    where.cache.flush()
    assert order("lpm", states, where) == ["0", "1"]


def test_dfs_weight_keeps_a_branch_together_heaviest_first() -> None:
    states = waiting([5, 5, 1], [1, 2, 3, 0], [5, 5, 2], [1, 2, 4, 0], [1, 2, 3, 1])
    assert order("dfs-weight", states, context([5, 5], [1, 2, 3], [1, 2, 4])) == ["1", "4", "3", "0", "2"]


def test_lof_and_priority_and_fcfs() -> None:
    states = waiting([1], [2], [3], new=(4, 9, 6), priority=(0, 1, 1))
    assert order("lof", states, context()) == ["1", "2", "0"]
    assert order("priority", states, context()) == ["1", "2", "0"]
    assert order("fcfs", states, context()) == ["0", "1", "2"]


def test_random_is_a_permutation_given_by_the_seed() -> None:
    states = waiting(*([i] for i in range(1, 30)))
    first = order("random", states, context())
    assert first == order("random", states, context()) and sorted(first) == sorted(s.request_id for s in states) and first != sorted(first)


def test_the_overdue_go_first() -> None:
    where, states = context([1, 2, 3]), waiting([7, 7], [1, 2, 3, 4])
    where.num_admissions = 10
    states[1].admissions_before = 9
    assert order("lpm", states, where) == ["0", "1"]


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight", "lof"])
def test_a_request_that_everybody_overtakes_still_runs(policy: str) -> None:
    """A steady stream of requests that the policy prefers, one slot, and one request that it does not."""
    drive = Drive(max_running=1, schedule_policy=policy, num_pages=128)
    drive.add(request("seed", [1, 2, 3, 4, 5], 3))
    while drive.scheduler.has_work:
        drive.step()
    drive.add(request("busy", [1, 2, 3, 4, 6], 3), request("poor", [9, 9, 9], 1))
    for index in range(60):
        drive.add(request(str(index), [1, 2, 3, 4, 5, index + 10 if index < 30 else 7], 3))
        drive.step()
    assert "poor" in drive.ends
    drive.run()


def test_budget_splits_or_lets_one_long_prompt_through() -> None:
    splitting = PrefillBudget(100, 10)
    assert splitting.grant(50, 1000) == 10 and splitting.grant(50, 3) == 3
    splitting.spend(10)
    assert splitting.is_spent and splitting.grant(5, 1000) == 0
    whole = PrefillBudget(100, None)
    assert whole.grant(500, 1000) == 500 and whole.grant(500, 499) == 0
    whole.spend(60)
    assert whole.grant(41, 1000) == 0 and whole.grant(40, 1000) == 40


def test_ratio_falls_with_quiet_steps_and_jumps_after_a_retraction() -> None:
    ratio, states = NewTokenRatio(), waiting([1], [2], new=(100, 100))
    first = ratio.value
    for _ in range(1000):
        ratio.on_step()
    assert ratio.value < first / 5
    for state in states:
        state.output_ids = [0] * 60
    ratio.on_retraction(states)
    assert ratio.value == pytest.approx(0.8)
