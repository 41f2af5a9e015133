"""Any schedule gives the model's outputs: random arrivals, aborts, deadlines, tiny pools, pages, chunks, policies and both loops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.config import MemoryConfig
from ramet.runtime.executor.fake import FakeModel
from ramet.runtime.request import FinishKind, KvHint, LogprobParams, Request, SamplingParams
from tests.runtime.scheduler.drive import Drive, Tier

MODEL = FakeModel(vocab_size=40, context_len=80, eos_probability=0.04)
STEMS = ((1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 9, 9), (5,) * 20, (6, 7), ())


@dataclass(frozen=True)
class Arrival:
    step: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    logprobs: LogprobParams | None
    namespace: str
    priority: int
    abort_at: int | None
    deadline: float | None
    group: str
    path: int
    news_interval: int


@dataclass(frozen=True)
class Saying:
    """A hint about the tokens of one of the arrivals, as many of them as have come."""

    step: int
    kind: Literal["pin", "free", "end"]
    about: int


def arrivals() -> st.SearchStrategy[list[Arrival]]:
    prompts = st.builds(
        lambda stem, times, tail: (stem * times + tuple(tail)) or (1,),
        st.sampled_from(STEMS),
        st.integers(1, 2),
        st.lists(st.integers(0, 39), max_size=6),
    )
    sampling = st.builds(
        SamplingParams,
        max_new_tokens=st.integers(0, 24),
        min_new_tokens=st.integers(0, 3),
        temperature=st.sampled_from([0.0, 1.0]),
    )
    seldom = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 12))
    logprobs = seldom.map(lambda start: None if start is None else LogprobParams(start_len=start))
    one = st.builds(
        Arrival,
        step=st.integers(0, 15),
        prompt=prompts,
        sampling=sampling,
        logprobs=logprobs,
        namespace=st.sampled_from(["", "", "x"]),
        priority=st.integers(0, 2),
        abort_at=seldom,
        deadline=seldom.map(lambda d: None if d is None else 4.0 * d),
        group=st.sampled_from(["", "a", "b"]),
        path=st.integers(0, 3),
        news_interval=st.sampled_from([1, 3, 32]),
    )
    return st.lists(one, min_size=1, max_size=14)


SAYINGS = st.lists(
    st.builds(Saying, step=st.integers(0, 27), kind=st.sampled_from(["pin", "pin", "free", "end"]), about=st.integers(0, 13)), max_size=10
)


TIERS = st.builds(Tier, num_blocks=st.integers(1, 12), block_tokens=st.sampled_from([16, 32]), saves_early=st.booleans())


@given(
    arrivals=arrivals(),
    sayings=SAYINGS,
    share=st.sampled_from([0.0, 0.3, 1.0]),
    threshold=st.sampled_from([0, 10]),
    page_size=st.sampled_from([1, 4, 16]),
    pool=st.integers(64, 160),
    chunk=st.one_of(st.integers(1, 64), st.just(-1)),
    idle_chunk=st.one_of(st.none(), st.integers(1, 64)),
    max_running=st.integers(1, 6),
    overlap=st.booleans(),
    cache=st.booleans(),
    policy=st.sampled_from(["program", "fcfs", "lpm", "dfs-weight", "random", "lof", "priority"]),
    eviction=st.sampled_from(["next-use", "lru", "lfu", "fifo"]),
    tier=st.one_of(
        st.none(), st.builds(Tier, num_blocks=st.integers(1, 12), block_tokens=st.sampled_from([16, 32]), saves_early=st.booleans())
    ),
    ratio=st.sampled_from([0.7, 0.0]),
)
@settings(max_examples=150, deadline=None)
def test_every_schedule_gives_the_models_outputs(
    arrivals: list[Arrival],
    sayings: list[Saying],
    share: float,
    threshold: int,
    page_size: int,
    pool: int,
    chunk: int,
    idle_chunk: int | None,
    max_running: int,
    overlap: bool,
    cache: bool,
    policy: str,
    eviction: str,
    tier: Tier | None,
    ratio: float,
) -> None:
    drive = Drive(
        num_pages=pool // page_size,
        page_size=page_size,
        chunked_prefill_size=chunk,
        idle_chunked_prefill_size=idle_chunk,
        max_running=max_running,
        overlap=overlap,
        cache=cache,
        schedule_policy=policy,
        priority_scheduling_preemption_threshold=threshold,
        eviction=eviction,
        tier=replace(tier) if tier is not None else None,
        model=MODEL,
        memory=MemoryConfig(kv_pin_share=share, kv_pin_seconds=6.0),
    )
    drive.scheduler.planner.ratio.value = ratio  # 0: admits too much, so that retraction has to mend it
    _play(drive, arrivals, sayings)
    drive.run()
    for index, arrival in enumerate(arrivals):
        _check(drive, str(index), arrival)


def _play(drive: Drive, arrivals: list[Arrival], sayings: list[Saying]) -> None:
    for step in range(28):
        drive.now = float(step)
        for index, arrival in enumerate(arrivals):
            if arrival.step == step:
                drive.add(_request(str(index), arrival))
            if arrival.abort_at is not None and arrival.step + arrival.abort_at == step:
                drive.scheduler.abort(str(index))
        for saying in sayings:
            if saying.step == step and str(saying.about) in drive.requests:
                about = drive.requests[str(saying.about)]
                tokens = (*about.prompt_ids, *drive.tokens[about.request_id])
                drive.scheduler.hint(KvHint(kind=saying.kind, run_id=about.group or "c", token_ids=tokens))
        drive.step()
    drive.now = 1000.0 if any(arrival.deadline for arrival in arrivals) else drive.now


def _request(request_id: str, arrival: Arrival) -> Request:
    return Request(
        request_id=request_id,
        prompt_ids=arrival.prompt,
        sampling=arrival.sampling,
        seed=int(request_id),
        logprobs=arrival.logprobs,
        priority=arrival.priority,
        cache_namespace=arrival.namespace,
        group=arrival.group,
        path=arrival.path,
        news_interval=arrival.news_interval,
        deadline=None if arrival.deadline is None else arrival.step + arrival.deadline,
    )


def _check(drive: Drive, request_id: str, arrival: Arrival) -> None:
    finish, expected = drive.finish(request_id), drive.expected(request_id)
    got = tuple(drive.tokens[request_id])
    if finish.kind is FinishKind.ABORT:
        assert arrival.abort_at is not None or arrival.deadline is not None
        assert got == expected[: len(got)]
        return
    if finish.kind is FinishKind.ERROR:
        # 16-token pages of a small pool: the worst case of a request may not fit
        assert finish.status == 400 and len(arrival.prompt) + arrival.sampling.max_new_tokens > 48
        return
    assert got == expected
    ended = bool(got) and got[-1] in MODEL.eos_token_ids and len(got) > arrival.sampling.min_new_tokens
    assert finish.kind is (FinishKind.STOP if ended else FinishKind.LENGTH)
    _check_prompt_logprobs(drive, request_id, arrival)


def _check_prompt_logprobs(drive: Drive, request_id: str, arrival: Arrival) -> None:
    wanted = () if arrival.logprobs is None else arrival.prompt[arrival.logprobs.start_len :]
    assert tuple(entry.token_id for entry in drive.prompt_logprobs[request_id]) == wanted
    assert len(drive.logprobs[request_id]) == (0 if arrival.logprobs is None else len(drive.tokens[request_id]))
