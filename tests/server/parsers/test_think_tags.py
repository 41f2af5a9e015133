"""Reasoning and answer told apart, the same in any chunking."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.program.reasoning import split_reasoning
from ramet.server.parsers.formats import think_tags, tool_format
from ramet.server.parsers.reply_parser import ParsedReply, ReplyParser, parse_reply

PIECES = [
    "<think>",
    "</think>",
    "<thi",
    "</",
    "think>",
    "a",
    " ",
    "\n",
    "é",
    '<tool_call>{"name":"f","arguments":{"x":1}}</tool_call>',
    "<",
]
soup = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)


def parser(name: str, thinking: bool | None = None) -> ReplyParser:
    return ReplyParser(think_tags(name), thinking, tool_format("hermes"), {"f"})


@pytest.mark.parametrize(
    ("name", "prompt", "text", "thoughts", "answer"),
    [
        ("qwen3", "", "<think>\nhm, so\n</think>\n\nYes. ", "hm, so", "Yes. "),
        ("qwen3", "", "Yes.", "", "Yes."),
        ("qwen3", "", "  Yes <think>x</think>", "", "  Yes <think>x</think>"),
        ("qwen3", "", "<think>never ended", "never ended", ""),
        ("qwen3", "<think>\n", "hm</think>Yes.", "hm", "Yes."),
        ("qwen3", "<think>\n\n</think>\n\n", "<think>Yes.", "", "<think>Yes."),
        ("qwen3", "", "<thi", "", "<thi"),
        ("deepseek-r1", "", "hm</think>\nYes.", "hm", "Yes."),
        ("deepseek-r1", "", "<think>hm</think>\nYes.", "hm", "Yes."),
        ("deepseek-r1", "", "no end </thi", "no end </thi", ""),
        ("kimi", "", "◁think▷hm◁/think▷Yes.", "hm", "Yes."),
    ],
)
def test_cases(name: str, prompt: str, text: str, thoughts: str, answer: str) -> None:
    tags = think_tags(name)
    reply = parse_reply(ReplyParser(tags, tags.state_after(prompt)), text)
    assert (reply.thoughts, reply.text) == (thoughts, answer)


@pytest.mark.parametrize("thinking", [None, True, False])
@given(soup, st.integers(0, 40))
@settings(deadline=None, max_examples=100)
def test_any_chunking(thinking: bool | None, text: str, size: int) -> None:
    step = size or 1
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    reply, stream = ParsedReply(), parser("qwen3", thinking)
    for piece in pieces:
        reply.add(stream.push(piece))
    reply.add(stream.finish())
    assert reply == parse_reply(parser("qwen3", thinking), text)


@given(soup.filter(lambda text: "tool" not in text))
@settings(deadline=None, max_examples=100)
def test_the_language_splits_the_same_way(text: str) -> None:
    for name, thinking in (("qwen3", None), ("deepseek-r1", True)):
        thoughts, answer = split_reasoning(text, name)
        reply = parse_reply(ReplyParser(think_tags(name), thinking), text)
        assert (reply.thoughts, reply.text) == (thoughts, answer)


def test_calls_are_read_in_the_answer_only() -> None:
    call = '<tool_call>{"name":"f","arguments":{}}</tool_call>'
    reply = parse_reply(parser("qwen3"), f"<think>perhaps {call}</think>\n{call}")
    assert reply.thoughts == f"perhaps {call}"
    assert [call.name for call in reply.calls] == ["f"]
    assert reply.text == ""
