"""`Engine` as a script uses it: in threads, in event loops, two at once, without a main guard."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from ramet.errors import ConfigError, GrammarError, InvalidRequest, Unsupported, WorkerDied
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.engine import Engine
from tests.fakes import fake_executor, fake_text
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


def on_a_thread(config: EngineConfig) -> AsyncEngine:
    return AsyncEngine.start_now(config, worker="thread", executor_factory=fake_executor, text_factory=fake_text)


def in_a_process(config: EngineConfig) -> AsyncEngine:
    return AsyncEngine.start_now(config, executor_factory="tests.fakes:fake_executor", text_factory="tests.fakes:fake_text")


@pytest.fixture(scope="module")
def engine():
    with Engine(start=in_a_process) as engine:
        yield engine


def test_one_prompt_one_reply(engine):
    reply = engine.generate("hello", GREEDY)
    assert set(reply) == {"text", "output_ids", "meta_info"}
    assert len(reply["output_ids"]) == 12
    meta = reply["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 12}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (6, 12)
    assert reply["output_ids"] == engine.generate(input_ids=[256, *b"hello"], sampling_params=GREEDY)["output_ids"]


def test_batches_keep_their_order_and_n_multiplies(engine):
    alone = [engine.generate(text, GREEDY)["text"] for text in ("a", "b", "c")]
    together = engine.generate(["a", "b", "c"], GREEDY, rid=["x", "y", "z"])
    assert [reply["text"] for reply in together] == alone
    assert [reply["meta_info"]["id"] for reply in together] == ["x", "y", "z"]
    many = engine.generate(["a", "b"], {**GREEDY, "temperature": 1.0, "n": 3, "sampling_seed": 5})
    assert len(many) == 6
    assert len({reply["text"] for reply in many[:3]}) == 3
    assert [reply["text"] for reply in many] == [
        reply["text"] for reply in engine.generate(["a", "b"], {**GREEDY, "temperature": 1.0, "n": 3, "seed": 5})
    ]
    each = engine.generate(["a", "b"], [{**GREEDY, "max_new_tokens": 2}, {**GREEDY, "max_new_tokens": 5}])
    assert [len(reply["output_ids"]) for reply in each] == [2, 5]
    assert isinstance(engine.generate(["a"], GREEDY), list)


def test_streams_carry_the_text_so_far(engine):
    whole = engine.generate("hello", GREEDY)
    replies = list(engine.generate("hello", GREEDY, stream=True))
    assert replies[-1]["text"] == whole["text"]
    assert replies[-1]["output_ids"] == whole["output_ids"]
    assert [reply["meta_info"]["finish_reason"] is not None for reply in replies] == [False] * (len(replies) - 1) + [True]
    for earlier, later in pairwise(replies):
        assert later["text"].startswith(earlier["text"])
        assert len(later["output_ids"]) >= len(earlier["output_ids"])
    last = {reply["index"]: reply["text"] for reply in engine.generate(["a", "hello"], GREEDY, stream=True)}
    assert last[1] == whole["text"]


def test_leaving_a_stream_ends_it(engine):
    for _ in engine.generate("hello", {**GREEDY, "max_new_tokens": 3000}, stream=True, rid="left"):
        break
    gc.collect()
    assert engine.generate("hello", GREEDY, rid="left")["meta_info"]["id"] == "left"


def test_logprobs_as_triples(engine):
    reply = engine.generate(
        "abc", GREEDY, return_logprob=True, logprob_start_len=0, top_logprobs_num=2, token_ids_logprob=[5], return_text_in_logprobs=True
    )
    meta = reply["meta_info"]
    assert [entry[1:] for entry in meta["input_token_logprobs"]] == [[256, "<bos>"], [97, "a"], [98, "b"], [99, "c"]]
    assert meta["input_token_logprobs"][0][0] is None
    assert meta["input_top_logprobs"][0] is None
    assert [entry[1] for entry in meta["output_token_logprobs"]] == reply["output_ids"]
    assert all(len(entries) == 2 for entries in meta["output_top_logprobs"])
    assert all(entries[0][1] == 5 for entries in meta["output_token_ids_logprobs"])
    plain = engine.generate("abc", GREEDY, return_logprob=True)["meta_info"]
    assert plain["input_token_logprobs"] == []
    assert plain["output_token_logprobs"][0][2] is None
    assert "output_top_logprobs" not in plain


def test_errors_are_typed_and_name_the_field(engine):
    with pytest.raises(GrammarError):
        engine.generate("a", {**GREEDY, "regex": "("})
    with pytest.raises(InvalidRequest, match="max_new_tokens"):
        engine.generate("a", {"max_tokens": 3})
    with pytest.raises(InvalidRequest, match="priority"):
        engine.generate("a", GREEDY, prioritty=3)
    with pytest.raises(Unsupported, match="image_data"):
        engine.generate("a", GREEDY, image_data="x.png")
    with pytest.raises(Unsupported, match="embeddings"):
        engine.encode("a")
    with pytest.raises(InvalidRequest, match="sampling_params: 1 entries for 2"):
        engine.generate(["a", "b"], [GREEDY])
    with pytest.raises(ConfigError, match="near ones: page_size"):
        Engine(start=on_a_thread, page_sise=3)
    with pytest.raises(ConfigError, match="trust_remote_code"):
        Engine(start=on_a_thread, trust_remote_code=True)
    assert len(engine.generate("a", GREEDY)["output_ids"]) == 12


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((5,), "text: expected a string or a list of strings"),
        ((["a", 5],), "text: expected a string or a list of strings"),
        (("a", "greedy"), "sampling_params: expected an object"),
        ((["a"], [3]), "sampling_params: expected an object"),
        ((None, GREEDY, 5), "input_ids: expected a list of integers"),
        ((None, GREEDY, "ab"), "input_ids: expected a list of integers"),
        ((None, GREEDY), "exactly one of text and input_ids"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(engine, arguments, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        engine.generate(*arguments)


def test_an_engine_that_was_shut_down_says_so(recwarn):
    engine = Engine(start=on_a_thread)
    stream = engine.generate("a", GREEDY, stream=True)
    next(stream)
    engine.shutdown()
    stream.close()
    for use in (lambda: engine.generate("a", GREEDY), engine.flush_cache, lambda: list(engine.generate("a", GREEDY, stream=True))):
        with pytest.raises(WorkerDied, match="the engine was shut down"):
            use()
    gc.collect()
    assert not [str(warning.message) for warning in recwarn if "never awaited" in str(warning.message)]


def test_inside_a_running_event_loop(engine):
    async def main() -> None:
        blocking = engine.generate("hello", GREEDY)
        awaited = await engine.async_generate("hello", GREEDY)
        streamed = [reply async for reply in await engine.async_generate("hello", GREEDY, stream=True)]
        assert blocking["text"] == awaited["text"] == streamed[-1]["text"]
        several = await asyncio.gather(*(engine.async_generate(prompt="hello", sampling_params=GREEDY) for _ in range(8)))
        assert {reply["text"] for reply in several} == {blocking["text"]}

    asyncio.run(main())


def test_from_many_threads(engine):
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(engine.generate("hello", GREEDY)["text"])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(texts) == 16
    assert len(set(texts)) == 1


def test_two_engines_and_what_they_leave_behind():
    with Engine(start=in_a_process, page_size=16) as one, Engine(start=in_a_process, disable_radix_cache=True) as other:
        processes = [psutil.Process(engine.async_engine.worker_process_id) for engine in (one, other)]
        assert one.generate("hello", GREEDY)["text"] == other.generate("hello", GREEDY)["text"]
        info = one.get_server_info()
        assert (info["page_size"], info["max_total_num_tokens"]) == (16, 8192)
        assert info["internal_states"][0]["generation_tokens_total"] == 12
        assert one.flush_cache()
    assert not any(process.is_running() for process in processes)


def test_an_engine_that_nobody_holds_ends_itself():
    engine = Engine(start=on_a_thread)
    threads = engine._thread
    del engine
    gc.collect()
    threads.join(PATIENCE)
    assert not threads.is_alive()


def test_a_script_without_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.e2e.test_engine_offline import GREEDY, Engine, in_a_process\n"
        "engine = Engine(start=in_a_process)\n"
        "print('once', len(engine.generate('hello', GREEDY)['output_ids']), engine.async_engine.worker_process_id)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    word, count, process_id = done.stdout.split()  # the script ran once
    assert (word, count) == ("once", "12")
    assert not psutil.pid_exists(int(process_id))
