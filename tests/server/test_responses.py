"""/v1/responses through the official client: whole and streamed, tools, formats, history, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from ramet.errors import ContextTooLong, GrammarError
from ramet.runtime.request import Finish, FinishKind
from ramet.server.openai.reply_schema import ErrorReply, ResponseReply
from tests.server.live_server import live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.waiting import PATIENCE

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}
CLOCK: Any = {"type": "function", "name": "clock", "description": "the time", "parameters": {"type": "object"}, "strict": None}
CALLING = (
    "<think>\nhm\n</think>\n\nLet me see.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)


class City(BaseModel):
    city: str


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine(cached_tokens=2)


@pytest.fixture(scope="module")
def served(engine: ScriptedEngine) -> Iterator[openai.OpenAI]:
    with (
        live_server(engine, tool_call_parser="hermes", reasoning_parser="qwen3") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=PATIENCE) as client,
    ):
        yield client


@pytest.fixture
def client(served: openai.OpenAI, engine: ScriptedEngine) -> openai.OpenAI:
    engine.answer, engine.refusal, engine.ending = "Hello", None, None
    engine.seen.clear()
    return served


def ask(client: openai.OpenAI, **fields: Any) -> Response:
    reply = client.responses.create(**{"model": "default", "input": "Hi"} | fields)
    check(reply.model_dump(mode="json", exclude_unset=True, by_alias=True))
    return reply


def check(data: dict[str, Any]) -> None:
    """The client's models accept anything; this holds a reply to them strictly, and to our own documented schema."""
    Response.model_validate(data)
    ResponseReply.model_validate(data)


def events(client: openai.OpenAI, **fields: Any) -> list[Any]:
    found = list(client.responses.create(**{"model": "default", "input": "Hi", "stream": True} | fields))
    for event in found:
        TypeAdapter(ResponseStreamEvent).validate_python(event.model_dump(mode="json", exclude_unset=True, by_alias=True))
    assert [event.sequence_number for event in found] == list(range(len(found)))
    return found


def prompt(engine: ScriptedEngine) -> str:
    return engine.tokenizer.decode(engine.seen[-1].input_ids or ())


def without_ids(output: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.model_dump().items() if name not in ("id", "call_id")} for item in output]


class TestWhole:
    def test_text(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        reply = ask(client, instructions="Be brief.", metadata={"a": "b"}, temperature=0.25)
        assert (reply.output_text, reply.status, reply.output[0].type) == ("Hello", "completed", "message")
        assert prompt(engine) == "[system]Be brief.[/system][user]Hi[/user][assistant]"
        usage = reply.usage
        assert usage and (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (len(prompt(engine)), 5, len(prompt(engine)) + 5)
        assert usage.input_tokens_details.cached_tokens == 2
        assert (reply.instructions, reply.metadata, reply.temperature, reply.top_p) == ("Be brief.", {"a": "b"}, 0.25, 1.0)
        assert reply.id.startswith("resp_") and not reply.tools and reply.tool_choice == "auto"

    def test_an_empty_answer_is_an_empty_message(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = ""
        reply = ask(client)
        assert (reply.output_text, len(reply.output)) == ("", 1)

    def test_length_is_incomplete(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        reply = ask(client, max_output_tokens=2)
        assert (reply.status, reply.output_text) == ("incomplete", "He")
        assert reply.incomplete_details and reply.incomplete_details.reason == "max_output_tokens"
        assert engine.seen[0].sampling.max_new_tokens == 2

    def test_thoughts_words_and_calls_are_items(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = CALLING
        reply = ask(client, tools=[WEATHER, CLOCK])
        thoughts, message, weather, clock = reply.output
        assert thoughts.type == "reasoning" and thoughts.content and thoughts.content[0].text == "hm"
        assert message.type == "message" and reply.output_text == "Let me see."
        assert weather.type == clock.type == "function_call"
        assert (weather.name, json.loads(weather.arguments), clock.name) == ("get_weather", {"city": "Bern"}, "clock")
        assert weather.call_id != clock.call_id
        assert reply.usage and reply.usage.output_tokens_details.reasoning_tokens == len("hm")

    def test_text_formats(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        wanted: list[Any] = [
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "name": "x", "schema": CITY, "strict": True},
        ]
        for each in wanted:
            assert ask(client, text={"format": each}).text.format.type == each["type"]  # type: ignore[union-attr]
        none, any_object, exact = (generation.sampling for generation in engine.seen)
        assert none.ebnf is None and none.json_schema is None
        assert '"city"' not in (any_object.ebnf or "") and "r_answer: %json" in (any_object.ebnf or "")
        assert '"city"' in (exact.ebnf or "")

    def test_the_clients_own_parse_helper(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = '{"city":"Bern"}'
        assert client.responses.parse(model="default", input="Where?", text_format=City).output_parsed == City(city="Bern")
        engine.answer = '<tool_call>{"name": "City", "arguments": {"city": "Bern"}}</tool_call>'
        tools: Any = [openai.pydantic_function_tool(City)]
        reply = client.responses.parse(model="default", input="Where?", tools=tools, tool_choice="required")
        assert reply.output[0].parsed_arguments == City(city="Bern")  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("choice", "has", "has_not"),
        [
            ("required", ["get_weather", "clock"], []),
            ({"type": "function", "name": "clock"}, ["clock"], ["get_weather"]),
            ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]}, ["clock"], ["get_weather"]),
        ],
    )
    def test_tool_choices(self, client: openai.OpenAI, engine: ScriptedEngine, choice: Any, has: list[str], has_not: list[str]) -> None:
        ask(client, tools=[WEATHER, CLOCK], tool_choice=choice)
        source = engine.seen[0].sampling.ebnf or ""
        assert all(name in source for name in has) and not any(name in source for name in has_not)

    def test_extensions_and_hints_reach_the_engine(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        ask(client, text={"verbosity": "low"}, reasoning={"effort": "high", "summary": "auto"}, extra_body={"top_k": 4, "seed": 7})
        assert (engine.seen[0].sampling.top_k, engine.seen[0].sampling.seed) == (4, 7)
        assert prompt(engine).startswith("<reasoning_effort=high><verbosity=low>")

    def test_what_asks_for_nothing_is_taken(self, client: openai.OpenAI) -> None:
        reply = ask(
            client, store=False, background=False, truncation="disabled", include=["reasoning.encrypted_content"], tool_choice="auto"
        )
        assert reply.status == "completed"


class TestHistory:
    def test_roles_and_parts(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        given: Any = [
            {"role": "developer", "content": "D"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
            {"role": "user", "content": "d"},
        ]
        ask(client, input=given)
        assert prompt(engine) == "[system]D[/system][user]ab[/user][assistant]c[/assistant][user]d[/user][assistant]"

    def test_a_reply_goes_back_as_it_came(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        """Thoughts, words and calls of one turn are one message of the template's, as the model wrote them."""
        engine.answer = CALLING
        first = ask(client, tools=[WEATHER, CLOCK])
        calls = [item for item in first.output if item.type == "function_call"]
        outputs: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "1"} for call in calls]
        ask(client, tools=[WEATHER, CLOCK], input=[{"role": "user", "content": "Hi"}, *first.output, *outputs])
        spoken = CALLING.partition("</think>\n\n")[2]
        told = "[user]Hi[/user][assistant]" + spoken + "[/assistant]" + "[tool]1[/tool]" * 2 + "[assistant]"
        assert prompt(engine) == "<tools:get_weather,clock>" + told


class TestStreams:
    def test_text(self, client: openai.OpenAI) -> None:
        found = events(client)
        kinds = [event.type.removeprefix("response.") for event in found]
        assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
        assert kinds[4:-4] == ["output_text.delta"] * 5
        assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
        assert "".join(event.delta for event in found[4:-4]) == found[-1].response.output_text == "Hello"
        assert found[-1].response.usage.output_tokens == 5
        check(found[-1].response.model_dump(mode="json", exclude_unset=True, by_alias=True))

    def test_streamed_is_the_same(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = CALLING
        found = events(client, tools=[WEATHER, CLOCK])
        whole = ask(client, tools=[WEATHER, CLOCK])
        assert without_ids(found[-1].response.output) == without_ids(whole.output)
        done = [event.item for event in found if event.type == "response.output_item.done"]
        assert [item.id for item in done] == [item.id for item in found[-1].response.output]
        pieces = [e.delta for e in found if e.type == "response.function_call_arguments.delta" and e.output_index == 2]
        assert len(pieces) > 5 and json.loads("".join(pieces)) == {"city": "Bern"}

    def test_length_is_incomplete(self, client: openai.OpenAI) -> None:
        last = events(client, max_output_tokens=2)[-1]
        assert (last.type, last.response.status, last.response.output[0].status) == ("response.incomplete", "incomplete", "incomplete")

    def test_the_clients_own_stream_helper(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = '{"city":"Bern"}'
        with client.responses.stream(model="default", input="Where?", text_format=City) as stream:
            texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
            assert stream.get_final_response().output_parsed == City(city="Bern")
        assert "".join(texts) == engine.answer

    async def test_async_client(self, client: openai.OpenAI) -> None:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="-", max_retries=0) as other:
            stream = await other.responses.create(model="default", input="Hi", stream=True)
            assert "".join([event.delta async for event in stream if event.type == "response.output_text.delta"]) == "Hello"

    def test_events_carry_their_names(self, client: openai.OpenAI) -> None:
        lines = httpx.post(f"{client.base_url}responses", timeout=PATIENCE, json={"input": "Hi", "stream": True}).text.splitlines()
        named = [line.removeprefix("event: ") for line in lines if line.startswith("event:")]
        data = [json.loads(line.removeprefix("data: "))["type"] for line in lines if line.startswith("data:")]
        assert named == data and named[-1] == "response.completed"

    def test_an_error_in_mid_stream(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.ending = Finish(FinishKind.ERROR, message="the worker died", status=503, code="worker_died")
        with pytest.raises(openai.APIError, match="the worker died"):
            events(client)


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"previous_response_id": "resp_1"}, "previous_response_id"),
            ({"conversation": "conv_1"}, "conversation"),
            ({"store": True}, "store"),
            ({"background": True}, "background"),
            ({"prompt": {"id": "p"}}, "prompt"),
            ({"truncation": "auto"}, "truncation"),
            ({"top_logprobs": 3}, "top_logprobs"),
            ({"include": ["file_search_call.results"]}, "include[0]"),
            ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1]"),
            ({"tools": [CLOCK | {"name": "a b"}]}, "tools[0].name"),
            ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name"),
            ({"tools": [CLOCK], "tool_choice": {"type": "web_search"}}, "tool_choice"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"input": []}, "input"),
            ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
            ({"input": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}, "input[1].role"),
            ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
            ({"input": [{"role": "tool", "tool_call_id": "1", "content": "x"}]}, "input[0]"),
            ({"input": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}, "input[0]"),
            ({"instructions": "a", "input": [{"role": "user"}]}, "input[0]"),
            ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
            ({"max_output_tokens": -1}, "max_output_tokens"),
            ({"temperature": "hot"}, "temperature"),
            ({"extra_body": {"max_tokens": 5}}, "max_tokens"),
        ],
    )
    def test_400_names_the_bodys_own_field(self, client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **fields)
        ErrorReply.model_validate(caught.value.response.json())
        assert caught.value.param == param, caught.value.message
        assert "messages[" not in caught.value.message and ".function" not in caught.value.message

    def test_a_misspelt_field_is_told_the_one_meant(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="did you mean instructions"):
            ask(client, extra_body={"instruction": "x"})
        with pytest.raises(openai.BadRequestError, match="use max_output_tokens"):
            ask(client, extra_body={"max_tokens": 5})

    def test_calls_of_the_history_are_named(self, client: openai.OpenAI) -> None:
        """By where they are in the input, which is not where they are among the messages."""
        given: Any = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"type": "function_call", "call_id": "1", "name": "clock", "arguments": "{"},
        ]
        with live_server(ScriptedEngine(), tool_call_parser="pythonic") as url:
            reply = httpx.post(f"{url}/v1/responses", timeout=PATIENCE, json={"input": given})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input[2].arguments")

    @pytest.mark.parametrize("stream", [False, True])
    def test_what_the_engine_refuses_has_its_status_and_our_names(
        self, client: openai.OpenAI, engine: ScriptedEngine, stream: bool
    ) -> None:
        engine.refusal = GrammarError("json_schema: wrong", where="/properties/a")
        with pytest.raises(openai.BadRequestError, match="/properties/a") as caught:
            client.responses.create(
                model="default", input="a", stream=stream, text={"format": {"type": "json_schema", "name": "x", "schema": CITY}}
            )
        assert caught.value.param == "text.format.schema"
        engine.refusal = ContextTooLong("max_new_tokens is 9", param="max_new_tokens")
        with pytest.raises(openai.BadRequestError, match="max_output_tokens is 9") as long:
            client.responses.create(model="default", input="a", stream=stream)
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "max_output_tokens")

    def test_nothing_is_kept(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_1")
