"""The BOS is there exactly once, on every way to a model: written by the chat template for turns, by the tokenizer for plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import ramet as sgl
from ramet.errors import Unsupported
from ramet.program.backend import ChatFormat, Conversation, Part
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.worker_parts import TextParts
from ramet.runtime.request import Request
from tests.fakes import BOS, ByteTokenizer, PlainChatTemplate, ScriptedWorker, echo
from tests.server.live_server import live_server


class Llama3Template(PlainChatTemplate):
    """Like Llama 3's: the template writes the BOS, and the tokenizer would add one, too."""

    def render(self, messages: Any, **options: Any) -> str:
        return "<bos>" + super().render(messages, **options)


class Seen:
    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Sequence[int]:
        self.requests.append(request)
        return echo(request) or (ord("x"),)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def engine(seen: Seen) -> Iterator[AsyncEngine]:
    text = TextParts(ByteTokenizer(), Llama3Template(), {})
    engine = AsyncEngine(EngineConfig(), lambda: ScriptedWorker(seen), lambda: text)
    yield engine
    engine.close_now()


@sgl.function
def turns(s: Any) -> None:
    s += sgl.system("Be brief.") + sgl.user("Hi") + sgl.assistant(sgl.gen("x", max_tokens=3))


@sgl.function
def plain(s: Any) -> None:
    s += "Once upon a time" + sgl.gen("x", max_tokens=3)


@pytest.mark.parametrize("program", [turns, plain])
@pytest.mark.parametrize("way", ["engine", "server"])
@pytest.mark.parametrize("mode", ["interpreted", "compiled"])
def test_one_bos_in_front(program: Any, way: str, mode: str, engine: AsyncEngine, seen: Seen) -> None:
    with live_server(engine) as url:
        program.run(backend=engine if way == "engine" else sgl.RuntimeEndpoint(url), mode=mode)
    generations = [request for request in seen.requests if request.sampling.max_new_tokens]
    assert generations
    for request in generations:
        assert (request.prompt_ids[0], request.prompt_ids.count(BOS)) == (BOS, 1)


async def test_prefill_and_chat_completions_agree_with_programs(engine: AsyncEngine, seen: Seen) -> None:
    """Otherwise the warmed prefix would not be the one that is asked for."""
    from openai import AsyncOpenAI

    prefix = Conversation((Part("begin", "system"), Part("text", "Be brief."), Part("end", "system")))
    with live_server(engine) as url:
        await sgl.RuntimeEndpoint(url).prefill(prefix)
        await turns.arun(backend=sgl.RuntimeEndpoint(url), mode="interpreted")
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
            await client.chat.completions.create(model="fake", messages=messages, max_tokens=3)
    warmed, program, chat = (request.prompt_ids for request in seen.requests)
    assert program[: len(warmed)] == warmed
    assert program == chat


def test_a_role_without_turns_is_refused_by_name() -> None:
    gemma = ChatFormat({"user": ("<u>", "</u>"), "assistant": ("<m>", "</m>")})
    with pytest.raises(Unsupported, match="no system turns; it knows: assistant, user"):
        turns.run(backend=sgl.ScriptedBackend(chat=gemma), mode="interpreted")
