"""Tools against a model that says noise: only the masks can make its replies calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import openai
import pytest

from tests.fakes import fake_engine
from tests.server.live_server import live_server
from tests.waiting import PATIENCE

USER: Any = [{"role": "user", "content": "Which?"}]
SCHEMA = {
    "type": "object",
    "properties": {"unit": {"enum": ["c", "f"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["unit", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "forecast", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "additionalProperties": False}}},
]
FORMATS = ["hermes", "llama3", "mistral", "deepseekv3", "pythonic"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    engine = fake_engine()
    yield engine
    engine.close_now()


@pytest.fixture(scope="module", params=FORMATS)
def client(engine: Any, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with client_of(engine, tool_call_parser=request.param) as client:
        yield client


@contextmanager
def client_of(engine: Any, **options: Any) -> Iterator[openai.OpenAI]:
    with live_server(engine, **options) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=PATIENCE) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    defaults: dict[str, Any] = {"model": "default", "messages": USER, "tools": TOOLS, "max_tokens": 400, "temperature": 1.0}
    return client.chat.completions.create(**defaults | fields)


def check(name: str, arguments: str) -> None:
    schema = next(tool["function"]["parameters"] for tool in TOOLS if tool["function"]["name"] == name)
    jsonschema.validate(json.loads(arguments), schema)


def test_required_calls_are_calls(client: openai.OpenAI) -> None:
    reply = ask(client, tool_choice="required", parallel_tool_calls=False, n=4, seed=1)
    for choice in reply.choices:
        (call,) = choice.message.tool_calls
        check(call.function.name, call.function.arguments)
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None


def test_the_named_tool_is_called_streamed_as_whole(client: openai.OpenAI) -> None:
    wanted = {"type": "function", "function": {"name": "forecast"}}
    fields: dict[str, Any] = {"tool_choice": wanted, "parallel_tool_calls": False, "seed": 5, "temperature": 0.0}
    (call,) = ask(client, **fields).choices[0].message.tool_calls
    check(call.function.name, call.function.arguments)
    streamed = ""
    for chunk in ask(client, **fields, stream=True):
        streamed += "".join(piece.function.arguments for piece in chunk.choices[0].delta.tool_calls or ())
    assert streamed == call.function.arguments


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_schema_is_blamed_on_its_tool(client: openai.OpenAI, stream: bool) -> None:
    wrong = {"type": "object", "properties": {"a": {"type": "integer", "minimum": "x"}}, "required": ["a"]}
    tools = [TOOLS[1], {"type": "function", "function": {"name": "f", "parameters": wrong}}]
    with pytest.raises(openai.BadRequestError, match="/properties/a") as caught:
        list(ask(client, tools=tools, tool_choice="required", stream=stream))
    assert caught.value.param == "tools[1].function.parameters"
    assert caught.value.code == "invalid_grammar"


def test_an_answer_after_thoughts(engine: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    messages = [*USER, {"role": "assistant", "content": "<think>\n"}]
    fields: dict[str, Any] = {"tools": openai.NOT_GIVEN, "response_format": wanted, "n": 3, "seed": 2, "messages": messages}
    with client_of(engine, reasoning_parser="qwen3") as client:
        thoughtful = ask(client, **fields, extra_body={"continue_final_message": True}).choices
        direct = ask(
            client,
            **fields | {"messages": [*USER, {"role": "assistant", "content": "</think>"}]},
            extra_body={"continue_final_message": True},
        )
    for choice in thoughtful:
        assert choice.message.reasoning_content
    for choice in (*thoughtful, *direct.choices):  # noise never ends its thoughts: the budget does
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
