"""What the arguments of a gen ask of the server, and how its text becomes the variable's value."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ramet.errors import InvalidRequest
from ramet.ir.host_object import HostObject
from ramet.program.reasoning import check_model_type

INT_REGEX = r"[-+]?[0-9]+[ \n]?"
FLOAT_REGEX = r"[-+]?[0-9]+(\.[0-9]+)?[ \n]?"
BOOL_REGEX = r"(True|False)"
STR_REGEX = r'"([^"\\\x00-\x1f]|\\["\\/bfnrt])*"'
LOGPROB_NAMES = frozenset({"return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs", "token_ids_logprob"})
SERVER_NAMES: Mapping[str, str] = MappingProxyType({"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"})
MAX_COPIES = 128
CONSTRAINTS = ("dtype", "json_schema", "tools", "regex", "ebnf")


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """`sampling` and `logprobs` carry the server's names; `parse` raises ValueError for a text that is no complete value. `reasoning`
    names the markers of thoughts that are to be split off."""

    sampling: Mapping[str, Any]
    logprobs: Mapping[str, Any]
    parse: Callable[[str], Any]
    reasoning: str | None = None


def answer_shape(arguments: Mapping[str, Any]) -> AnswerShape:
    """From a gen's arguments, None meaning absent."""
    given = {name: value for name, value in arguments.items() if value is not None}
    model = given.pop("model", None)
    given.pop("reasoning", None)
    reasoning = check_model_type(arguments["reasoning"]) if "reasoning" in arguments else None
    constraints = [name for name in CONSTRAINTS if name in given]
    if len(constraints) > 1:
        raise InvalidRequest(f"gen() takes one constraint, got {' and '.join(constraints)}; keep one", param=constraints[1])
    constrained, parse = _constrained(constraints[0], given[constraints[0]]) if constraints else ({}, _plain)
    if model is not None:
        parse = _instance_of(str(model))
    sampling = {
        SERVER_NAMES.get(name, name): value for name, value in given.items() if name not in LOGPROB_NAMES and name not in CONSTRAINTS
    }
    logprobs = {name: value for name, value in given.items() if name in LOGPROB_NAMES}
    return AnswerShape({**constrained, **sampling}, logprobs, parse, reasoning)


def _constrained(name: str, value: Any) -> tuple[dict[str, Any], Callable[[str], Any]]:
    if name == "dtype":
        return dtype_shape(value)
    if name == "tools":
        return {"json_schema": json.dumps(tool_call_schema(value))}, json.loads
    if name == "json_schema" and not isinstance(value, str):
        if not isinstance(value, Mapping):
            raise InvalidRequest(f"json_schema is a dict or a JSON string, not {value!r:.80}", param="json_schema")
        return {"json_schema": json.dumps(value)}, json.loads
    return {name: source_text(name, value)}, _plain


def source_text(name: str, value: Any) -> str:
    """The source of a constraint that is written as text."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is text, not {value!r:.80}", param=name)
    return value


def dtype_shape(name: Any) -> tuple[dict[str, Any], Callable[[str], Any]]:
    stop = [" ", "\n"]
    known: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
        "int": ({"regex": INT_REGEX, "stop": stop}, int),
        "float": ({"regex": FLOAT_REGEX, "stop": stop}, float),
        "bool": ({"regex": BOOL_REGEX}, _parse_bool),
        "str": ({"regex": STR_REGEX}, _parse_text),
    }
    if name not in known:
        raise InvalidRequest(f"dtype is int, float, bool or str, not {name}; for anything else use json_schema", param="dtype")
    return known[name]


def _instance_of(model: str) -> Callable[[str], Any]:
    """An instance of the client's class, which only the client can make; that the text is whole is known here."""

    def parse(text: str) -> HostObject:
        json.loads(text)
        return HostObject(-1, model, text)

    return parse


def _plain(text: str) -> str:
    return text


def _parse_bool(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"{text!r} is neither True nor False")
    return text == "True"


def _parse_text(text: str) -> str:
    value = json.loads(text)
    if not isinstance(value, str):
        raise ValueError(f"{text!r} is not a quoted string")
    return value


def num_copies(n: Any) -> int:
    """How many answers a gen asks for; None is one."""
    if n is None:
        return 1
    if type(n) is not int or not 1 <= n <= MAX_COPIES:
        raise InvalidRequest(f"n is a whole number from 1 to {MAX_COPIES}, not {n!r:.40}", param="n")
    return n


def tool_call_schema(tools: Any) -> dict[str, Any]:
    """The JSON schema of one call of one of the tools: {"name": …, "arguments": …}."""
    calls = [one_call_schema(tool) for tool in tools] if isinstance(tools, list | tuple) else []
    if not calls:
        raise InvalidRequest("tools is a list with at least one tool", param="tools")
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def one_call_schema(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise InvalidRequest(f"a tool is {{'name': …, 'parameters': JSON schema}}, got {tool!r:.80}", param="tools")
    parameters = function.get("parameters", {"type": "object", "properties": {}, "additionalProperties": False})
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
