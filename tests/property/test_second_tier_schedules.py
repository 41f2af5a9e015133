"""Whatever goes to host memory and to disk and comes back, in whatever order, and whatever ends in between: outputs are the model's."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.cache.host_blocks import HostBlock
from ramet.runtime.cache.second_tier import SecondTier
from ramet.runtime.executor.fake import FakeModel
from ramet.runtime.request import FinishKind, SamplingParams
from tests.runtime.scheduler.drive import Drive, Tier, request
from tests.waiting import PATIENCE

MODEL = FakeModel(vocab_size=40, context_len=96, eos_probability=0.02)
STEMS = ((1, 2, 3, 4, 5, 6, 7, 8) * 4, (1, 2, 3, 4, 5, 6, 7, 8) * 2 + (9,) * 20, (5,) * 40)

THEN = st.sampled_from(["go on", "go on", "abort", "fail"])
TURNS = st.lists(
    st.tuples(st.sampled_from(STEMS), st.lists(st.integers(0, 39), max_size=5), st.integers(0, 12), THEN), min_size=1, max_size=7
)
Turn = tuple[tuple[int, ...], list[int], int, str]


@given(
    lives=st.lists(TURNS, min_size=1, max_size=3),
    page_size=st.sampled_from([1, 4]),
    pool=st.integers(64, 128),
    num_blocks=st.integers(1, 10),
    disk_bytes=st.sampled_from([0, 1500, 1 << 20]),
    saves_early=st.booleans(),
    is_beside_pool=st.booleans(),
    overlap=st.booleans(),
    damage=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_servers_that_share_a_directory_give_the_models_outputs(
    lives: list[list[Turn]],
    page_size: int,
    pool: int,
    num_blocks: int,
    disk_bytes: int,
    saves_early: bool,
    is_beside_pool: bool,
    overlap: bool,
    damage: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for life in lives:
            tier = Tier(num_blocks, 16, Path(folder), disk_bytes, saves_early, is_beside_pool=is_beside_pool)
            drive = Drive(num_pages=pool // page_size, page_size=page_size, overlap=overlap, tier=tier, model=MODEL, max_running=3)
            _live(drive, life)
            drive.close()
            assert sum(path.stat().st_size for path in Path(folder).glob("*/*.kv")) <= disk_bytes
            for path in sorted(Path(folder).glob("*/*.kv"))[::3] if damage else ():
                path.write_bytes(path.read_bytes()[:-3] + b"abc")


def _live(drive: Drive, turns: list[Turn]) -> None:
    for index, (stem, tail, new, then) in enumerate(turns):
        drive.add(request(str(index), (*stem, *tail), sampling=SamplingParams(max_new_tokens=new, temperature=0.0)))
        for _ in range(index % 3):
            drive.step()
        if then == "abort":
            drive.scheduler.abort(str(index))
        if then == "fail":
            drive.finish_flight()
            drive.fail_step()
    drive.run_on()
    for index in range(len(turns)):
        finish, got, expected = drive.finish(str(index)), tuple(drive.tokens[str(index)]), drive.expected(str(index))
        assert got == (expected if finish.kind is not FinishKind.ABORT else expected[: len(got)])
    _check_tier(drive)
    drive.check_idle()


def _check_tier(drive: Drive) -> None:
    """Nothing is held any longer but what the disk copies, and every block is free or holds one key."""
    assert drive.tier is not None and drive.tier.disk is not None
    blocks, patience = _blocks(drive.tier), time.monotonic() + PATIENCE
    while any(block.holds for block in blocks) and time.monotonic() < patience:
        time.sleep(0.001)
        drive.tier.poll()
        blocks = _blocks(drive.tier)
    assert all(block.holds == 0 and block.is_ready and drive.tier.host.find(block.key) is block for block in blocks)
    assert len(blocks) == len(drive.tier.host)


def _blocks(tier: SecondTier) -> list[HostBlock]:
    return [tier.host.at(number) for number in range(tier.host.num_blocks) if tier.host.holds(number)]
