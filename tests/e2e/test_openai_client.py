"""The official client, sync and async, streaming and not, against a real server with a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ramet.errors import ContextTooLong, QueueFull
from ramet.runtime.request import Finish, FinishKind
from ramet.server.openai.reply_schema import ChatReply, CompletionReply, ErrorReply
from tests.server.live_server import live_server
from tests.server.scripted_engine import BOS, CONTEXT_LEN, EOS, ScriptedEngine
from tests.waiting import PATIENCE

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
RENDERED = "[system]Be brief.[/system][user]Hi[/user][assistant]"
KEY = "s3cret"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(cached_tokens=2)


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    with live_server(engine, api_key=KEY, served_model_name="small") as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as client:
        yield client


def valid(reply: Any) -> Any:
    """The client's models accept anything; this holds a reply to them strictly, and to our own documented schema."""
    data = reply.model_dump(mode="json", exclude_unset=True)
    type(reply).model_validate(without_legacy_nulls(data) if isinstance(reply, Completion) else data)
    if isinstance(reply, ChatCompletion):
        ChatReply.model_validate(data)
    elif isinstance(reply, Completion) and reply.usage:
        CompletionReply.model_validate(data)
    return reply


def without_legacy_nulls(data: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's service sends null in two places of /v1/completions where its client's types know none: the finish reason of an
    unfinished chunk, and the logprob of the first echoed token. Clients depend on both; everything else must validate."""
    choices = []
    for choice in data["choices"]:
        choice = choice | {"finish_reason": choice["finish_reason"] or "stop"}
        if choice.get("logprobs"):
            logprobs = choice["logprobs"]
            firsts = {"token_logprobs": [logprobs["token_logprobs"][0] or 0.0], "top_logprobs": [logprobs["top_logprobs"][0] or {}]}
            choice["logprobs"] = logprobs | {name: first + logprobs[name][1:] for name, first in firsts.items()}
        choices.append(choice)
    return data | {"choices": choices}


class TestChat:
    def test_whole(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        reply = valid(client.chat.completions.create(model="small", messages=MESSAGES))
        assert reply.choices[0].message.content == "Hello"
        assert reply.choices[0].finish_reason == "stop"
        assert reply.model == "small"
        prompt = engine.tokenizer.encode(RENDERED, add_special_tokens=False)
        assert engine.seen[0].input_ids == tuple(prompt)
        usage: CompletionUsage = reply.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(prompt), 5, len(prompt) + 5)
        assert usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens == 2

    def test_without_max_tokens_the_context_is_the_limit(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        client.chat.completions.create(model="small", messages=MESSAGES)
        assert engine.seen[0].sampling.max_new_tokens == CONTEXT_LEN - len(engine.seen[0].input_ids or ())

    def test_stream(self, client: openai.OpenAI) -> None:
        chunks = [valid(c) for c in client.chat.completions.create(model="small", messages=MESSAGES, stream=True)]
        assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello"
        assert [c.choices[0].finish_reason for c in chunks] == [None] * 6 + ["stop"]
        assert len({c.id for c in chunks}) == 1

    def test_stream_with_usage(self, client: openai.OpenAI) -> None:
        stream = client.chat.completions.create(model="small", messages=MESSAGES, stream=True, stream_options={"include_usage": True})
        chunks = [valid(chunk) for chunk in stream]
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 5
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 2
        assert all(chunk.usage is None for chunk in chunks[:-1])

    def test_n_counts_the_prompt_once(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        reply = valid(client.chat.completions.create(model="small", messages=MESSAGES, n=3, seed=5))
        assert [c.index for c in reply.choices] == [0, 1, 2]
        assert [g.sampling.seed for g in engine.seen] == [5, 6, 7]
        assert reply.usage.prompt_tokens == len(RENDERED)
        assert reply.usage.completion_tokens == 15

    def test_stream_of_n(self, client: openai.OpenAI) -> None:
        texts = {0: "", 1: ""}
        for chunk in client.chat.completions.create(model="small", messages=MESSAGES, n=2, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == {0: "Hello", 1: "Hello"}

    def test_logprobs(self, client: openai.OpenAI) -> None:
        reply = valid(client.chat.completions.create(model="small", messages=MESSAGES, logprobs=True, top_logprobs=2))
        content = reply.choices[0].logprobs.content
        assert "".join(entry.token for entry in content) == "Hello"
        assert content[0].bytes == [ord("H")]
        assert [top.token for top in content[0].top_logprobs] == ["A", "B"]
        chunks = client.chat.completions.create(model="small", messages=MESSAGES, logprobs=True, stream=True)
        streamed = [e.token for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or ()]
        assert "".join(streamed) == "Hello"

    def test_sampling_reaches_the_engine(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        client.chat.completions.create(
            model="small",
            messages=MESSAGES,
            temperature=0.5,
            top_p=0.9,
            stop=["x", "y"],
            logit_bias={"65": -100},
            max_completion_tokens=7,
            frequency_penalty=0.1,
            extra_body={"top_k": 4, "min_p": 0.1, "min_tokens": 2, "ignore_eos": True, "regex": "a+", "priority": 3, "cache_salt": "mine"},
        )
        seen = engine.seen[0]
        sampling = seen.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 4, 0.1)
        assert (sampling.stop, sampling.logit_bias, sampling.max_new_tokens) == (("x", "y"), {65: -100.0}, 7)
        assert (sampling.min_new_tokens, sampling.ignore_eos, sampling.regex) == (2, True, "a+")
        assert (seen.priority, seen.cache_namespace) == (3, "mine")

    def test_response_formats(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        wanted: list[Any] = [
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        ]
        for response_format in wanted:
            client.chat.completions.create(model="small", messages=MESSAGES, response_format=response_format)
        none, any_object, exact = (g.sampling.json_schema for g in engine.seen)
        assert none is None
        assert any_object == '{"type":"object"}'
        assert exact == '{"type": "object", "properties": {"a": {"type": "integer"}}}'

    def test_content_parts_developer_role_and_tools(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        tool: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
        messages: Any = [
            {"role": "developer", "content": "D"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]
        client.chat.completions.create(model="small", messages=messages, tools=[tool])
        client.chat.completions.create(model="small", messages=messages, tools=[tool], tool_choice="none")
        texts = [engine.tokenizer.decode(g.input_ids or ()) for g in engine.seen]
        assert texts == [tools + "[system]D[/system][user]ab[/user][assistant]" for tools in ("<tools:clock>", "")]

    def test_fields_that_ask_for_nothing_else_are_taken(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        predicted: Any = {"type": "content", "content": "Hello"}
        kept: Any = {"prompt_cache_retention": "24h", "prompt_cache_key": "k", "safety_identifier": "s"}
        reply = client.chat.completions.create(model="small", messages=MESSAGES, modalities=["text"], prediction=predicted, **kept)
        client.chat.completions.create(model="small", messages=MESSAGES, extra_body={"audio": None, "functions": None})
        assert reply.choices[0].message.content == "Hello"
        assert engine.tokenizer.decode(engine.seen[0].input_ids or ()) == RENDERED

    def test_verbosity_and_effort_reach_the_template(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        client.chat.completions.create(model="small", messages=MESSAGES, verbosity="low", reasoning_effort="high")
        assert engine.tokenizer.decode(engine.seen[0].input_ids or ()) == f"<reasoning_effort=high><verbosity=low>{RENDERED}"

    def test_continue_final_message(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        messages: Any = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        client.chat.completions.create(model="small", messages=messages, extra_body={"continue_final_message": True})
        assert engine.tokenizer.decode(engine.seen[0].input_ids or ()) == "[user]a[/user][assistant]b"

    def test_defaults_come_from_the_model(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.generation_defaults = {"temperature": 0.2, "top_p": 0.8}
        client.chat.completions.create(model="small", messages=MESSAGES, top_p=0.5)
        assert (engine.seen[0].sampling.temperature, engine.seen[0].sampling.top_p) == (0.2, 0.5)

    async def test_async_client(self, url: str) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            reply = valid(await client.chat.completions.create(model="small", messages=MESSAGES))
            assert reply.choices[0].message.content == "Hello"
            stream = await client.chat.completions.create(model="small", messages=MESSAGES, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "Hello"


class TestCompletions:
    def test_text(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        reply = valid(client.completions.create(model="small", prompt="Hi"))
        assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("Hello", "stop")
        assert engine.seen[0].input_ids == (BOS, *b"Hi")
        assert engine.seen[0].sampling.max_new_tokens == 16

    @pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3]]])
    def test_lists_of_prompts(self, client: openai.OpenAI, engine: ScriptedEngine, prompt: Any) -> None:
        reply = valid(client.completions.create(model="small", prompt=prompt, n=2, max_tokens=2))
        assert [(c.index, c.text, c.finish_reason) for c in reply.choices] == [(i, "He", "length") for i in range(4)]
        assert reply.usage.prompt_tokens == sum(len(g.input_ids or ()) for g in engine.seen[::2])

    def test_token_ids(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        client.completions.create(model="small", prompt=[65, 66])
        assert engine.seen[0].input_ids == (65, 66)

    def test_echo_with_logprobs(self, client: openai.OpenAI) -> None:
        reply = valid(client.completions.create(model="small", prompt="Hi", echo=True, logprobs=1, max_tokens=2))
        choice = reply.choices[0]
        assert choice.text == "HiHe"
        assert choice.logprobs.tokens == ["<bos>", "H", "i", "H", "e"]
        assert choice.logprobs.token_logprobs == [None, -0.25, -0.25, -0.25, -0.25]
        assert choice.logprobs.top_logprobs[0] is None
        assert choice.logprobs.top_logprobs[1] == {"A": -0.5}

    def test_stream_with_echo_and_usage(self, client: openai.OpenAI) -> None:
        options: Any = {"include_usage": True}
        chunks = [valid(c) for c in client.completions.create(model="small", prompt="Hi", echo=True, stream=True, stream_options=options)]
        assert "".join(c.choices[0].text for c in chunks[:-1]) == "HiHello"
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 5)

    def test_logprob_offsets_run_on_in_a_stream(self, client: openai.OpenAI) -> None:
        chunks = client.completions.create(model="small", prompt="Hi", logprobs=0, stream=True)
        offsets = [o for c in chunks if c.choices[0].logprobs for o in c.choices[0].logprobs.text_offset or ()]
        assert offsets == [0, 1, 2, 3, 4]

    async def test_async_stream(self, url: str) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            stream = await client.completions.create(model="small", prompt="Hi", stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello"


class TestModels:
    def test_list_and_retrieve(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["small"]
        assert client.models.retrieve("small").owned_by == "ramet"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")


class TestErrors:
    def bad(self, client: openai.OpenAI, **fields: Any) -> Any:
        """The error of a chat request with these fields."""
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**{"model": "small", "messages": MESSAGES} | fields)
        ErrorReply.model_validate(caught.value.response.json())
        return caught.value

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"temperature": -1}, "temperature"),
            ({"temperature": "hot"}, "temperature"),
            ({"max_tokens": -1}, "max_tokens"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0]"),
            ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
            ({"extra_body": {"temprature": 1}}, "temprature"),
            ({"extra_body": {"lora_path": "x"}}, "lora_path"),
            ({"modalities": ["text", "audio"]}, "modalities[1]"),
            ({"audio": {"format": "mp3", "voice": "ash"}}, "audio"),
            ({"verbosity": "chatty"}, "verbosity"),
            ({"prediction": {"type": "content"}}, "prediction.content"),
            ({"web_search_options": {}}, "web_search_options"),
            ({"functions": [{"name": "f"}]}, "functions"),
            ({"top_logprobs": 3}, "top_logprobs"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice.function.name"),
            ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
            ({"response_format": {"type": "json_object"}, "extra_body": {"regex": "a"}}, "response_format"),
            ({"extra_body": {"regex": "a", "ebnf": "b"}}, None),
            ({"extra_body": {"min_tokens": 9}, "max_tokens": 3}, "min_tokens"),
        ],
    )
    def test_400_names_the_field(self, client: openai.OpenAI, fields: dict[str, Any], param: str | None) -> None:
        error = self.bad(client, **fields)
        assert isinstance(error, openai.BadRequestError)
        assert error.param == param or (param is None and error.param in ("regex", "ebnf"))

    def test_401(self, url: str) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger:
            assert isinstance(self.bad(stranger), openai.AuthenticationError)

    def test_404_names_what_is_served(self, client: openai.OpenAI) -> None:
        error = self.bad(client, model="gpt-9")
        assert isinstance(error, openai.NotFoundError)
        assert "'small'" in error.message

    def test_503_with_retry_after(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.refusal = QueueFull("full", retry_after=7)
        error = self.bad(client)
        assert (error.status_code, error.response.headers["retry-after"]) == (503, "7")

    @pytest.mark.parametrize("stream", [False, True])
    def test_context_too_long_speaks_openai(self, client: openai.OpenAI, engine: ScriptedEngine, stream: bool) -> None:
        engine.refusal = ContextTooLong("max_new_tokens is 9", param="max_new_tokens")
        error = self.bad(client, stream=stream)
        assert "max_tokens is 9" in error.message
        assert (error.status_code, error.code, error.param) == (400, "context_length_exceeded", "max_tokens")

    def test_error_in_mid_stream(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.ending = Finish(FinishKind.ERROR, message="the worker died", status=503, code="worker_died")
        text = ""
        with pytest.raises(openai.APIError, match="the worker died"):
            for chunk in client.chat.completions.create(model="small", messages=MESSAGES, stream=True):
                text += chunk.choices[0].delta.content or ""
        assert text == "Hello"

    def test_aborted_request_is_499(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.ending = Finish(FinishKind.ABORT, message="aborted", status=499, code="cancelled")
        assert self.bad(client).status_code == 499

    @pytest.mark.parametrize(("fields", "param"), [({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of"), ({"prompt": ""}, "prompt")])
    def test_completions_refuse_by_name(self, client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": "small", "prompt": "Hi"} | fields)
        assert caught.value.param == param

    def test_best_of_equal_to_n_is_fine(self, client: openai.OpenAI) -> None:
        assert len(client.completions.create(model="small", prompt="Hi", n=2, best_of=2).choices) == 2


def test_matched_stop_is_reported(url: str) -> None:
    body = {"model": "small", "messages": MESSAGES}
    reply = httpx.post(f"{url}/v1/chat/completions", timeout=PATIENCE, json=body, headers={"Authorization": f"Bearer {KEY}"}).json()
    assert reply["choices"][0]["matched_stop"] == EOS
