"""Tool calls and reasoning through the official client: whole and streamed replies, history, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from ramet.errors import GrammarError
from ramet.server.openai.reply_schema import ChatReply
from tests.server.live_server import live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.waiting import PATIENCE

USER: Any = [{"role": "user", "content": "Hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "description": "the time"}}
TWO_CALLS = (
    'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "a {b} \\" c"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)


class City(BaseModel):
    """The weather of a city."""

    city: str


@contextmanager
def client_of(engine: ScriptedEngine, **options: Any) -> Iterator[openai.OpenAI]:
    with (
        live_server(engine, **{"tool_call_parser": "hermes", "reasoning_parser": "qwen3"} | options) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=PATIENCE) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture(scope="module")
def served(engine: ScriptedEngine) -> Iterator[openai.OpenAI]:
    with client_of(engine) as client:
        yield client


@pytest.fixture
def client(served: openai.OpenAI, engine: ScriptedEngine) -> openai.OpenAI:
    engine.answer, engine.refusal = "Hello", None
    engine.seen.clear()
    return served


def ask(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    reply = client.chat.completions.create(**{"model": "default", "messages": USER} | fields)
    data = reply.model_dump(mode="json", exclude_unset=True)
    ChatCompletion.model_validate(data)
    ChatReply.model_validate(data)
    return reply


def chunks(client: openai.OpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    stream = client.chat.completions.create(**{"model": "default", "messages": USER, "stream": True} | fields)
    found = list(stream)
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk.model_dump(mode="json", exclude_unset=True))
    return found


def joined(found: list[ChatCompletionChunk], index: int = 0) -> dict[str, Any]:
    """As a client adds them up."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish": None}
    for choice in (choice for chunk in found for choice in chunk.choices if choice.index == index):
        message["content"] += choice.delta.content or ""
        message["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or ():
            if call.index == len(message["calls"]):
                assert call.id and call.function and call.function.name and call.type == "function"
                message["calls"].append([call.function.name, ""])
            else:
                assert call.index == len(message["calls"]) - 1 and call.id is None
            message["calls"][call.index][1] += (call.function and call.function.arguments) or ""
        message["finish"] = choice.finish_reason or message["finish"]
    return message


class TestReplies:
    def test_whole(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = TWO_CALLS
        choice = ask(client, tools=[WEATHER, CLOCK]).choices[0]
        assert choice.message.content == "Let me see."
        assert choice.finish_reason == "tool_calls"
        calls: Any = choice.message.tool_calls
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
            ("get_weather", {"city": 'a {b} " c'}),
            ("clock", {}),
        ]
        assert len({call.id for call in calls}) == 2

    def test_nothing_but_calls_has_no_content(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = '<tool_call>{"name": "clock"}</tool_call>'
        message = ask(client, tools=[CLOCK]).choices[0].message
        assert message.content is None
        assert message.tool_calls and message.tool_calls[0].function.arguments == "{}"  # type: ignore[union-attr]

    def test_streamed_is_the_same(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = TWO_CALLS
        message = joined(chunks(client, tools=[WEATHER, CLOCK]))
        assert message == {
            "content": "Let me see.",
            "reasoning": "",
            "calls": [["get_weather", '{"city": "a {b} \\" c"}'], ["clock", "{}"]],
            "finish": "tool_calls",
        }

    def test_arguments_come_in_pieces(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = TWO_CALLS
        found = [call for chunk in chunks(client, tools=[WEATHER, CLOCK]) for call in chunk.choices[0].delta.tool_calls or ()]
        assert len([call for call in found if call.index == 0]) == 1 + len('{"city": "a {b} \\" c"}')

    def test_the_clients_own_stream_helper(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = '<tool_call>{"name": "City", "arguments": {"city": "Bern"}}</tool_call>'
        tool = openai.pydantic_function_tool(City)
        with client.chat.completions.stream(model="default", messages=USER, tools=[tool]) as stream:
            kinds = {event.type for event in stream}
            message = stream.get_final_completion().choices[0].message
        assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
        assert message.tool_calls and message.tool_calls[0].function.parsed_arguments == City(city="Bern")
        assert '"city"' in (engine.seen[0].sampling.ebnf or "")

    def test_the_clients_own_parse_helper(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = '{"city":"Bern"}'
        reply = client.chat.completions.parse(model="default", messages=USER, response_format=City)
        assert reply.choices[0].message.parsed == City(city="Bern")
        assert '"required": ["city"]' in (engine.seen[0].sampling.ebnf or "")

    def test_n_streams_keep_their_calls_apart(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = TWO_CALLS
        found = chunks(client, tools=[WEATHER, CLOCK], n=2)
        assert (
            [name for name, _ in joined(found, 0)["calls"]] == [name for name, _ in joined(found, 1)["calls"]] == ["get_weather", "clock"]
        )

    def test_every_token_has_its_logprob(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = TWO_CALLS
        found = chunks(client, tools=[WEATHER, CLOCK], logprobs=True)
        tokens = [entry.token for c in found if c.choices[0].logprobs for entry in c.choices[0].logprobs.content or ()]
        assert "".join(tokens) == TWO_CALLS

    def test_length_stays_length(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = TWO_CALLS
        limit = TWO_CALLS.index("b}")
        whole = ask(client, tools=[WEATHER, CLOCK], max_tokens=limit).choices[0]
        message = joined(chunks(client, tools=[WEATHER, CLOCK], max_tokens=limit))
        assert whole.finish_reason == message["finish"] == "length"
        assert message["calls"] == [["get_weather", '{"city": "a {']]
        assert whole.message.tool_calls and whole.message.tool_calls[0].function.arguments == '{"city": "a {'  # type: ignore[union-attr]

    @pytest.mark.parametrize("fields", [{"tools": [WEATHER, CLOCK], "tool_choice": "none"}, {}])
    def test_without_tools_the_text_stays(self, client: openai.OpenAI, engine: ScriptedEngine, fields: dict[str, Any]) -> None:
        engine.answer = TWO_CALLS
        choice = ask(client, **fields).choices[0]
        assert (choice.message.content, choice.finish_reason, choice.message.tool_calls) == (TWO_CALLS, "stop", None)
        assert joined(chunks(client, **fields))["content"] == TWO_CALLS

    async def test_async_client(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = TWO_CALLS
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="-", max_retries=0) as other:
            fields: Any = {"model": "default", "messages": USER, "tools": [WEATHER, CLOCK]}
            reply = await other.chat.completions.create(**fields)
            stream = await other.chat.completions.create(**fields, stream=True)
            message = joined([chunk async for chunk in stream])
        assert [call.function.name for call in reply.choices[0].message.tool_calls or ()] == ["get_weather", "clock"]
        assert message["calls"][1] == ["clock", "{}"]


class TestConstraints:
    @pytest.mark.parametrize(
        ("fields", "has", "has_not"),
        [
            ({"tool_choice": "required"}, ["get_weather", "clock", '"city"', "{0,31}"], ["r_body: R_TEXT"]),
            ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, ["clock"], ["get_weather", "{0,31}"]),
            ({"parallel_tool_calls": False}, ["r_before", "r_body: R_TEXT"], ["{0,31}", '"city"']),
            ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK]}}}, ["clock"], ["get_wea"]),
        ],
    )
    def test_choices(self, client: openai.OpenAI, engine: ScriptedEngine, fields: Any, has: list[str], has_not: list[str]) -> None:
        ask(client, tools=[WEATHER, CLOCK], **fields)
        source = engine.seen[0].sampling.ebnf or ""
        rules = "\n".join(line for line in source.splitlines() if not line.startswith("R_TEXT"))
        assert all(text in rules for text in has)
        assert not any(text in rules for text in has_not)

    def test_strict_alone_constrains_auto(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        ask(client, tools=[WEATHER, CLOCK])
        strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
        ask(client, tools=[strict, CLOCK])
        free, exact = (generation.sampling.ebnf for generation in engine.seen)
        assert free is None
        assert exact and '"city"' in exact

    def test_an_answer_format_beside_tools(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        ask(client, tools=[WEATHER], response_format={"type": "json_object"})
        assert "r_answer: %json" in (engine.seen[0].sampling.ebnf or "")

    def test_completions_enforce_formats_too(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}
        client.completions.create(model="default", prompt="a", extra_body={"response_format": wanted})
        client.completions.create(model="default", prompt="a", extra_body={"regex": "a+"})
        assert json.loads(engine.seen[0].sampling.json_schema or "") == CITY
        assert engine.seen[1].sampling.regex == "a+"

    def test_a_tree_of_formats_reaches_the_engine_as_it_is(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        tag = {"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": CITY}, "end": "</f>"}
        tree = {"type": "triggered_tags", "triggers": ["<f"], "tags": [tag], "at_least_one": True}
        wanted: Any = {"type": "structural_tag", "format": tree}
        client.completions.create(model="default", prompt="a", extra_body={"response_format": wanted})
        assert json.loads(engine.seen[0].sampling.structural_tag or "") == wanted
        engine.refusal = GrammarError("structural_tag: wrong", where="/format/tags/0/begin", param="structural_tag")
        with pytest.raises(openai.BadRequestError, match="/format/tags/0/begin") as caught:
            client.completions.create(model="default", prompt="a", extra_body={"response_format": wanted})
        assert caught.value.param == "structural_tag"

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_bad_schema_is_named(self, client: openai.OpenAI, engine: ScriptedEngine, stream: bool) -> None:
        engine.refusal = GrammarError("ebnf: wrong", where="line 2, column 3")
        with pytest.raises(openai.BadRequestError) as caught:
            ask_or_stream = chunks if stream else ask
            ask_or_stream(client, tools=[WEATHER, CLOCK], tool_choice="required")
        assert caught.value.param == "tools[1].function.parameters"
        assert "tools[1].function.parameters" in caught.value.message

    def test_a_bad_answer_schema_is_named(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.refusal = GrammarError("json_schema: wrong", where="/properties/a")
        with pytest.raises(openai.BadRequestError, match="/properties/a") as caught:
            ask(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}})
        assert caught.value.param == "response_format.json_schema.schema"

    @pytest.mark.parametrize(
        ("fields", "complaint", "told"),
        [
            ({"extra_body": {"json_schema": CITY}}, "ebnf: 'strng' is not a type (at line 4, /properties/a/type)", None),
            ({"extra_body": {"ebnf": "start: a\na: ("}}, "ebnf: unexpected end (at line {}, column 4)", "line 2, column 4"),
            ({"extra_body": {"ebnf": "start: a\na: ("}}, "ebnf: {}(5): Expected token ')'", "ebnf: 2(5): Expected"),
        ],
    )
    def test_lines_of_the_composed_grammar_are_not_shown(
        self, client: openai.OpenAI, engine: ScriptedEngine, fields: Any, complaint: str, told: str | None
    ) -> None:
        """With thoughts in front, the grammar is longer than what the request says."""
        ask(client, **fields)
        lines = (engine.seen[0].sampling.ebnf or "").splitlines()
        place = lines.index("a: (") + 1 if "a: (" in lines else 4
        engine.refusal = GrammarError(complaint.format(place))
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **fields)
        assert (told in caught.value.message) if told else ("(at /properties/a/type)" in caught.value.message)
        assert place != 2

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
            ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
            ({"tools": [CLOCK], "tool_choice": "sometimes"}, "tool_choice"),
            ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice.function.name"),
            ({"tool_choice": "auto"}, "tool_choice"),
            (
                {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "array"}}}]},
                "tools[0].function.parameters",
            ),
            ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
            ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls"),
            ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages[0].tool_calls[0].function.name"),
        ],
    )
    def test_400_names_the_field(self, client: openai.OpenAI, fields: Any, param: str) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **fields)
        assert caught.value.param == param

    def test_without_a_parser_nothing_is_promised(self) -> None:
        engine = ScriptedEngine(answer=TWO_CALLS)
        with client_of(engine, tool_call_parser="none") as client:
            assert ask(client, tools=[WEATHER, CLOCK]).choices[0].message.content == TWO_CALLS
            strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
            refused: list[tuple[Any, str]] = [
                ({"tool_choice": "required"}, "tool_choice"),
                ({"parallel_tool_calls": False}, "parallel_tool_calls"),
                ({"tools": [CLOCK, strict]}, "tools[1].function.strict"),
            ]
            for fields, param in refused:
                with pytest.raises(openai.BadRequestError, match="--tool-call-parser") as caught:
                    ask(client, **{"tools": [WEATHER]} | fields)
                assert caught.value.param == param


class TestReasoning:
    TEXT = "<think>\nhm, so\n</think>\n\nYes."

    def test_whole(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = self.TEXT
        message: Any = ask(client).choices[0].message
        assert (message.content, message.reasoning_content) == ("Yes.", "hm, so")

    def test_streamed(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = self.TEXT
        found = chunks(client)
        assert (joined(found)["content"], joined(found)["reasoning"]) == ("Yes.", "hm, so")
        at_once = [
            c for c in chunks(client, extra_body={"stream_reasoning": False}) if getattr(c.choices[0].delta, "reasoning_content", None)
        ]
        assert [c.choices[0].delta.reasoning_content for c in at_once] == ["hm, so"]  # type: ignore[attr-defined]

    def test_choices_think_apart(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = self.TEXT
        found = chunks(client, n=2)
        assert [joined(found, index)["reasoning"] for index in (0, 1)] == ["hm, so"] * 2
        assert [choice.message.content for choice in ask(client, n=2).choices] == ["Yes."] * 2

    def test_left_in_the_text_on_demand(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = self.TEXT
        assert ask(client, extra_body={"separate_reasoning": False}).choices[0].message.content == self.TEXT

    def test_unfinished_thoughts_are_no_answer(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = self.TEXT
        choice: Any = ask(client, max_tokens=10).choices[0]
        assert (choice.message.content, choice.message.reasoning_content, choice.finish_reason) == (None, "hm", "length")

    def test_a_constraint_waits_for_the_answer(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        ask(client, extra_body={"regex": "yes|no"})
        assert "r_answer: /yes|no/" in (engine.seen[0].sampling.ebnf or "")
        messages: Any = [*USER, {"role": "assistant", "content": "<think>\n\n</think>\n\n"}]
        ask(client, messages=messages, extra_body={"regex": "yes|no", "continue_final_message": True})
        assert (engine.seen[1].sampling.regex, engine.seen[1].sampling.ebnf) == ("yes|no", None)

    def test_a_continued_thought(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = " more</think>Yes."
        messages: Any = [*USER, {"role": "assistant", "content": "<think>I begin"}]
        message: Any = ask(client, messages=messages, extra_body={"continue_final_message": True}).choices[0].message
        assert (message.content, message.reasoning_content) == ("Yes.", "more")


class TestHistory:
    CALLS: ClassVar[Any] = [{"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "x"}'}}]

    def prompt(self, engine: ScriptedEngine) -> str:
        return engine.tokenizer.decode(engine.seen[-1].input_ids or ())

    def test_calls_and_results_reach_the_prompt(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        messages = [
            *USER,
            {"role": "assistant", "content": None, "tool_calls": self.CALLS},
            {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
        ]
        ask(client, messages=messages, tools=[CLOCK])
        written = '[assistant]<tool_call>\n{"name": "clock", "arguments": {"zone": "x"}}\n</tool_call>[/assistant]'
        assert self.prompt(engine) == f"<tools:clock>[user]Hi[/user]{written}[tool]noon[/tool][assistant]"

    def test_a_reply_is_a_message(self, client: openai.OpenAI, engine: ScriptedEngine) -> None:
        engine.answer = TWO_CALLS
        message = ask(client, tools=[WEATHER, CLOCK]).choices[0].message
        messages: Any = [*USER, message, {"role": "tool", "tool_call_id": "x", "content": "1"}]
        ask(client, messages=messages, tools=[WEATHER, CLOCK])
        assert TWO_CALLS in self.prompt(engine)


class TestParsersAlone:
    def test_calls(self, client: openai.OpenAI) -> None:
        url = str(client.base_url).removesuffix("/v1/")
        body = {"text": 'Ok. [TOOL_CALLS][{"name": "clock", "arguments": {}}]', "tools": [CLOCK], "tool_call_parser": "mistral"}
        assert httpx.post(f"{url}/parse_function_call", timeout=PATIENCE, json=body).json() == {
            "normal_text": "Ok.",
            "calls": [{"tool_index": 0, "name": "clock", "parameters": "{}"}],
        }
        wrong = httpx.post(f"{url}/parse_function_call", timeout=PATIENCE, json=body | {"tool_call_parser": "x"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tool_call_parser")

    def test_reasoning(self, client: openai.OpenAI) -> None:
        url = str(client.base_url).removesuffix("/v1/")
        body = {"text": "hm</think>\nYes.", "reasoning_parser": "deepseek-r1"}
        assert httpx.post(f"{url}/separate_reasoning", timeout=PATIENCE, json=body).json() == {"reasoning_text": "hm", "text": "Yes."}
