"""What a chat request says about tools, checked: which may be called, whether one must be, and which are exact."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from ramet.errors import InvalidRequest, Unsupported
from ramet.server.openai.chat_dialect import ChatDialect
from ramet.server.openai.schema import ChatRequest, Tool

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
ANY_OBJECT: dict[str, Any] = {"type": "object"}
Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class CallableTool:
    """One tool that may be called. `place`: where in the request its schema is; `exact`: its arguments must follow the schema."""

    name: str
    schema: dict[str, Any]
    place: str
    exact: bool


@dataclass(frozen=True, slots=True)
class ToolUse:
    mode: Mode = "none"
    tools: tuple[CallableTool, ...] = ()
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.tools)

    @property
    def is_constrained(self) -> bool:
        """Whether free text that is parsed afterwards would not be enough."""
        return self.mode == "required" or (self.mode == "auto" and (not self.parallel or any(tool.exact for tool in self.tools)))


def tool_use_of(body: ChatRequest, dialect: ChatDialect) -> ToolUse:
    """Raises `InvalidRequest` or `Unsupported` naming the field."""
    tools = body.tools or []
    _check_names(tools)
    mode, names = _choice(body)
    if mode == "none":
        return ToolUse()
    known = {tool.function.name: _callable(tool, index, mode) for index, tool in enumerate(tools)}
    for name, place in names:
        if name not in known:
            raise InvalidRequest(f"{place}: no tool is named '{name}'; tools: {', '.join(known) or 'none'}", param=place)
    allowed = tuple(known[name] for name, _ in names) if names else tuple(known.values())
    use = ToolUse(mode, allowed, body.parallel_tool_calls is not False and not _is_forced(body))
    if use.is_constrained and dialect.tools is None:
        _refuse_without_format(body, use)
    return use


def _choice(body: ChatRequest) -> tuple[Mode, list[tuple[str, str]]]:
    """(mode, the allowed tools' names and where they are named; none: all)."""
    choice = body.tool_choice
    if choice is None:
        return ("auto" if body.tools else "none"), []
    if choice in ("none", "auto", "required"):
        if choice != "none" and not body.tools:
            raise InvalidRequest(f"tool_choice: '{choice}' needs tools", param="tool_choice")
        return choice, []  # type: ignore[return-value]
    match choice:
        case {"type": "function", "function": {"name": str(name)}}:
            return "required", [(name, "tool_choice.function.name")]
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [_, *_] as allowed}}:
            return mode, [(_allowed_name(tool, index), f"tool_choice.allowed_tools.tools[{index}]") for index, tool in enumerate(allowed)]
    raise InvalidRequest(
        'tool_choice must be "none", "auto", "required", {"type": "function", "function": {"name": …}} or '
        '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": […]}}',
        param="tool_choice",
    )


def _is_forced(body: ChatRequest) -> bool:
    """A tool named by itself is called once."""
    return isinstance(body.tool_choice, dict) and body.tool_choice.get("type") == "function"


def _allowed_name(tool: Any, index: int) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return name
    place = f"tool_choice.allowed_tools.tools[{index}]"
    raise InvalidRequest(f"{place} must name a function", param=place)


def _check_names(tools: list[Tool]) -> None:
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        place = f"tools[{index}].function.name"
        if not NAME.fullmatch(tool.function.name):
            raise InvalidRequest(f"{place}: '{tool.function.name}' is not 1 to 64 letters, digits, _ - .", param=place)
        if tool.function.name in seen:
            raise InvalidRequest(f"{place}: another tool is named '{tool.function.name}'", param=place)
        seen.add(tool.function.name)


def _callable(tool: Tool, index: int, mode: Mode) -> CallableTool:
    """`strict` decides where it is given. Else a call that must be made follows its schema, and one that may be made any object."""
    place = f"tools[{index}].function.parameters"
    function = tool.function
    exact = function.strict if function.strict is not None else mode == "required"
    schema = function.parameters or ANY_OBJECT
    if exact and schema.get("type", "object") != "object":
        raise InvalidRequest(f"{place}/type: arguments are an object, not {schema['type']!r}", param=place)
    return CallableTool(function.name, schema if exact else ANY_OBJECT, place, bool(exact))


def _refuse_without_format(body: ChatRequest, use: ToolUse) -> NoReturn:
    how = "start it with --tool-call-parser (hermes, llama3, mistral, deepseekv3, pythonic)"
    what = "this server does not know how the model writes tool calls"
    if use.mode == "required":
        raise Unsupported(f"tool_choice: {what}; {how}", param="tool_choice")
    if not use.parallel:
        raise Unsupported(f"parallel_tool_calls: {what}; {how}", param="parallel_tool_calls")
    index = next(index for index, tool in enumerate(body.tools or []) if tool.function.strict)
    place = f"tools[{index}].function.strict"
    raise Unsupported(f"{place}: {what}; {how}", param=place)
