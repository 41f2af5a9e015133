"""The fake refuses what no executor could run, and notices every corrupted page."""

from __future__ import annotations

import numpy as np
import pytest

from ramet.errors import InternalError
from ramet.runtime.executor.fake import FakeExecutor, FakeModel, expected_output
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, Capacity, PlanRow, RowResult, RowStart, TokenMasks
from ramet.runtime.request import LogprobParams, SamplingParams

GREEDY = SamplingParams(max_new_tokens=3, temperature=0.0)
MODEL = FakeModel(vocab_size=64)


def row(slot: int, tokens: tuple[int, ...], pages: tuple[int, ...], **fields: object) -> PlanRow:
    start = RowStart(GREEDY, 0, None, tokens)
    made = PlanRow(request_id=str(slot), slot=slot, token_ids=tokens, start=0, first_page=0, new_pages=pages, samples=True, reset=start)
    return made._replace(**fields)


def executor() -> FakeExecutor:
    return FakeExecutor(Capacity(16, 4, 4), MODEL)


def step(runs: FakeExecutor, *rows: PlanRow, masks: TokenMasks | None = None) -> tuple[RowResult, ...]:
    plan = BatchPlan(0, rows, sum(r.mask_row is not None for r in rows))
    runs.launch(plan)
    return runs.sample(plan, masks).result().rows


def decode(slot: int, start: int, pages: tuple[int, ...] = (), token: int = PENDING_TOKEN, first_page: int = 1) -> PlanRow:
    return row(slot, (token,), pages, start=start, first_page=first_page, reset=None)


def test_output_is_the_oracles_through_any_page_table() -> None:
    runs = executor()
    got = [step(runs, row(0, (1, 2, 3), (7,)))[0].token_ids[0]]
    got.append(step(runs, decode(0, 3))[0].token_ids[0])
    got.append(step(runs, decode(0, 4, (2,)))[0].token_ids[0])
    assert tuple(got) == expected_output(MODEL, (1, 2, 3), GREEDY)


def test_a_page_overwritten_by_another_request_changes_the_output() -> None:
    tokens = {}
    for thief_page in (3, 7):
        runs = executor()
        step(runs, row(0, (1, 2, 3), (7,)))
        step(runs, row(1, (9, 9, 9), (thief_page,)))
        tokens[thief_page] = step(runs, decode(0, 3, token=5))[0].token_ids
    assert tokens[3] != tokens[7]


def test_seed_and_temperature_choose_and_greedy_does_not() -> None:
    def draws(sampling: SamplingParams) -> set[tuple[int, ...]]:
        return {expected_output(MODEL, (1, 2), sampling, seed=seed) for seed in range(8)}

    assert len(draws(GREEDY)) == 1 and len(draws(SamplingParams(max_new_tokens=3, temperature=1.0))) > 4


def test_masks_are_honoured() -> None:
    bits = np.zeros((1, 2), dtype=np.uint32)
    bits[0, 1] = 1 << 5
    assert step(executor(), row(0, (1, 2), (0,), mask_row=0), masks=TokenMasks(bits))[0].token_ids == (37,)


def test_logprobs_are_those_of_one_distribution() -> None:
    start = RowStart(GREEDY, 0, LogprobParams(start_len=0, top=64, token_ids=(3,)), (1, 2))
    (result,) = step(executor(), row(0, (1, 2), (0,), reset=start, prompt_logprobs_from=0))
    first, second = result.prompt_logprobs
    assert (first.token_id, first.logprob) == (1, None) and second.token_id == 2
    (sampled,) = result.logprobs
    assert sum(np.exp(logprob) for _, logprob in sampled.top) == pytest.approx(1.0)
    assert sampled.logprob == sampled.top[0][1] and sampled.chosen[0] == (3, dict(sampled.top)[3])


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ((row(0, (1,), (0,)), row(0, (2,), (1,))), "two rows in one slot"),
        ((row(0, (1,), (0,)), row(1, (2,), (0,))), "write to one place"),
        ((row(0, (1,), (0,), start=2),), "never written"),
        ((row(0, (1, 2, 3, 4, 5), (0,)),), "no page for position 4"),
        ((row(0, (1,), (16,)),), "does not exist"),
        ((row(9, (1,), (0,)),), "slot 9 does not exist"),
        ((row(0, (1,), (0,), reset=None),), "not reset"),
        ((row(0, (PENDING_TOKEN,), (0,)),), "no sampled token"),
        ((row(0, (1,), (0,), first_page=1),), "gap in the page table"),
        ((), "without rows"),
    ],
)
def test_illegal_plans_are_refused(rows: tuple[PlanRow, ...], complaint: str) -> None:
    with pytest.raises(InternalError, match=complaint):
        step(executor(), *rows)


def test_steps_are_launched_and_sampled_in_turn() -> None:
    runs, plan = executor(), BatchPlan(0, (row(0, (1,), (0,)),))
    with pytest.raises(InternalError, match="before it was launched"):
        runs.sample(plan, None)
    runs.launch(plan)
    with pytest.raises(InternalError, match="before the last step was sampled"):
        runs.launch(plan)


def test_a_step_takes_the_time_it_is_told() -> None:
    runs = FakeExecutor(Capacity(16, 4, 4), MODEL, step_seconds=0.01, token_seconds=0.005)
    plan = BatchPlan(0, (row(0, (1, 2), (0,)),))
    runs.launch(plan)
    assert runs.sample(plan, None).result().seconds == pytest.approx(0.02)
