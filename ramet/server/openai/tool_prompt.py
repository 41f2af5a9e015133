"""Tools, calls and results as messages, for templates that do not write them by themselves.

A template that ignores `tools` would leave the model without any idea of them. Then the tools are described in the system message, with
the format that the parser reads; calls of earlier turns are written in that format, and results as a user's message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ramet.errors import InvalidRequest, Unsupported
from ramet.server.openai.chat_dialect import ChatDialect
from ramet.server.parsers.pythonic import python_arguments
from ramet.server.parsers.tool_format import Wire

Message = dict[str, Any]

PREAMBLE = """You can call functions. These are their signatures, as JSON schemas:
{tools}

To call a function, write exactly this, with the function's name and its arguments, and nothing after it:
{example}
The result then comes in the next message."""
RESULT = "<tool_response>\n{}\n</tool_response>"


def described(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], dialect: ChatDialect) -> list[Message]:
    """The messages as the template can write them; `tools` are those that the template would ignore."""
    written = [_plain(message, index, dialect) for index, message in enumerate(messages)]
    if not dialect.knows_results:
        written = _with_results_as_turns(written)
    if tools and not dialect.knows_tools and dialect.tools is not None:
        written = _with_preamble(written, preamble(tools, dialect.tools.wire))
    return written


def preamble(tools: Sequence[Mapping[str, Any]], wire: Wire) -> str:
    signatures = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    arguments = "argument=value" if wire.python_arguments else '{"argument": value}'
    return PREAMBLE.format(tools=signatures, example=wire.calls([wire.call("function_name", arguments)]))


def calls_text(calls: Sequence[Mapping[str, Any]], wire: Wire, place: str) -> str:
    """Calls of an earlier turn, as the model wrote them."""
    return wire.calls([_call_text(call, wire, f"{place}[{index}].function") for index, call in enumerate(calls)])


def _call_text(call: Mapping[str, Any], wire: Wire, place: str) -> str:
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    try:
        return wire.call(function["name"], python_arguments(text) if wire.python_arguments else text)
    except ValueError as error:
        raise InvalidRequest(f"{place}.arguments is not the JSON text of an object", param=f"{place}.arguments") from error


def _plain(message: Message, index: int, dialect: ChatDialect) -> Message:
    calls = message.get("tool_calls")
    if not calls or dialect.knows_calls:
        return message
    place = f"messages[{index}].tool_calls"
    if dialect.tools is None:
        raise Unsupported(f"{place}: the model's chat template cannot write tool calls; start with --tool-call-parser", param=place)
    text = calls_text(calls, dialect.tools.wire, place)
    content = f"{message['content']}\n{text}" if message.get("content") else text
    return {name: value for name, value in message.items() if name != "tool_calls"} | {"content": content}


def _with_results_as_turns(messages: Sequence[Message]) -> list[Message]:
    """Results of one turn's calls together are one message of the user."""
    turns: list[Message] = []
    was_result = False
    for message in messages:
        is_result = message["role"] in ("tool", "function")
        content = RESULT.format(message.get("content", "")) if is_result else ""
        if is_result and was_result:
            turns[-1] = {"role": "user", "content": turns[-1]["content"] + "\n" + content}
        else:
            turns.append({"role": "user", "content": content} if is_result else message)
        was_result = is_result
    return turns


def _with_preamble(messages: Sequence[Message], text: str) -> list[Message]:
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return [first | {"content": f"{first['content']}\n\n{text}"}, *messages[1:]]
