"""A chat template taken apart: what opens and what closes each role's turn, found by rendering probes and proved on further ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ramet.errors import Unsupported, UserError
from ramet.program.backend import ChatFormat, Conversation, Part

Borders = dict[str, tuple[str, str]]


class Render(Protocol):
    def __call__(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str: ...


def derive_chat_format(render: Render, bos_token: str) -> ChatFormat:
    """Raises `Unsupported` when turns of user and assistant cannot be written as border + text + border, or when an open assistant
    turn is not the template's generation prompt. `system` and `tool` are in the borders where the template can do them.

    Verified: bos + Conversation.render(format) equals the template's own text on probes of up to seven turns."""
    chat = _dialogue(render, bos_token)
    _require(_agrees(render, chat, ["user"]), "its generation prompt is not what opens an assistant turn")
    _require(all(_agrees(render, chat, roles) for roles in _probes(())), "a turn is written differently at different places")
    for role, find in (("system", _system), ("tool", _tool)):
        borders = find(render, chat)
        if borders is None:
            continue
        extended = replace(chat, borders={**chat.borders, role: borders})
        if all(_agrees(render, extended, roles) for roles in _probes((role,))):
            chat = extended
    if {"system", "tool"} <= chat.borders.keys() and not all(_agrees(render, chat, roles) for roles in _probes(("system", "tool"))):
        chat = replace(chat, borders={role: pair for role, pair in chat.borders.items() if role != "tool"})
    return chat


def _dialogue(render: Render, bos_token: str) -> ChatFormat:
    """Between two texts stands what closes the first turn and opens the second. What closes a turn also stands after the last text,
    so the rest is what opens one."""
    gaps = _gaps(render, ["user", "assistant", "user"])
    ending = _gaps(render, ["user", "assistant"])
    _require(gaps is not None and ending is not None, "it refuses a plain dialogue, or changes its texts")
    assert gaps is not None and ending is not None
    close_user, close_assistant = gaps[-1], ending[-1]
    open_assistant = _without_prefix(gaps[1], close_user)
    open_user = _without_prefix(gaps[2], close_assistant)
    _require(open_assistant is not None and open_user is not None, "what closes a turn depends on what follows it")
    assert open_assistant is not None and open_user is not None
    _require(gaps[0].endswith(open_user), "the first user turn opens differently from later ones")
    head = gaps[0][: len(gaps[0]) - len(open_user)]
    turn_begins_with_bos = bool(bos_token) and bos_token in open_user  # SmolLM2: <|im_start|> is both
    bos = bos_token if head.startswith(bos_token) and not turn_begins_with_bos else ""
    return ChatFormat({"user": (open_user, close_user), "assistant": (open_assistant, close_assistant)}, bos, head[len(bos) :])


def _system(render: Render, chat: ChatFormat) -> tuple[str, str] | None:
    gaps = _gaps(render, ["system", "user"])
    open_user = chat.borders["user"][0]
    if gaps is None or not gaps[0].startswith(chat.bos) or not gaps[1].endswith(open_user):
        return None
    return gaps[0][len(chat.bos) :], gaps[1][: len(gaps[1]) - len(open_user)]


def _tool(render: Render, chat: ChatFormat) -> tuple[str, str] | None:
    gaps = _gaps(render, ["user", "assistant", "tool", "assistant"])
    open_assistant, close_assistant = chat.borders["assistant"]
    opening = None if gaps is None else _without_prefix(gaps[2], close_assistant)
    if gaps is None or opening is None or not gaps[3].endswith(open_assistant):
        return None
    return opening, gaps[3][: len(gaps[3]) - len(open_assistant)]


def _probes(extra: tuple[str, ...]) -> list[list[str]]:
    """Conversations that end where a generation begins."""
    dialogue = ["user", "assistant"]
    probes = [["user"], [*dialogue, "user"], [*dialogue * 3, "user"]]
    if "tool" in extra:
        probes = [[*dialogue, "tool"], [*dialogue, "tool", *dialogue[::-1]], [*dialogue, "tool", "assistant", "user"]]
        probes = [probe if probe[-1] != "assistant" else [*probe, "user"] for probe in probes]
    return [["system", *probe] for probe in probes] if "system" in extra else probes


def _agrees(render: Render, chat: ChatFormat, roles: Sequence[str]) -> bool:
    messages = _messages(roles)
    conversation = Conversation()
    for message in messages:
        for part in (Part("begin", message["role"]), Part("text", message["content"]), Part("end", message["role"])):
            conversation = conversation.append(part)
    ours = chat.bos + conversation.append(Part("begin", "assistant")).render(chat)
    try:
        return ours == render(messages, add_generation_prompt=True)
    except UserError:
        return False


def _messages(roles: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": f"Probe{index}Text"} for index, role in enumerate(roles)]


def _gaps(render: Render, roles: Sequence[str]) -> list[str] | None:
    """What the template writes before, between and after the texts of these turns; None when it refuses them or changes the texts."""
    messages = _messages(roles)
    try:
        rest = render(messages, add_generation_prompt=False)
    except UserError:
        return None
    gaps: list[str] = []
    for message in messages:
        gap, found, rest = rest.partition(message["content"])
        if not found:
            return None
        gaps.append(gap)
    return [*gaps, rest]


def _without_prefix(text: str, prefix: str) -> str | None:
    return text[len(prefix) :] if text.startswith(prefix) else None


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Unsupported(f"the model's chat template cannot be taken apart into turns: {what}; send whole messages instead")
