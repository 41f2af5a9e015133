"""Steps of every kind, once, before the first request: kernels are compiled (or fetched from their cache) and the graphs of decode steps
recorded here instead of in somebody's reply, where each would be a pause of 50 ms. What the steps leave in pages and slots belongs to
nobody: every request resets its own.

The steps are rehearsed first, so that kernels are compiled side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from ramet.runtime.executor.eagle_runner import GRAPH_SIZES
from ramet.runtime.executor.executor import Executor, Steps
from ramet.runtime.executor.prefix_groups import least_shared
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, PlanRow, RowStart
from ramet.runtime.request import SamplingParams

_LONG, _SHORT = 600, 100  # tokens: too many for a graph, and few enough
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # where nothing is recorded
_SHARED_SIZES = (16, 64, 256, 512)
_GUESSED = (*GRAPH_SIZES, 17, 65)  # 1, 17, 32, 65: every kind of step that attends in its own way
_MIXED = ((16, 4), (64, 3), (64, 8), (64, 16))  # rows, tokens of each
_HOSTS = (8, 16, 32, 64)  # rows of a step that takes a piece of a prompt along
_MOST_WITH_PIECE = 192


def warm_up(
    executor: Executor, sizes: Sequence[int], rehearsal: AbstractContextManager[object], head: Steps | None = None, *, pieces: bool = False
) -> None:
    """Run them and wait, decode steps of all `sizes` among them; before that, in `rehearsal`, those that do not go on with a sampled token.
    `head`: what guesses beside the model. `pieces`: also decode steps of many sizes with a piece of a prompt aboard, for a server on which
    no step may take long. Does nothing where the pool is too small to try."""
    page_size = executor.capacity.page_size
    if min(executor.capacity.num_tokens // 4, executor.model.context_len) < _LONG + page_size + 8 or executor.capacity.max_running < 2:
        return
    num_pages = -(-_LONG // page_size)
    shared, spare = tuple(range(num_pages)), tuple(range(num_pages, 2 * num_pages + 2))
    prompt = _row(0, (1,) * _LONG, 0, shared + spare[:1])
    follower = _row(1, (1,), num_pages * page_size, shared + spare[1:2])
    steps = (
        (prompt,),
        (_next(prompt, 0), follower),
        (_next(prompt, 1),),
        (_row(0, (1,) * _SHORT, 0, shared),),
        (_next(_row(0, (1,) * _SHORT, 0, shared), 0), _row(1, (1,) * _LONG, 0, spare)),
    )
    every = (*steps, *_decode_steps(executor, sizes or _SIZES, shared, spare))
    guessed = sorted({min(size, executor.capacity.max_running) for size in _GUESSED})
    guesses = [tuple(_row(slot, (1,), 1, ()) for slot in range(size)) for size in guessed]
    with rehearsal:
        _run(executor, (rows for rows in every if all(row.token_ids != (PENDING_TOKEN,) for row in rows)))
        if head is not None:
            _run(head, guesses)
    _run(executor, every)
    if pieces:
        _run(executor, _with_pieces(executor, sizes, spare))
    if head is not None:
        _run(head, (*guesses, tuple(_next(row, 0) for row in guesses[0])))


def _run(executor: Steps, steps: Iterable[tuple[PlanRow, ...]]) -> None:
    for number, rows in enumerate(steps):
        plan = BatchPlan(number, rows)
        executor.launch(plan)
        executor.sample(plan, None).result()


def _decode_steps(
    executor: Executor, sizes: Sequence[int], shared: tuple[int, ...], spare: tuple[int, ...]
) -> Iterator[tuple[PlanRow, ...]]:
    """Batches of a few sizes, small ones first; alone, under one prefix, and with several tokens in a row."""
    most, start = executor.capacity.max_running, len(shared) * executor.capacity.page_size
    for size in (size for size in sizes if size <= most):
        yield tuple(_row(slot, (1,), 0, spare[:1]) for slot in range(size))
    times = -(-least_shared(8) // start)  # the same pages again: nobody minds, and they are enough to be shared
    fits = times * start < min(executor.model.context_len, executor.capacity.num_tokens)
    for size in (size for size in _SHARED_SIZES if size <= most and fits):
        yield tuple(_row(slot, (1,), times * start, shared * times + spare[:1]) for slot in range(size))
    for size, length in ((size, length) for size, length in _MIXED if size <= most):
        yield tuple(_row(slot, (1,) * length, 0, spare[: -(-length // executor.capacity.page_size)]) for slot in range(size))


def _with_pieces(executor: Executor, sizes: Sequence[int], pages: tuple[int, ...]) -> Iterator[tuple[PlanRow, ...]]:
    """One row of several tokens behind others of one."""
    totals = (32, 64, 96, *(size for size in sizes if 96 < size <= _MOST_WITH_PIECE))
    for num_rows in (num_rows for num_rows in _HOSTS if num_rows <= executor.capacity.max_running):
        decoding = tuple(_row(slot, (1,), 0, pages[:1]) for slot in range(num_rows - 1))
        for length in (total - len(decoding) for total in totals if total > num_rows):
            yield (*decoding, _row(num_rows - 1, (1,) * length, 0, pages[: -(-length // executor.capacity.page_size)]))


def _row(slot: int, tokens: tuple[int, ...], start: int, pages: tuple[int, ...]) -> PlanRow:
    reset = RowStart(SamplingParams(temperature=0.0), 0, None, tokens)
    return PlanRow(f"warm-up-{slot}", slot, tokens, start, 0, pages, True, reset)


def _next(row: PlanRow, step: int) -> PlanRow:
    """The decode row that follows `row` after `step` others."""
    return PlanRow(row.request_id, row.slot, (PENDING_TOKEN,), row.end + step, len(row.new_pages), (), True)
