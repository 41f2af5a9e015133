"""No run starves another, and what waits is taken along the tree of prompts."""

from __future__ import annotations

import random

import pytest

from ramet.runtime.scheduler.fair_shares import QUANTUM_TOKENS, FairShares
from tests.runtime.scheduler.drive import Drive, request


def forks(driven: Drive, count: int, run: str = "hog", length: int = 40) -> None:
    stem = [1 + i % 50 for i in range(length)]
    driven.add(*[request(f"{run}-{index}", [*stem, index % 60, index // 60], new=24, group=run, path=1) for index in range(count)])


def admitted_before(driven: Drive, name: str) -> int:
    """How many forks were admitted before `name` was."""
    order = [row.request_id for row in driven.rows if row.reset is not None]
    return order.index(name)


@pytest.mark.parametrize(("disabled", "waits_for_all"), [(False, False), (True, True)])
@pytest.mark.parametrize("policy", ["program", "fcfs", "lpm"])
def test_a_run_with_a_thousand_forks_does_not_starve_a_run_with_one(policy: str, disabled: bool, waits_for_all: bool) -> None:
    driven = Drive(num_pages=2048, max_running=8, schedule_policy=policy, disable_run_fairness=disabled)
    forks(driven, 1000)
    for _ in range(200):
        driven.step()
    begun = sum(row.reset is not None for row in driven.rows)
    assert 40 < begun < 200  # the hog has had its quantum
    driven.add(request("single", [60] * 20, new=4, group="one", path=1))
    for _ in range(60):
        driven.step()
    assert ("single" not in driven.ends) == waits_for_all


def test_runs_take_turns_by_what_they_had() -> None:
    driven = Drive(num_pages=4096, max_running=4, schedule_policy="fcfs")
    forks(driven, 300, "a")
    forks(driven, 300, "b")
    for _ in range(900):
        driven.step()
    ended = [sum(name.startswith(run) for name in driven.ends) for run in "ab"]
    assert sum(ended) > 100 and max(ended) < 3 * min(ended)


def test_shares_fade_and_newcomers_have_rank_zero() -> None:
    shares = FairShares()
    assert shares.rank("a") == 0
    shares.charge("a", 4 * QUANTUM_TOKENS)
    assert shares.rank("a") == 3 and shares.rank("b") == 0 and shares.rank("") == 0
    for _ in range(64 * 4):
        shares.charge("", QUANTUM_TOKENS)
    assert shares.rank("a") == 0


def test_the_longest_path_goes_first_within_a_run_and_the_run_that_is_nearest_to_its_end_between_runs() -> None:
    driven = Drive(num_pages=1024, max_running=1)
    driven.add(request("first", [9]))
    driven.step()
    driven.add(
        request("far-leaf", [1], group="far", path=1),
        request("far-long", [2], group="far", path=5),
        request("near-short", [3], new=2, group="near", path=2),
        request("near-lasts", [4], new=9, group="near", path=2),
        request("near-bounded", [5], new=99, group="near", path=2, length_bound=1),
    )
    driven.run()
    order = [row.request_id for row in driven.rows if row.reset is not None]
    assert order == ["first", "near-lasts", "near-short", "near-bounded", "far-long", "far-leaf"]


@pytest.mark.parametrize("overlap", [False, True])
def test_an_offline_batch_computes_every_edge_once(overlap: bool) -> None:
    """Prefixes of prefixes, shuffled, in a pool that holds a tenth of them."""
    dice = random.Random(5)
    prompts = []
    for group in range(12):
        stem = [group] * 2 + [dice.randrange(60) for _ in range(38)]
        for branch in range(4):
            middle = [branch] + [dice.randrange(60) for _ in range(15)]
            prompts += [[*stem, *middle, leaf, *(dice.randrange(60) for _ in range(5))] for leaf in range(6)]
    dice.shuffle(prompts)
    edges = num_edge_tokens(prompts)
    computed = {}
    for policy in ("program", "fcfs"):
        driven = Drive(num_pages=512, max_running=4, overlap=overlap, schedule_policy=policy, max_prefill_tokens=256)
        driven.add(*[request(str(index), prompt, new=3) for index, prompt in enumerate(prompts)])
        driven.run(20_000)
        computed[policy] = driven.prefill_tokens
    assert edges <= computed["program"] <= 1.02 * edges < 1.3 * edges < computed["fcfs"]


def num_edge_tokens(prompts: list[list[int]]) -> int:
    total, before = 0, []
    for prompt in sorted(prompts):
        common = next((i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), min(len(before), len(prompt)))
        total += len(prompt) - common
        before = prompt
    return total


def test_the_oldest_is_not_overtaken_for_ever() -> None:
    """One branch never runs dry; a request of another branch still gets its turn."""
    driven = Drive(num_pages=1024, max_running=2)
    stem = [7] * 24
    driven.add(*[request(f"s{index}", [*stem, index], new=2) for index in range(8)], request("other", [3] * 24, new=2))
    for index in range(8, 600):
        driven.add(request(f"s{index}", [*stem, index % 60, index // 60], new=2))
        driven.step()
        driven.step()
        if "other" in driven.ends:
            break
    assert "other" in driven.ends and admitted_before(driven, "other") <= 256 + 2
