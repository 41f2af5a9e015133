"""Tool calls of every format: exact on well-formed text, faithful on malformed text, and the same for every way of cutting it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.server.parsers.formats import tool_format
from ramet.server.parsers.reply_parser import ParsedCall, ParsedReply, ReplyParser, parse_reply
from ramet.server.parsers.scan import Arguments, CallBegin, Text

FORMATS = ("hermes", "llama3", "mistral", "deepseekv3", "pythonic")
TOOLS = frozenset({"clock", "get_weather", "a.b-c"})

scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False, width=32)
texts = st.text("ab\"\\'{}[]()<>/;,:\n\té漢😀", max_size=10) | st.sampled_from(["</tool_call>", "[TOOL_CALLS]", "```", "<tool_call>", '"}'])
values = st.recursive(scalars | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6)
names = st.from_regex(r"[a-z_]{1,6}", fullmatch=True).filter(lambda name: name not in ("if", "in", "is", "as", "or", "def", "del", "for"))
arguments = st.dictionaries(names, values, max_size=3)
calls = st.lists(st.tuples(st.sampled_from(sorted(TOOLS)), arguments), min_size=1, max_size=4)
plain = st.text("ab .,é漢\n", max_size=12)
CALLS = tool_format("deepseekv3").wire.markers
MARKERS = [
    *[
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
    ],
    *[
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
        "function",
        "\n```json\n",
        "```",
        '{"name": "',
        '"arguments": ',
        "clock",
    ],
    *[
        '{"a": 1}',
        '"',
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ",",
        ";",
        ":",
        "=",
        "'",
        "\\",
        " ",
        "\n",
        "x",
        "<",
        "get_weather(",
        "nobody",
        "null",
        "1",
    ],
]
soup = st.lists(st.sampled_from(MARKERS), max_size=14).map("".join)


def written(value: Any) -> str:
    """As a model of the pythonic format writes it."""
    return repr(value)


def call_text(name: str, tool: str, values: dict[str, Any]) -> str:
    wire = tool_format(name).wire
    if wire.python_arguments:
        return wire.call(tool, ", ".join(f"{key}={written(value)}" for key, value in values.items()))
    return wire.call(tool, json.dumps(values, ensure_ascii=False))


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def streamed(name: str, pieces: list[str]) -> ParsedReply:
    """Joined like a client joins it, and checked on the way."""
    parser, reply = ReplyParser(tool_format=tool_format(name), tools=TOOLS), ParsedReply()
    for piece in pieces:
        reply.add(parser.push(piece))
    reply.add(parser.finish())
    return reply


def whole(name: str, text: str) -> ParsedReply:
    return parse_reply(ReplyParser(tool_format=tool_format(name), tools=TOOLS), text)


def loaded(reply: ParsedReply) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in reply.calls]


@pytest.mark.parametrize("name", FORMATS)
@given(calls, plain, plain, st.lists(st.integers(0, 2**20), max_size=12))
@settings(deadline=None, max_examples=60)
def test_calls_are_found_in_any_chunking(name: str, wanted: Any, before: str, after: str, places: list[int]) -> None:
    if name == "llama3":
        before = ""  # without a tag of their own, calls are the beginning of the message
    joined = tool_format(name).wire.calls([call_text(name, tool, values) for tool, values in wanted])
    text = before + joined + after
    reply = whole(name, text)
    assert loaded(reply) == [(tool, values) for tool, values in wanted]
    assert "".join(reply.text.split()) == "".join((before + after).split())  # white space beside a call is not content
    assert streamed(name, cut(text, places)) == reply
    assert streamed(name, list(text)) == reply


@pytest.mark.parametrize("name", FORMATS)
@given(calls, st.integers(0, 2**20))
@settings(deadline=None, max_examples=40)
def test_a_reply_cut_by_length_keeps_what_is_certain(name: str, wanted: Any, place: int) -> None:
    joined = tool_format(name).wire.calls([call_text(name, tool, values) for tool, values in wanted])
    text = joined[: place % len(joined)]
    reply = whole(name, text)
    assert streamed(name, list(text)) == reply
    complete = loaded(whole(name, joined))
    for call, (tool, values) in zip(reply.calls, complete, strict=False):
        assert call.name == tool
        assert json.dumps(values, ensure_ascii=False).startswith(call.arguments)
    for call in reply.calls[:-1]:
        json.loads(call.arguments)


@pytest.mark.parametrize("name", FORMATS)
@given(soup, st.lists(st.integers(0, 2**20), max_size=12))
@settings(deadline=None, max_examples=120)
def test_noise_gives_the_same_in_any_chunking(name: str, text: str, places: list[int]) -> None:
    reply = whole(name, text)
    assert streamed(name, cut(text, places)) == reply
    assert streamed(name, list(text)) == reply
    assert all(call.name in TOOLS for call in reply.calls)
    if not reply.calls:
        assert reply.text == text


@pytest.mark.parametrize("name", FORMATS)
@given(soup)
@settings(deadline=None, max_examples=40)
def test_where_nothing_may_be_called_the_text_is_the_text(name: str, text: str) -> None:
    assert parse_reply(ReplyParser(tool_format=tool_format(name), tools=()), text) == ParsedReply(text=text)


@pytest.mark.parametrize("name", FORMATS)
def test_several_calls_in_one_piece_are_all_there(name: str) -> None:
    wanted = [("clock", {}), ("get_weather", {"city": "Bern", "days": [1, 2]}), ("clock", {"zone": None})]
    text = tool_format(name).wire.calls([call_text(name, tool, values) for tool, values in wanted])
    assert loaded(whole(name, text)) == wanted


@pytest.mark.parametrize(
    ("name", "text", "calls", "rest"),
    [
        ("hermes", 'Well.\n<tool_call>{"name":"clock","arguments":{}}</tool_call> \n', ["clock{}"], "Well."),
        ("hermes", '<tool_call>{"name":"clock","arguments":{}}\n<tool_call>{"name":"clock"}</tool_call>', ["clock{}", "clock{}"], ""),
        ("hermes", '<tool_call>{"arguments":{"z": 1},"id":7,"name":"clock"}</tool_call>', ['clock{"z": 1}'], ""),
        ("hermes", '<tool_call>{"name":"clock","arguments":"{\\"z\\": 1}"}</tool_call>', ['clock{"z": 1}'], ""),
        ("hermes", '<tool_call>{"name":"clock","arguments":null}</tool_call>', ["clock{}"], ""),
        (
            "hermes",
            '<tool_call>{"name":"clock","arguments":[1]}</tool_call>',
            [],
            '<tool_call>{"name":"clock","arguments":[1]}</tool_call>',
        ),
        (
            "hermes",
            '<tool_call>{"name":"nobody","arguments":{}}</tool_call>',
            [],
            '<tool_call>{"name":"nobody","arguments":{}}</tool_call>',
        ),
        ("hermes", '<tool_call>oops <tool_call>{"name":"clock"}</tool_call>', ["clock{}"], "<tool_call>oops"),
        ("hermes", '<tool_call>{"name":"clock","arguments":{"a":1,}}x', ['clock{"a":1,'], "}}x"),
        ("hermes", '<tool_call>{"name":"clock","arguments":{}}</tool_', ["clock{}"], ""),
        ("hermes", '<tool_call>{"name":"clo', [], '<tool_call>{"name":"clo'),
        (
            "llama3",
            '{"name":"clock","parameters":{}};{"type":"function","name":"clock","parameters":{"a":2}}',
            ["clock{}", 'clock{"a":2}'],
            "",
        ),
        ("llama3", 'I see. {"name":"clock","parameters":{}}', [], 'I see. {"name":"clock","parameters":{}}'),
        ("llama3", 'Yes <|python_tag|>{"name":"clock","parameters":{}}', ["clock{}"], "Yes"),
        ("llama3", "<|python_tag|>print(1)", [], "<|python_tag|>print(1)"),
        ("llama3", '{"name":"clock"}', [], '{"name":"clock"}'),
        ("mistral", '[TOOL_CALLS] [{"name":"clock","arguments":{},"id":"abcdefghi"}]', ["clock{}"], ""),
        ("mistral", '[TOOL_CALLS]clock{"a":1}[TOOL_CALLS]clock[CALL_ID]abc[ARGS]{}', ['clock{"a":1}', "clock{}"], ""),
        ("mistral", '[TOOL_CALLS][{"name":"clock","arguments":{}}, oops]', ["clock{}"], " oops]"),
        ("pythonic", "[clock(), get_weather(city='a)', on=true)] done", ["clock{}", 'get_weather{"city": "a)", "on": true}'], " done"),
        ("pythonic", "see [1] and [clock('x')]", [], "see [1] and [clock('x')]"),
        ("pythonic", "[clock(a=open('x'))]", [], "[clock(a=open('x'))]"),
        ("pythonic", "[clock(a={1, 2})]", [], "[clock(a={1, 2})]"),
    ],
)
def test_cases(name: str, text: str, calls: list[str], rest: str) -> None:
    reply = whole(name, text)
    assert ["".join((call.name, call.arguments)) for call in reply.calls] == calls
    assert reply.text.strip() == rest.strip()


def test_the_newer_format_of_deepseek() -> None:
    text = f'{CALLS[0]}{CALLS[2]}clock{CALLS[4]}{{}}{CALLS[3]}{CALLS[2]}get_weather{CALLS[4]}{{"city": 1}}{CALLS[3]}{CALLS[1]}'
    reply = whole("deepseekv3", text)
    assert loaded(reply) == [("clock", {}), ("get_weather", {"city": 1})] and reply.text == ""
    assert streamed("deepseekv3", list(text)) == reply
    broken = text.replace("clock", "nobody")
    assert whole("deepseekv3", broken).text == broken


def test_arguments_pass_on_while_they_come() -> None:
    parser = ReplyParser(tool_format=tool_format("hermes"), tools=TOOLS)
    assert parser.push("Hm. <tool") == [Text("Hm.")]
    assert parser.push('_call>{"name": "clock", "arg') == []
    assert parser.push('uments": {"zone": "Eu') == [CallBegin("clock"), Arguments('{"zone": "Eu')]
    assert parser.push('rope"') == [Arguments('rope"')]
    assert parser.push("}}</tool_call> Bye") == [Arguments("}"), Text(" Bye")]
    assert parser.finish() == []


def test_long_white_space_and_long_text_cost_little() -> None:
    text = " " * 50_000 + "<" * 50_000 + "x" * 200_000
    assert whole("hermes", text) == ParsedReply(text=text)
    assert whole("hermes", text + '<tool_call>{"name":"clock","arguments":{"a":"' + "y" * 50_000).calls[0].name == "clock"


def test_deep_arguments_end_where_the_reader_ends() -> None:
    text = '<tool_call>{"name":"clock","arguments":{"a":' + "[" * 100_000
    assert whole("hermes", text).calls[0] == ParsedCall("clock", '{"a":' + "[" * 127)
    assert whole("pythonic", "[clock(a=" + "[" * 100_000).calls == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", r'<tool_call>{"name":"clock","arguments":"{\"a\":\"\ud800\"}"}</tool_call>'),
        ("pythonic", r"[clock(a='\ud800')]"),
    ],
)
def test_half_a_character_is_no_argument(name: str, text: str) -> None:
    """It could not be sent."""
    assert whole(name, text) == ParsedReply(text=text)
