"""Workloads are what they say, the report's arithmetic is right, and every backend's route can be driven."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.cli.benchmark import offline, one_batch, serving
from ramet.cli.benchmark.report import describe, peak_concurrency, peak_tokens_per_second, percentile, summarize
from ramet.cli.benchmark.targets import TARGETS, Outcome
from ramet.cli.benchmark.traffic import drive
from ramet.cli.benchmark.workloads import BenchRequest, build_workload, custom, random_ids
from ramet.cli.main import main
from ramet.errors import ConfigError, UserError
from ramet.runtime.request import EngineStats
from tests.server.live_server import live_server
from tests.server.scripted_engine import ScriptedEngine


def serving_args(*words: str) -> Namespace:
    return serving.parser().parse_known(list(words))


class TestWorkloads:
    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
    def test_random_ids_keep_their_bounds(self, seed: int, input_len: int, output_len: int, ratio: float) -> None:
        made = random_ids(random.Random(seed), 50, 8, input_len, output_len, ratio)
        assert made == random_ids(random.Random(seed), 50, 8, input_len, output_len, ratio)
        for request in made:
            assert max(int(input_len * ratio), 1) <= len(request.prompt) <= input_len
            assert max(int(output_len * ratio), 1) <= request.output_len <= output_len
            assert all(0 <= int(token) < 50 for token in request.prompt)

    def test_shared_prefix_groups(self) -> None:
        words = ["--gsp-num-groups", "3", "--gsp-prompts-per-group", "4", "--gsp-system-prompt-len", "10"]
        words += ["--gsp-question-len", "5", "--gsp-output-len", "7"]
        args = serving_args("--dataset-name", "generated-shared-prefix", *words)
        made = build_workload(args, 1000)
        groups: dict[Any, int] = {}
        for request in made:
            assert (len(request.prompt), request.output_len) == (15, 7)
            groups[request.prompt[:10]] = groups.get(request.prompt[:10], 0) + 1
        assert sorted(groups.values()) == [4, 4, 4]
        assert len({request.prompt for request in made}) == 12
        assert made != build_workload(serving_args(*words, "--dataset-name", "generated-shared-prefix", "--gsp-ordered"), 1000)

    def test_defaults_are_sglangs(self) -> None:
        args = serving_args()
        assert (args.num_prompts, args.random_input_len, args.random_output_len, args.random_range_ratio) == (1000, 1024, 1024, 0.0)
        assert (args.gsp_num_groups, args.gsp_prompts_per_group, args.gsp_system_prompt_len) == (64, 16, 2048)
        assert (args.gsp_question_len, args.gsp_output_len, args.seed, args.warmup_requests) == (128, 256, 1, 1)
        assert args.request_rate == float("inf") and args.max_concurrency is None

    def test_custom(self, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl"
        path.write_text('{"prompt": "a", "output_len": 3}\n\n{"prompt": [1, 2]}\n{"conversations": [{"value": "c"}]}\n{"prompt": "d"}\n')
        assert custom(path, 3) == [BenchRequest("a", 3), BenchRequest((1, 2), 256), BenchRequest("c", 256)]
        path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
        with pytest.raises(ConfigError, match=r"data\.jsonl:2"):
            custom(path, 9)

    @pytest.mark.parametrize(("name", "instead"), [("sharegpt", "custom"), ("random", "use random-ids"), ("nothing", "random-ids")])
    def test_unknown_datasets_are_refused(self, name: str, instead: str) -> None:
        with pytest.raises(ConfigError, match=f"{name}.*{instead}"):
            build_workload(serving_args("--dataset-name", name), 10)


class TestArithmetic:
    def test_percentiles(self) -> None:
        assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
        assert percentile([5.0], 99) == 5.0
        assert describe([0.001, 0.003]) == {"mean": 2, "median": 2, "std": 1, "max": 3, "p90": 2.8, "p95": 2.9, "p99": 2.98}

    def test_a_run_by_hand(self) -> None:
        one = Outcome(started=0.0, ended=2.0, token_times=[1.0, 1.5, 2.0], prompt_len=10, output_len=3, cached_tokens=5)
        two = Outcome(started=2.0, ended=4.0, token_times=[3.0, 4.0], prompt_len=30, output_len=2)
        bad = Outcome(started=0.0, ended=9.0, error="x")
        found = summarize([one, two, bad], 4.0)
        assert (found["completed"], found["failed"]) == (2, 1)
        assert (found["total_input_tokens"], found["total_output_tokens"], found["output_throughput"]) == (40, 5, 1.25)
        assert (found["mean_ttft_ms"], found["mean_tpot_ms"], found["max_itl_ms"]) == (1000, 750, 1000)
        assert (found["cache_hit_rate"], found["concurrency"]) == (0.125, 1.0)
        assert (found["max_concurrent_requests"], peak_concurrency([one, two, bad])) == (1, 2)
        assert peak_tokens_per_second([one, two]) == 2

    def test_tokens_of_one_chunk_are_spread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([1.0, 3.0])
        monkeypatch.setattr("ramet.cli.benchmark.targets.time.perf_counter", lambda: next(clock))
        outcome = Outcome()
        outcome.add_tokens(1)
        outcome.add_tokens(4)
        assert outcome.token_times == [1.0, 1.5, 2.0, 2.5, 3.0]


async def test_concurrency_is_bounded_and_order_kept() -> None:
    import asyncio

    running = peak = 0

    async def send(request: BenchRequest) -> Outcome:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.02)
        running -= 1
        return Outcome(output_len=request.output_len)

    outcomes = await drive([BenchRequest("x", i) for i in range(20)], send, max_concurrency=3, request_rate=5000.0)
    assert [outcome.output_len for outcome in outcomes] == list(range(20))
    assert 1 < peak <= 3


class TestServing:
    @pytest.mark.parametrize("backend", sorted(TARGETS))
    def test_every_backend_drives_our_server(self, backend: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        engine = ScriptedEngine(answer="x" * 40, cached_tokens=1)
        out = tmp_path / "runs.jsonl"
        words = [
            "--num-prompts",
            "6",
            "--random-input-len",
            "16",
            "--random-output-len",
            "8",
            "--max-concurrency",
            "3",
            "--flush-cache",
            "--output-details",
        ]
        with live_server(engine) as url:
            assert main(["bench", "serving", "--backend", backend, "--base-url", url, *words, "--output-file", str(out)]) == 0
        printed = capsys.readouterr().out
        for label in ("Serving Benchmark Result", "Successful requests:", "Output token throughput (tok/s):", "Median TTFT (ms):",
                      "P99 TPOT (ms):", "Max ITL (ms):", "Max request concurrency:", "Cache hit rate:"):  # fmt: skip
            assert label in printed
        run = json.loads(out.read_text(), parse_constant=pytest.fail)
        assert "api_key" not in run
        assert (run["completed"], run["failed"], run["backend"]) == (6, 0, backend)
        measured = engine.seen[1:]
        assert run["total_output_tokens"] == sum(g.sampling.max_new_tokens for g in measured)
        assert run["total_input_tokens"] == sum(len(g.input_ids or ()) for g in measured)
        assert all(g.sampling.ignore_eos and g.sampling.greedy for g in measured)
        assert all(text == "x" * length for text, length in zip(run["generated_texts"], run["output_lens"], strict=True))
        assert engine.flushed == 1

    def test_hit_rate_comes_from_the_servers_counters(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = ScriptedEngine()
        answers = iter(
            [EngineStats(prompt_tokens_total=100, cached_tokens_total=10), EngineStats(prompt_tokens_total=200, cached_tokens_total=85)]
        )

        async def stats() -> EngineStats:
            return next(answers)

        monkeypatch.setattr(engine, "stats", stats)
        out = tmp_path / "runs.jsonl"
        with live_server(engine) as url:
            words = ["--num-prompts", "2", "--vocab-size", "200", "--random-input-len", "4", "--output-file", str(out)]
            assert main(["bench", "serving", "--base-url", url, *words]) == 0
        run = json.loads(out.read_text())
        assert (run["cached_tokens"], run["cache_hit_rate"]) == (75, 0.75)

    def test_whole_replies_and_extra_body(self) -> None:
        engine = ScriptedEngine()
        with live_server(engine) as url:
            words = ["--num-prompts", "2", "--disable-stream", "--disable-ignore-eos", "--extra-request-body", '{"priority": 5}']
            assert main(["bench", "serving", "--base-url", url, *words]) == 0
        assert {(g.priority, g.sampling.ignore_eos) for g in engine.seen} == {(5, False)}

    def test_a_failing_warm_up_says_why_and_sends_no_load(self, capsys: pytest.CaptureFixture[str]) -> None:
        engine = ScriptedEngine(refusal=UserError("not today"))
        with live_server(engine) as url:
            assert main(["bench", "serving", "--base-url", url, "--num-prompts", "5"]) == 2
        assert "not today" in capsys.readouterr().err

    def test_no_server(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "serving", "--port", "1", "--ready-check-timeout-sec", "0"]) == 2
        said = capsys.readouterr().err
        assert "waiting up to 0 s" in said and "ramet serve" in said
        assert main(["bench", "serving", "--base-url", "127.0.0.1:1"]) == 2
        assert "write http://HOST:PORT" in capsys.readouterr().err


async def test_offline_and_one_batch_on_any_engine() -> None:
    engine = ScriptedEngine(answer="y" * 64)
    args, config = offline.parse(
        ["--num-prompts", "5", "--random-input-len", "8", "--random-output-len", "4", "--page-size", "4"],
        offline._add_flags,
        kind="offline",
        description="",
    )
    assert config.memory.page_size == 4
    outcomes, summary = await offline.bench(args, engine)
    assert summary["completed"] == 5
    assert summary["total_output_tokens"] == sum(outcome.output_len for outcome in outcomes) > 0
    result = await one_batch.bench(engine, 3, 16, 4, seed=1)
    assert (result["batch_size"], result["input_len"], result["output_len"]) == (3, 16, 4)
    assert 0 < result["prefill_latency"] <= result["total_latency"]


def test_the_load_generator_brings_no_torch() -> None:
    code = "import sys, ramet.cli.benchmark.serving; assert not {'torch', 'numpy', 'fastapi'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
