"""The pairs of a step against what one finds token by token."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.executor.pair_layout import lay_out_pairs
from ramet.runtime.plan import PlanRow, RowStart
from ramet.runtime.request import SamplingParams

START = RowStart(SamplingParams(), 0, None, (1,))


@st.composite
def steps(draw: st.DrawFn) -> list[PlanRow]:
    """Rows of some slots; those of one slot stand behind each other, and all but the first go on where the one before them ends."""
    rows = []
    for slot in draw(st.permutations(range(6)))[: draw(st.integers(1, 6))]:
        start, is_reset = draw(st.integers(0, 9)), draw(st.booleans())
        for length in draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)):
            tokens = tuple(100 * slot + start + i for i in range(length))
            rows.append(PlanRow("", slot, tokens, start, 0, (), True, START if is_reset else None))
            start, is_reset = start + length, False
    return rows


@given(rows=steps(), num_kept=st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_every_token_finds_the_feature_before_it(rows: list[PlanRow], num_kept: int) -> None:
    """A feature is named by its slot and position."""
    found = lay_out_pairs(rows, num_kept)
    names = [(row.slot, row.start + i) for row in rows for i in range(len(row.token_ids))]
    wanted, firsts = [], {(row.slot, row.start): row for row in reversed(rows)}
    for number, (slot, position) in enumerate(names):
        row = firsts.get((slot, position))
        is_first = row is not None and (number == 0 or names[number - 1] != (slot, position - 1))
        if is_first and row is not None and (position == 0 or row.reset is not None):
            continue
        wanted.append((100 * slot + position, position - 1, slot, "kept" if is_first else "step"))
    kept = iter(found.kept.tolist())
    ours = []
    for token, position, slot, source in zip(found.token_ids, found.positions, found.slots, found.features, strict=True):
        if source < len(names):
            assert names[source] == (slot, position)
        else:
            assert source - len(names) < len(found.kept) and next(kept) == slot * num_kept + position % num_kept
        ours.append((token, position, slot, "step" if source < len(names) else "kept"))
    assert ours == wanted and not list(kept)
    last = dict(names)
    keeps = {slot * num_kept + p % num_kept: (slot, p) for slot, p in names if p > last[slot] - num_kept}
    assert dict(zip(found.keeps.tolist(), [names[i] for i in found.keeps_from], strict=True)) == keeps
    assert len(set(found.keeps.tolist())) == len(found.keeps)
