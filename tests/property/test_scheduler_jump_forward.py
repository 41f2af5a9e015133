"""Jump-forward and guesses never change the output: random grammars, requests, pools, chunks, pages, aborts and loops, against masking
every token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.executor.fake import FakeModel
from ramet.runtime.request import FinishKind, GrammarSpec, LogprobParams, Request, SamplingParams
from tests.runtime.scheduler.automata import AutomatonCompiler, automaton
from tests.runtime.scheduler.drive import Drive

MODEL = FakeModel(vocab_size=40, context_len=80, eos_probability=0.1)
STEMS = ((1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 9, 9), (5,) * 20, (6, 7))


@dataclass(frozen=True)
class Arrival:
    step: int
    abort_at: int | None
    request: Request


@st.composite
def grammars(draw: st.DrawFn) -> GrammarSpec:
    """Mostly states with one way on. Every state has one, or is an end."""
    num_states = draw(st.integers(1, 9))
    moves = []
    for _ in range(num_states):
        fan = draw(st.sampled_from([1, 1, 1, 2, 5]))
        tokens = draw(st.lists(st.integers(1, 39), min_size=fan, max_size=fan, unique=True))
        moves.append({token: draw(st.integers(0, num_states)) for token in tokens})
    ends = draw(st.sets(st.integers(0, num_states - 1), max_size=2))
    return automaton([*moves, {}], [*ends, num_states])


@st.composite
def requests(draw: st.DrawFn) -> Request:
    sampling = SamplingParams(
        max_new_tokens=draw(st.integers(0, 30)),
        min_new_tokens=draw(st.integers(0, 3)),
        temperature=draw(st.sampled_from([0.0, 1.0])),
    )
    start_len = draw(st.sampled_from([None, None, -1, 0, 3, 6]))
    return Request(
        request_id="",
        prompt_ids=draw(st.sampled_from(STEMS)) + tuple(draw(st.lists(st.integers(1, 39), max_size=4))),
        sampling=sampling,
        seed=draw(st.integers(0, 99)),
        grammar=draw(st.one_of(st.none(), grammars(), grammars(), grammars())),
        logprobs=None if start_len is None else LogprobParams(start_len=start_len, top=2, token_ids=(7,)),
        stop_token_ids=draw(st.sampled_from([(0,), (0,), (0, 7, 8, 9)])),
    )


ARRIVALS = st.lists(
    st.builds(Arrival, step=st.integers(0, 12), abort_at=st.sampled_from([None, None, None, 0, 2, 5, 9]), request=requests()),
    min_size=1,
    max_size=7,
)
SCHEDULES = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from([1, 1, 4]),
        "num_pages": st.integers(64, 160),
        "chunked_prefill_size": st.sampled_from([1, 2, 3, 7, 32, -1]),
        "max_running": st.integers(1, 5),
        "overlap": st.booleans(),
        "late": st.sampled_from([None, None, False, True]),
        "num_guesses": st.sampled_from([0, 0, 2, 5]),
        "cache": st.booleans(),
    }
)


@given(arrivals=ARRIVALS, schedule=SCHEDULES, ratio=st.sampled_from([0.7, 0.0]))
@settings(max_examples=100, deadline=None)
def test_output_is_that_of_masking_every_token(arrivals: list[Arrival], schedule: dict[str, Any], ratio: float) -> None:
    late = None if schedule["num_guesses"] else schedule["late"]  # guesses need the results first
    schedule = schedule | {"late": late, "num_pages": schedule["num_pages"] // schedule["page_size"]}
    drive = _play(arrivals, ratio, schedule)
    twin = _play([replace(arrival, abort_at=None) for arrival in arrivals], 0.7, {"disable_jump_forward": True})
    assert twin.scheduler.counters.forced_tokens == 0
    for request_id, request in drive.requests.items():
        got, whole = tuple(drive.tokens[request_id]), tuple(twin.tokens[request_id])
        assert whole == drive.expected(request_id)
        if drive.finish(request_id).kind is FinishKind.ABORT:
            assert got == whole[: len(got)]
        else:
            assert got == whole and drive.finish(request_id) == twin.finish(request_id)
            assert drive.prompt_logprobs[request_id] == twin.prompt_logprobs[request_id]
            assert drive.ends[request_id].forced_tokens <= len(got)
        assert drive.logprobs[request_id] == twin.logprobs[request_id][: len(got)]
        assert len(drive.logprobs[request_id]) == (len(got) if request.logprobs is not None else 0)
        assert drive.ends[request_id].cached_tokens <= len(request.prompt_ids)


def _play(arrivals: list[Arrival], ratio: float, schedule: dict[str, Any]) -> Drive:
    drive = Drive(model=MODEL, compiler=AutomatonCompiler(), **schedule)
    drive.scheduler.planner.ratio.value = ratio  # 0: admits too much, so that retraction has to mend it
    for step in range(22):
        for index, arrival in enumerate(arrivals):
            if arrival.step == step:
                drive.add(replace(arrival.request, request_id=str(index)))
                drive.settle_grammars()
            if arrival.abort_at is not None and arrival.step + arrival.abort_at == step:
                drive.scheduler.abort(str(index))
        drive.step()
    drive.run()
    drive.scheduler.close()
    return drive
