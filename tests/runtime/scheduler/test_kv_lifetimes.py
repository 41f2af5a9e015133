"""KV of program runs: kept while they pause, for a bounded time and share, and never at the price of a deadlock."""

from __future__ import annotations

from typing import Any

import pytest

from ramet.runtime.config import MemoryConfig
from ramet.runtime.request import KvHint
from ramet.runtime.scheduler.kv_lifetimes import KvLifetimes
from tests.runtime.scheduler.drive import Drive, request

PAUSED = list(range(1, 21))


def drive(num_pages: int = 64, eviction: str = "next-use", **options: Any) -> Drive:
    return Drive(num_pages=num_pages, eviction=eviction, **options)


def pause(driven: Drive, run: str = "run", prompt: list[int] = PAUSED) -> list[int]:
    """A generation of `run` ends, and the run waits for its host. Returns its tokens so far."""
    name = f"{run}-first"
    driven.add(request(name, prompt, group=run, path=2))
    while name not in driven.ends:
        driven.step()
    tokens = [*prompt, *driven.tokens[name]]
    driven.scheduler.hint(KvHint(kind="pin", run_id=run, token_ids=tuple(tokens)))
    return tokens


def crowd(driven: Drive, count: int = 6, first: int = 0) -> None:
    """Requests of nobody's, more than the pool holds."""
    for index in range(first, first + count):
        driven.add(request(f"c{index}", [30 + index] * 16))
    while any(f"c{index}" not in driven.ends for index in range(first, first + count)):
        driven.step()


@pytest.mark.parametrize(("eviction", "kept"), [("next-use", 23), ("lru", 0)])
def test_a_paused_run_finds_its_kv_again(eviction: str, kept: int) -> None:
    driven = drive(eviction=eviction)
    tokens = pause(driven)
    crowd(driven)
    driven.add(request("second", [*tokens, 5], group="run", path=1))
    driven.run()
    assert driven.ends["second"].cached_tokens == kept
    driven.assert_outputs()


def test_without_a_host_call_the_path_says_that_a_run_goes_on() -> None:
    driven = drive()
    driven.add(request("on", PAUSED, group="run", path=3), request("end", [*PAUSED[::-1]], group="other", path=1))
    while len(driven.ends) < 2:
        driven.step()
    assert driven.scheduler.stats().pinned_tokens == len(PAUSED) + 3
    crowd(driven)
    driven.add(request("next", [*PAUSED, *driven.tokens["on"], 5], group="run"))
    driven.run()
    assert driven.ends["next"].cached_tokens == len(PAUSED) + 3


def test_a_pin_ends_with_its_time_its_use_and_its_run() -> None:
    driven = drive()
    tokens = pause(driven)
    assert driven.scheduler.stats().pinned_tokens == 23
    driven.now = 59.0
    driven.scheduler.plan()
    assert driven.scheduler.stats().pinned_tokens == 23
    driven.now = 61.0
    driven.scheduler.plan()
    assert driven.scheduler.stats().pinned_tokens == 0
    for kind in ("free", "end"):
        driven.scheduler.hint(KvHint(kind="pin", run_id="run", token_ids=tuple(tokens)))
        assert driven.scheduler.stats().pinned_tokens == 23
        driven.scheduler.hint(KvHint(kind=kind, run_id="run", token_ids=tuple(tokens)))  # type: ignore[arg-type]
        assert driven.scheduler.stats().pinned_tokens == 0


def test_what_a_run_has_done_with_goes_before_what_others_used_earlier() -> None:
    driven = drive()
    crowd(driven, 2)
    tokens = pause(driven)
    driven.scheduler.hint(KvHint(kind="free", run_id="run", token_ids=tuple(tokens)))
    crowd(driven, 1, first=9)
    driven.add(request("again", [30] * 16))
    driven.run()
    driven.add(request("gone", [*tokens, 5]))
    driven.run()
    assert driven.ends["again"].cached_tokens == 15 and driven.ends["gone"].cached_tokens < 20


def test_pins_keep_to_their_share_the_farthest_is_given_up() -> None:
    driven = drive(num_pages=100)
    for index in range(4):
        pause(driven, f"r{index}", [index + 1] * 20)
        driven.now += 1.0
    assert driven.scheduler.stats().pinned_tokens == 46  # two of 23 in half of 100
    tops = [node for node in driven.cache.tree.nodes() if node.parent is not None and node.parent.parent is None]
    held = {int(node.key[0]) for node in tops if node.num_pins}
    assert held == {1, 2}  # the latest pins are those whose next use is farthest
    lifetimes = driven.scheduler._lifetimes
    assert lifetimes.num_revoked == 2


def test_pins_never_stop_an_admission() -> None:
    """Half of the pool is pinned, and a prompt comes that needs all of it."""
    driven = drive(num_pages=64)
    pause(driven)
    driven.add(request("large", [9] * 60))
    driven.run()
    assert driven.finish("large").kind == "length"


def test_a_run_that_has_begun_goes_before_newcomers_that_would_push_it_out() -> None:
    """While anything runs, a newcomer waits for room beside what is pinned; a run that has begun does not."""
    driven = drive(num_pages=72, max_running=4)
    driven.scheduler.planner.ratio.value = 1.0
    tokens = pause(driven)
    driven.add(request("long", [40] * 16, new=16))
    driven.step()
    driven.add(request("new", [41] * 16, new=8), request("second", [*tokens, 5], group="run"))
    driven.step()
    driven.step()
    running = set(driven.scheduler.planner.running)
    assert running == {"long", "second"}
    driven.run()
    assert driven.ends["second"].cached_tokens == 23
    driven.assert_outputs()


def test_a_large_newcomer_is_not_kept_out_for_ever_by_runs_that_come_and_go() -> None:
    """Runs pause and go on without end, so something always runs and half of the pool is always pinned."""
    driven = drive(num_pages=96, max_running=3)
    turn = {f"r{index}": (1, [index + 1] * 12) for index in range(4)}
    for run, (_, prompt) in turn.items():
        driven.add(request(f"{run}-0", prompt, group=run, path=9))
    driven.step()
    driven.add(request("large", [50] * 70))
    for _ in range(400):
        driven.step()
        if "large" in driven.ends:
            break
        for run, (number, prompt) in turn.items():
            if f"{run}-{number - 1}" in driven.ends:
                driven.add(request(f"{run}-{number}", prompt, group=run, path=9))
                turn[run] = (number + 1, prompt)
    assert "large" in driven.ends and len(driven.ends) > 12


def test_no_share_means_no_pins() -> None:
    driven = drive()
    cache = driven.cache
    lifetimes = KvLifetimes(cache, lambda: 0.0, MemoryConfig().kv_pin_seconds, 0.0, 64)
    driven.add(request("a", PAUSED))
    driven.run()
    lifetimes.hint(KvHint(kind="pin", run_id="run", token_ids=tuple(PAUSED)))
    assert cache.pinned_tokens == 0


def test_a_run_whose_end_nobody_tells_is_forgotten() -> None:
    driven = drive()
    driven.add(request("a", PAUSED, group="silent"), request("b", PAUSED, group="busy"))
    driven.run()
    lifetimes = driven.scheduler._lifetimes
    assert lifetimes.has_begun("silent") and lifetimes.has_begun("busy")
    for name, now in (("c", 400.0), ("d", 800.0)):
        driven.now = now
        driven.add(request(name, PAUSED, group="busy"))
        driven.run()
    assert not lifetimes.has_begun("silent") and lifetimes.has_begun("busy")


def test_a_flushed_cache_has_no_pins() -> None:
    driven = drive()
    pause(driven)
    assert driven.scheduler.flush_cache()
    assert driven.scheduler.stats().pinned_tokens == 0
    pause(driven, "run", [3] * 20)
    driven.now = 1000.0
    driven.scheduler.plan()
    assert driven.scheduler.stats().pinned_tokens == 0
