"""KV that was evicted comes back from host memory and from files, the same bit by bit, or is computed again."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ramet.runtime.request import KvHint
from tests.runtime.scheduler.drive import Drive, Tier, request
from tests.waiting import PATIENCE

LONG = tuple(range(1, 49)) * 2  # 96 tokens: six blocks
OTHER = tuple(range(60, 2, -1)) * 2


def drive(tier: Tier | None, **options: object) -> Drive:
    return Drive(num_pages=160, tier=tier, **options)  # type: ignore[arg-type]


def evict_everything(subject: Drive) -> None:
    """By a request that needs the whole pool."""
    subject.add(request("flood", OTHER, new=40))
    subject.run_on()


@pytest.mark.parametrize("overlap", [False, True])
def test_evicted_kv_comes_back_from_host_memory(overlap: bool) -> None:
    subject = drive(Tier(), overlap=overlap)
    subject.add(request("first", LONG))
    subject.run_on()
    evict_everything(subject)
    assert subject.cache.peek("", np.array(LONG, dtype=np.int32)) < 64
    subject.add(request("again", (*LONG, 7, 7)))
    subject.run_on()
    assert subject.ends["again"].cached_tokens == 96
    assert subject.tier is not None and subject.tier.counters.loaded > 0
    subject.assert_outputs()


def test_what_a_program_is_done_with_is_not_saved() -> None:
    subject = drive(Tier(), eviction="next-use")
    subject.add(request("first", LONG, group="run"))
    subject.run_on()
    tokens = (*LONG, *subject.tokens["first"])
    subject.scheduler.hint(KvHint(kind="free", run_id="run", token_ids=tokens))
    evict_everything(subject)
    assert subject.tier is not None and subject.tier.counters.saved == 0


@pytest.mark.parametrize("saves_early", [False, True])
def test_a_second_server_finds_what_the_first_left_on_disk(tmp_path: Path, saves_early: bool) -> None:
    first = drive(Tier(directory=tmp_path, saves_early=saves_early))
    first.add(request("first", LONG))
    first.run_on()
    if not saves_early:
        evict_everything(first)
    first.close()
    second = drive(Tier(directory=tmp_path))
    second.add(request("again", (*LONG, 7, 7)))
    second.run_on()
    assert second.ends["again"].cached_tokens == 96
    assert second.tier is not None and second.tier.counters.loaded_from_disk == 96
    second.assert_outputs()


def test_another_model_finds_nothing(tmp_path: Path) -> None:
    first = drive(Tier(directory=tmp_path, saves_early=True))
    first.add(request("first", LONG))
    first.run_on()
    first.close()
    second = drive(Tier(directory=tmp_path, fingerprint="another"))
    second.add(request("again", LONG))
    second.run_on()
    assert second.ends["again"].cached_tokens == 0


@pytest.mark.parametrize("damage", ["cut", "flip", "swap", "empty", "remove"])
def test_a_damaged_file_is_a_miss(tmp_path: Path, damage: str) -> None:
    first = drive(Tier(directory=tmp_path, saves_early=True))
    first.add(request("first", LONG))
    first.run_on()
    first.close()
    second = drive(Tier(directory=tmp_path))
    files = sorted(tmp_path.glob("*/*.kv"))
    assert len(files) == 6
    for path, other in zip(files, [*files[1:], files[0]], strict=True):
        spoil(path, damage, other)
    second.add(request("again", (*LONG, 7, 7)))
    second.run_on()
    assert second.ends["again"].cached_tokens == 0
    assert second.tier is not None and second.tier.disk is not None and second.tier.disk.num_failed == 6
    second.assert_outputs()


def spoil(path: Path, damage: str, other: Path) -> None:
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-1]
    elif damage == "flip":
        data[-5] ^= 1
    elif damage == "swap":
        data = bytearray(other.read_bytes())
    elif damage == "empty":
        data = bytearray()
    path.unlink() if damage == "remove" else path.write_bytes(data)


def test_the_directory_stays_within_its_bound(tmp_path: Path) -> None:
    bound = 4 * 400
    subject = drive(Tier(directory=tmp_path, saves_early=True, disk_bytes=bound))
    for index in range(6):
        subject.add(request(str(index), tuple((token + index) % 60 + 1 for token in LONG)))
        subject.run_on()
        assert size_of(tmp_path) <= bound + 6 * 400  # what is being written while older files go
    subject.close()
    assert bound - 400 < size_of(tmp_path) <= bound
    drive(Tier(directory=tmp_path, disk_bytes=700)).close()
    assert 300 < size_of(tmp_path) <= 700


def size_of(directory: Path) -> int:
    """Of the files that are there; some may go while we look."""
    total = 0
    for path in directory.glob("*/*.kv"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_files_of_others_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for name in ("notes/.draft", "notes/a.kv", ".hidden"):
        (tmp_path / name).write_text("mine")
    drive(Tier(directory=tmp_path, disk_bytes=0)).close()
    assert {path.read_text() for path in [tmp_path / "notes/.draft", tmp_path / "notes/a.kv", tmp_path / ".hidden"]} == {"mine"}


def test_a_slow_disk_is_not_waited_for_longer_than_computing_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = drive(Tier(directory=tmp_path, saves_early=True))
    first.add(request("first", LONG))
    first.run_on()
    first.close()
    second = drive(Tier(directory=tmp_path))
    assert second.tier is not None and second.tier.disk is not None
    computed = threading.Event()
    monkeypatch.setattr(second.tier.disk, "_read", lambda *_: (computed.wait(PATIENCE), (False, 0))[1])
    second.tier.rates.observe_step(1000, 1.0)
    second.add(request("again", LONG))
    assert second.step() is None  # it waits, and the loop does not
    second.now += 0.2  # 96 tokens take a tenth of a second
    assert second.step() is not None
    computed.set()
    second.run_on()
    second.assert_outputs()


def test_what_is_cheaper_to_compute_is_not_read(tmp_path: Path) -> None:
    first = drive(Tier(directory=tmp_path, saves_early=True))
    first.add(request("first", LONG))
    first.run_on()
    first.close()
    second = drive(Tier(directory=tmp_path))
    assert second.tier is not None
    second.tier.rates.observe_step(1_000_000, 1.0)
    second.tier.rates.observe_read(1000, 1.0)
    second.add(request("again", LONG))
    second.run_on()
    assert second.ends["again"].cached_tokens == 0
    assert second.tier.counters.cheaper_computed == 80


def test_a_failed_step_leaves_nothing_in_the_tier() -> None:
    subject = drive(Tier(saves_early=True))
    subject.add(request("first", LONG))
    while not subject.scheduler.cache.tier.has_moves:
        subject.step()
    subject.fail_step()
    assert subject.tier is not None and len(subject.tier.host) == 0
    evict_everything(subject)
    subject.add(request("again", LONG))
    subject.run_on()
    subject.assert_outputs()
