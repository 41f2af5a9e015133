"""A body of /v1/responses as the chat request that it is, and what is wrong with that in the names of the body."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ramet.errors import InvalidRequest, Unsupported, UserError
from ramet.server.error_responses import invalid_request_of
from ramet.server.openai.responses_schema import ResponsesRequest, TextFormat
from ramet.server.openai.schema import ChatRequest, Sampling

TEXT_PARTS = ("input_text", "output_text", "text")
OWN_NAMES = (
    (re.compile(r"\btools\[(\d+)\]\.function"), r"tools[\1]"),
    (re.compile(r"\btool_choice\.(function|allowed_tools)\b"), "tool_choice"),
    (re.compile(r"\bresponse_format(\.json_schema)?\b"), "text.format"),
    (re.compile(r"\bmax_(new_)?tokens\b"), "max_output_tokens"),
)
"""What chat calls it → what it is called here."""
MESSAGE = re.compile(r"messages\[\d+\](\.tool_calls\[\d+\]\.function)?")


@dataclass(slots=True)
class Conversation:
    """Messages under construction. `places`: where in the body the message or call comes from that chat would name."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, place: str, **message: Any) -> None:
        self.messages.append(message)
        self.places[f"messages[{len(self.messages) - 1}]"] = place

    def add_item(self, place: str, item: Mapping[str, Any]) -> None:
        """What the assistant did in a row, thoughts, words and calls, is one message."""
        match item:
            case {"type": "reasoning"}:
                self.add(place, role="assistant", content=None, reasoning_content=_thoughts(item))
            case {"type": "function_call", "name": str(), "arguments": str()}:
                self._add_call(place, item)
            case {"type": "function_call_output", "output": output}:
                self.add(place, role="tool", tool_call_id=item.get("call_id"), content=_content(output))
            case {"role": "tool" | "function"} | {"tool_calls": [_, *_]}:
                raise _wrong_item(place, {"type": "function_call_output" if "tool_call_id" in item else "function_call"})
            case {"role": "assistant", "content": content} if self._is_thinking():
                self.messages[-1]["content"] = _content(content)
            case {"role": role, "content": content}:
                self.add(place, role=role, content=_content(content))
            case _:
                raise _wrong_item(place, item)

    def _is_thinking(self) -> bool:
        return bool(self.messages) and "reasoning_content" in self.messages[-1] and self.messages[-1]["content"] is None

    def _add_call(self, place: str, item: Mapping[str, Any]) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.add(place, role="assistant", content=None)
        calls = self.messages[-1].setdefault("tool_calls", [])
        self.places[f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}].function"] = place
        calls.append({"id": item.get("call_id"), "type": "function", "function": {name: item[name] for name in ("name", "arguments")}})


@dataclass(frozen=True, slots=True)
class ChatForm:
    """The chat request, and where in the body its messages come from."""

    chat: ChatRequest
    places: Mapping[str, str]

    @contextmanager
    def own_names(self) -> Iterator[None]:
        """Complaints name the body's fields, not the chat request's."""
        with _renaming(self.places):
            yield


def chat_form(body: ResponsesRequest) -> ChatForm:
    conversation = Conversation()
    if body.instructions is not None:
        conversation.add("instructions", role="developer", content=body.instructions)
    if isinstance(body.input, str):
        conversation.add("input", role="user", content=body.input)
    elif not body.input:
        raise InvalidRequest("input: an empty list gives the model nothing to answer", param="input")
    else:
        for index, item in enumerate(body.input):
            conversation.add_item(f"input[{index}]", item)
    fields = body.model_dump(include={*Sampling.model_fields, "parallel_tool_calls", "chat_template_kwargs"}, exclude_unset=True) | {
        "messages": conversation.messages,
        "max_tokens": body.max_output_tokens,
        "response_format": _response_format(body.text.format) if body.text and body.text.format else None,
        "verbosity": body.text.verbosity if body.text else None,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "tools": [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in body.tools or ()] or None,
        "tool_choice": _tool_choice(body),
    }
    with _renaming(conversation.places):
        return ChatForm(_validated(fields), conversation.places)


def _validated(fields: Mapping[str, Any]) -> ChatRequest:
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid_request_of(error.errors(), ChatRequest) from None


@contextmanager
def _renaming(places: Mapping[str, str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        error.message = _renamed(error.message, places)
        error.param = error.param and _renamed(error.param, places)
        raise


def _renamed(text: str, places: Mapping[str, str]) -> str:
    text = MESSAGE.sub(lambda found: places.get(found[0], found[0]), text)
    for pattern, own in OWN_NAMES:
        text = pattern.sub(own, text)
    return text


def _content(content: Any) -> Any:
    """Parts of text under chat's name for them; chat refuses the others."""
    if not isinstance(content, list):
        return content
    return [part | {"type": "text"} if isinstance(part, dict) and part.get("type") in TEXT_PARTS else part for part in content]


def _thoughts(item: Mapping[str, Any]) -> str:
    parts: Sequence[Any] = item.get("content") or item.get("summary") or ()
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def _wrong_item(place: str, item: Mapping[str, Any]) -> UserError:
    kind = item.get("type", "message")
    if kind in ("message", "function_call", "function_call_output"):
        needs = {"message": "role and content", "function_call": "name and arguments, both texts", "function_call_output": "output"}[kind]
        return InvalidRequest(f"{place}: an item of type '{kind}' has {needs}", param=place)
    return Unsupported(f"{place}: items of type '{kind}' are nothing that this server makes or keeps; leave it out", param=place)


def _response_format(wanted: TextFormat) -> dict[str, Any]:
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    return {"type": "json_schema", "json_schema": wanted.model_dump(by_alias=True, exclude_none=True, exclude={"type"})}


def _tool_choice(body: ResponsesRequest) -> Any:
    match body.tool_choice:
        case None | "required":
            return body.tool_choice
        case "auto" | "none" as choice:
            return choice if body.tools else None
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": tools}:
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
    raise InvalidRequest(
        'tool_choice must be "none", "auto", "required", {"type": "function", "name": …} or '
        '{"type": "allowed_tools", "mode": "auto" or "required", "tools": […]}',
        param="tool_choice",
    )
