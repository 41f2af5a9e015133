"""The run-time value of an IR `state`: a conversation and what the program knows about it. Immutable, so a fork is a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from ramet.errors import InvalidRequest
from ramet.program.backend import Conversation, Part, Role


@dataclass(frozen=True, slots=True)
class ConversationState:
    """`written` are the variables set since this conversation began or was forked, in order; `sampling` and `logprobs` the defaults of
    its generations."""

    conversation: Conversation = field(default_factory=Conversation)
    variables: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    forked_at: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Mapping[str, Any] = field(default_factory=dict)
    watched: bool = False  # the run's own conversation, which somebody follows

    def with_pieces(self, shape: Sequence[str], texts: Sequence[Any]) -> ConversationState:
        pending = iter(texts)
        parts = list(self.conversation.parts)
        role = self.conversation.open_role
        for piece in shape:
            if piece == "text":
                parts += _text_parts(next(pending))
                continue
            border, _, name = piece.partition(":")
            role = _turn(border, name, role)
            parts.append(Part(cast(Literal["begin", "end"], border), name))
        return replace(self, conversation=Conversation(tuple(parts)))

    def with_text(self, text: str) -> ConversationState:
        return replace(self, conversation=self.conversation.append(Part("text", text)))

    def with_variable(self, name: str, value: Any, meta: Mapping[str, Any] | None = None) -> ConversationState:
        metas = self.meta if meta is None else {**self.meta, name: meta}
        written = self.written if name in self.written else (*self.written, name)
        return replace(self, variables={**self.variables, name: value}, meta=metas, written=written)

    def branch(self) -> ConversationState:
        return replace(self, written=(), forked_at=len(self.conversation.parts), watched=False)

    def joined(self, members: Sequence[ConversationState], mode: str) -> ConversationState:
        if mode == "concate_and_append":
            parts = [part for member in members for part in member.conversation.parts[member.forked_at :]]
            return replace(self, conversation=Conversation((*self.conversation.parts, *parts)))
        result = self
        for name in dict.fromkeys(name for member in members for name in member.written):
            result = result.with_variable(name, [member.variables[name] if name in member.written else None for member in members])
        return result

    def variable(self, name: Any) -> Any:
        if name not in self.variables:
            raise KeyError(f"{name!r} is no variable of this conversation; it has: {', '.join(self.variables) or 'none'}")
        return self.variables[name]


def _text_parts(text: Any) -> list[Part]:
    if not isinstance(text, str):
        raise InvalidRequest(
            f"only text and sgl expressions can be appended, not {type(text).__name__} ({text!r:.60}); convert it with str()"
        )
    return [Part("text", text)] if text else []


def _turn(border: str, name: str, open_role: Role | str | None) -> str | None:
    if border == "begin":
        if open_role is not None:
            raise InvalidRequest(f"the {name}'s turn cannot begin inside the {open_role}'s, which is open; end that first")
        return name
    if open_role != name:
        raise InvalidRequest(f"the {name}'s turn ends here, but the open turn is {open_role or 'none'}")
    return None
