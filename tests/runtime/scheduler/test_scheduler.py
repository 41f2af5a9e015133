"""Life of a request: admission, chunks, limits, ends, retraction, order of calls."""

from __future__ import annotations

import pytest

from ramet.errors import InvalidRequest
from ramet.runtime.executor.fake import FakeModel
from ramet.runtime.plan import PENDING_TOKEN, RowResult, StepResult
from ramet.runtime.request import FinishKind, LogprobParams, SamplingParams
from tests.runtime.scheduler.drive import Drive, request

BOTH_LOOPS = pytest.mark.parametrize("overlap", [False, True], ids=["serial", "overlap"])


@BOTH_LOOPS
@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("cache", [True, False], ids=["radix", "no cache"])
def test_outputs_are_the_models(overlap: bool, page_size: int, cache: bool) -> None:
    drive = Drive(overlap=overlap, page_size=page_size, cache=cache, num_pages=1024 // page_size, chunked_prefill_size=16)
    drive.add(*(request(str(i), [*range(1, 30), i], 10) for i in range(12)))
    drive.run()
    drive.assert_outputs()
    assert all(end.finish is not None and end.finish.kind is FinishKind.LENGTH for end in drive.ends.values())


def test_a_prompt_that_came_alone_takes_larger_pieces_from_the_start() -> None:
    drive = Drive(chunked_prefill_size=8, idle_chunked_prefill_size=20)
    drive.add(request("long", range(1, 31), 1))
    plans = [drive.step(), drive.step()]
    assert [len(plan.rows[0].token_ids) for plan in plans if plan is not None] == [20, 10]


def test_a_prompt_that_has_begun_takes_larger_pieces_while_nobody_decodes() -> None:
    drive = Drive(chunked_prefill_size=8, idle_chunked_prefill_size=20)
    drive.add(request("long", range(1, 61), 9), request("next", range(101, 161), 2))
    sizes = []
    while drive.scheduler.has_work:
        plan = drive.step()
        assert plan is not None
        sizes.append({row.request_id: len(row.token_ids) for row in plan.rows})
    assert sizes[:5] == [{"long": 8}, {"long": 20}, {"long": 20}, {"long": 12}, {"long": 1, "next": 8}]
    assert all(step.get("next", 0) <= 8 for step in sizes)
    drive.assert_outputs()


def test_decode_rows_are_in_every_plan_and_prefill_gets_the_rest() -> None:
    drive = Drive(chunked_prefill_size=8)
    drive.add(request("decodes", [50, 51], 50))
    drive.step()
    drive.add(request("long", range(1, 41), 2))
    for _ in range(5):
        plan = drive.step()
        assert plan is not None
        assert {row.request_id: len(row.token_ids) for row in plan.rows} == {"decodes": 1, "long": 8}
    assert plan.rows[1].samples


def test_overlapped_decode_stands_on_the_pending_token() -> None:
    drive = Drive(overlap=True)
    drive.add(request("a", [1, 2, 3], 5))
    drive.run()
    assert [row.token_ids for row in drive.rows] == [(1, 2, 3), *[(PENDING_TOKEN,)] * 4]
    drive.assert_outputs()


@BOTH_LOOPS
def test_nothing_is_planned_past_the_length_limit(overlap: bool) -> None:
    drive = Drive(overlap=overlap)
    drive.add(request("a", [1, 2, 3], 5))
    drive.run()
    assert len(drive.plans) == 5


@BOTH_LOOPS
def test_stop_token_ends_with_its_id(overlap: bool) -> None:
    drive = Drive(overlap=overlap)
    free = Drive()
    free.add(request("a", [1, 2, 3], 8))
    free.run()
    stop = free.tokens["a"][3]
    drive.add(request("a", [1, 2, 3], 8, stop_token_ids=(stop,)))
    drive.run()
    assert drive.finish("a").kind is FinishKind.STOP and drive.finish("a").matched == stop
    assert drive.tokens["a"] == free.tokens["a"][: free.tokens["a"].index(stop) + 1]


def test_min_new_tokens_holds_the_end_back() -> None:
    model = FakeModel(vocab_size=64, eos_probability=1.0)
    drive = Drive(model=model)
    drive.add(request("a", [1, 2], sampling=SamplingParams(max_new_tokens=9, min_new_tokens=3, temperature=0.0)))
    drive.run()
    assert len(drive.tokens["a"]) == 4 and drive.tokens["a"][-1] == 0 and 0 not in drive.tokens["a"][:3]


def test_context_ends_with_length() -> None:
    drive = Drive(model=FakeModel(vocab_size=64, context_len=10))
    drive.add(request("a", range(1, 8), 100))
    drive.run()
    assert len(drive.tokens["a"]) == 3 and drive.finish("a").kind is FinishKind.LENGTH


@BOTH_LOOPS
@pytest.mark.parametrize("cache", [True, False])
def test_zero_new_tokens_only_prefills(overlap: bool, cache: bool) -> None:
    drive = Drive(overlap=overlap, cache=cache)
    drive.add(request("a", range(1, 50), 0))
    drive.run()
    assert drive.tokens["a"] == [] and drive.finish("a").kind is FinishKind.LENGTH
    assert drive.prefill_tokens == 49 and not any(row.samples for row in drive.rows)


def test_a_whole_cached_prompt_still_computes_one_token() -> None:
    drive = Drive()
    drive.add(request("a", range(1, 21)))
    while drive.scheduler.has_work:
        drive.step()
    drive.add(request("b", range(1, 21)))
    drive.run()
    assert drive.prefill_tokens == 21 and drive.ends["b"].cached_tokens == 19
    assert drive.tokens["a"] == drive.tokens["b"]


def test_finished_output_is_reused_but_for_its_last_token() -> None:
    drive = Drive()
    drive.add(request("a", range(1, 11), 5))
    while drive.scheduler.has_work:
        drive.step()
    drive.add(request("b", [*range(1, 11), *drive.tokens["a"], 7], 3))
    drive.run()
    assert drive.ends["b"].cached_tokens == 14
    drive.assert_outputs()


def test_namespaces_share_nothing() -> None:
    drive = Drive()
    drive.add(request("a", range(1, 21), cache_namespace="x"), request("b", range(1, 21), cache_namespace="y"))
    drive.run()
    assert drive.prefill_tokens == 40


@BOTH_LOOPS
def test_a_common_prefix_in_one_batch_is_computed_once(overlap: bool) -> None:
    drive = Drive(overlap=overlap, num_pages=4096, max_running=64, chunked_prefill_size=128)
    prompts = [[group, *range(10, 60), *[group] * 50, index, 1, 2, 3] for group in range(8) for index in range(8)]
    drive.add(*(request(str(i), prompt) for i, prompt in enumerate(prompts)))
    drive.run()
    assert drive.prefill_tokens == len({tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))})
    drive.assert_outputs()


@BOTH_LOOPS
def test_nested_prefixes_are_each_computed_once(overlap: bool) -> None:
    drive = Drive(overlap=overlap, num_pages=4096, max_running=64, chunked_prefill_size=7, page_size=1)
    prompts = [[*range(1, 21), *[i // 8] * 10, *[i // 2] * 5, i, 60] for i in range(32)]
    drive.add(*(request(str(i), prompt) for i, prompt in enumerate(prompts)))
    drive.run()
    assert drive.prefill_tokens == len({tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))})
    drive.assert_outputs()


@BOTH_LOOPS
def test_aborting_the_one_that_computes_the_prefix_frees_the_others(overlap: bool) -> None:
    drive = Drive(overlap=overlap, chunked_prefill_size=8)
    drive.add(*(request(str(i), [*range(1, 41), i]) for i in range(3)))
    drive.step()
    assert drive.scheduler.abort("0")
    drive.run()
    assert drive.finish("0").kind is FinishKind.ABORT and drive.finish("0").status == 499
    assert all(tuple(drive.tokens[i]) == drive.expected(i) for i in "12")


@BOTH_LOOPS
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("page_size", [1, 4])
def test_running_out_of_pages_retracts_and_loses_nothing(overlap: bool, cache: bool, page_size: int) -> None:
    drive = Drive(overlap=overlap, cache=cache, page_size=page_size, num_pages=64 // page_size, max_running=8)
    drive.add(*(request(str(i), [i + 1] * 4, 40) for i in range(8)))
    drive.run()
    drive.assert_outputs()
    assert drive.scheduler.counters.retractions > 0
    assert sum(end.num_retractions for end in drive.ends.values()) == drive.scheduler.counters.retractions


def test_prompts_that_hold_each_others_pages_are_untangled() -> None:
    drive = Drive(num_pages=40, chunked_prefill_size=60, max_running=2)
    drive.scheduler.planner.ratio.value = -10.0  # an estimate that lets far too much in
    drive.add(request("a", [1] * 30, 2), request("b", [2] * 30, 2))
    drive.run()
    drive.assert_outputs()


@pytest.mark.parametrize(
    ("prompt", "new", "code", "flag"),
    [
        (range(40), 60, "context_length_exceeded", "--max-total-tokens"),
        (range(101), 1, "context_length_exceeded", "--context-length"),
        ((), 1, "invalid_request", "no tokens"),
    ],
)
def test_what_can_never_run_is_refused_by_name(prompt: range, new: int, code: str, flag: str) -> None:
    drive = Drive(num_pages=64, model=FakeModel(vocab_size=64, context_len=100))
    drive.add(request("a", prompt, new))
    drive.run()
    finish = drive.finish("a")
    assert (finish.kind, finish.status, finish.code) == (FinishKind.ERROR, 400, code) and flag in finish.message


def test_what_just_fits_runs_alone() -> None:
    drive = Drive(num_pages=64)
    drive.add(request("a", range(40), 25), request("b", range(20, 60), 25))
    drive.run()
    drive.assert_outputs()


def test_a_full_queue_refuses_with_503() -> None:
    drive = Drive(max_running=1, max_queued_requests=2)
    drive.add(*(request(str(i), [i + 1], 3) for i in range(4)))
    drive.run()
    assert drive.finish("3").status == 503 and drive.finish("2").kind is FinishKind.LENGTH


def test_an_id_cannot_be_used_twice_at_once() -> None:
    drive = Drive()
    drive.add(request("a", [1]))
    with pytest.raises(InvalidRequest, match="'a'"):
        drive.scheduler.add(request("a", [2]))


@BOTH_LOOPS
def test_deadline_ends_running_and_waiting_requests(overlap: bool) -> None:
    drive = Drive(overlap=overlap, max_running=1)
    drive.add(request("runs", [1], 50, deadline=5.0), request("waits", [2], 50, deadline=5.0), request("patient", [3], 5))
    for _ in range(4):
        drive.step()
    drive.now = 6.0
    drive.run()
    assert [drive.finish(i).code for i in ("runs", "waits")] == ["deadline_exceeded"] * 2
    assert drive.finish("runs").status == 408 and drive.tokens["runs"] == list(drive.expected("runs")[: len(drive.tokens["runs"])])
    assert drive.finish("patient").kind is FinishKind.LENGTH


@BOTH_LOOPS
def test_abort_all_leaves_nothing(overlap: bool) -> None:
    drive = Drive(overlap=overlap, max_running=2)
    drive.add(*(request(str(i), [i + 1] * 9, 30) for i in range(5)))
    drive.step()
    drive.step()
    assert drive.scheduler.abort_all() == 5 and not drive.scheduler.abort("0")
    drive.run()
    assert {drive.finish(str(i)).status for i in range(5)} == {499}


@BOTH_LOOPS
@pytest.mark.parametrize("start", [0, 1, 7, 20])
def test_prompt_logprobs_cover_every_position_once(overlap: bool, start: int) -> None:
    drive = Drive(overlap=overlap, chunked_prefill_size=6)
    drive.add(request("first", range(1, 21), 2))
    drive.run()
    prompt = [*range(1, 21), 40, 41]
    drive.add(request("a", prompt, 3, logprobs=LogprobParams(start_len=start, top=2)))
    drive.run()
    entries = drive.prompt_logprobs["a"]
    assert [entry.token_id for entry in entries] == prompt[start:]
    assert (entries[0].logprob is None) == (start == 0)
    whole = Drive(chunked_prefill_size=-1, cache=False)
    whole.add(request("a", prompt, 3, logprobs=LogprobParams(start_len=start, top=2)))
    whole.run()
    assert entries == whole.prompt_logprobs["a"] and drive.logprobs["a"] == whole.logprobs["a"]


def test_unlimited_chunks_never_split_a_prompt() -> None:
    drive = Drive(chunked_prefill_size=-1, max_prefill_tokens=16)
    drive.add(request("a", range(1, 61)), request("b", range(2, 62)), request("c", [5, 6]))
    drive.run()
    assert all(row.start == 0 for row in drive.rows if len(row.token_ids) > 1)
    drive.assert_outputs()


def test_a_result_may_bring_several_tokens() -> None:
    drive = Drive()
    drive.scheduler.add(request("a", [1, 2, 3], 6))
    prefill = drive.scheduler.plan()
    assert prefill is not None
    (output,) = drive.scheduler.commit(prefill, StepResult((RowResult((10, 11)),)))
    assert output.token_ids == (10, 11)
    decode = drive.scheduler.plan()
    assert decode is not None and decode.rows[0].token_ids == (10, 11) and decode.rows[0].start == 3
    (output,) = drive.scheduler.commit(decode, StepResult((RowResult((12, 13, 14, 15, 16)),)))
    assert output.token_ids == (12, 13, 14, 15) and output.finish is not None


def test_flush_waits_for_an_idle_scheduler() -> None:
    drive = Drive()
    drive.add(request("a", [1, 2, 3]))
    assert not drive.scheduler.flush_cache()
    drive.run()


def test_log_lines_say_what_a_step_did() -> None:
    drive = Drive()
    drive.add(request("a", range(1, 11), 9))
    plan = drive.scheduler.plan()
    assert plan is not None
    report = drive.scheduler.batch_report(plan)
    assert report is not None
    assert report.line().startswith("Prefill batch, #new-seq: 1, #new-token: 10, #cached-token: 0, token usage: 0.04, #running-req: 1")
    drive.scheduler.commit(plan, StepResult((RowResult((5,)),)))
    plan = drive.scheduler.plan()
    assert plan is not None and drive.scheduler.batch_report(plan, 40) is None
    drive.now = 0.5
    decode = drive.scheduler.batch_report(plan, 1)
    assert decode is not None and "gen throughput (token/s): 2.00" in decode.line()


@pytest.mark.parametrize("overlap", [False, True])
def test_news_come_together_but_for_the_first_and_the_last(overlap: bool) -> None:
    drive = Drive(overlap=overlap)
    heard: list[int] = []
    take = drive._take
    drive._take = lambda outputs: (heard.extend(len(output.token_ids) for output in outputs), take(outputs))[1]
    drive.add(request("a", range(3), new=12, news_interval=5))
    drive.run()
    drive.assert_outputs()
    assert heard == [1, 5, 5, 1]


def test_an_aborted_request_tells_what_it_held_back() -> None:
    drive = Drive()
    drive.add(request("a", range(3), new=30, news_interval=20))
    for _ in range(8):
        drive.step()
    drive.scheduler.abort("a")
    drive.run()
    assert len(drive.tokens["a"]) >= 6
    assert tuple(drive.tokens["a"]) == drive.expected("a")[: len(drive.tokens["a"])]
