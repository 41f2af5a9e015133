"""The seam between programs and whatever generates text: a Ramet server, an in-process engine, an OpenAI-type endpoint, a script.

Everything is async and cancellable: cancelling the awaiting task aborts the generation at the engine. A prompt is a
`Conversation`; a backend that owns a tokenizer renders it with the model's own chat template (`ChatFormat`), a chat
endpoint sends its messages. Prompts are always tokenised as one text, so that a program means the same on every path.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ramet.errors import Unsupported

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A model's chat template as pieces of text: `borders[role]` = (what opens a turn, what closes it). `default_system` is the whole
    turn that the template inserts when the first turn is not a system turn ("" if none)."""

    borders: Mapping[str, tuple[str, str]]
    bos: str = ""
    default_system: str = ""


PLAIN_FORMAT = ChatFormat({role: (f"{role.upper()}:", "\n") for role in ("system", "user", "assistant", "tool")})
"""How a transcript reads where the backend has no text form of its chat template."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as a model reads it. `add_special_tokens`: whether the tokenizer puts its own special tokens (a BOS) around the
    text: yes for plain text, no for turns, whose text begins with the BOS that the chat template writes."""

    text: str
    add_special_tokens: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a conversation: literal text, or the border of a role's turn."""

    kind: Literal["text", "begin", "end"]
    value: str  # the text, or the role


@dataclass(frozen=True, slots=True)
class Conversation:
    """An immutable token stream in the making; appending returns a new one, so a fork is a copy of a reference."""

    parts: tuple[Part, ...] = ()

    def append(self, part: Part) -> Conversation:
        return Conversation((*self.parts, part))

    @property
    def open_role(self) -> str | None:
        """The role whose turn has begun and not ended."""
        for part in reversed(self.parts):
            if part.kind != "text":
                return part.value if part.kind == "begin" else None
        return None

    def messages(self) -> list[dict[str, str]]:
        """OpenAI-style messages; text outside any role is left out. An open turn is the last message."""
        found: list[dict[str, str]] = []
        inside = False
        for part in self.parts:
            if part.kind == "begin":
                found.append({"role": part.value, "content": ""})
            elif part.kind == "text" and inside:
                found[-1]["content"] += part.value
            inside = part.kind == "begin" or (inside and part.kind == "text")
        return found

    @property
    def has_turns(self) -> bool:
        return any(part.kind != "text" for part in self.parts)

    def prompt(self, chat: ChatFormat) -> Prompt:
        """What a model is asked to continue; here, and only here, the BOS is written."""
        if self.has_turns:
            return Prompt(chat.bos + self.render(chat), add_special_tokens=False)
        return Prompt(self.render(chat), add_special_tokens=True)

    def render(self, chat: ChatFormat) -> str:
        """The transcript in the model's own format, without BOS. Raises `Unsupported` for a role that the template has no turns of."""
        pieces: list[str] = []
        roles = [part.value for part in self.parts if part.kind == "begin"]
        pending_default = bool(roles) and roles[0] != "system"
        for part in self.parts:
            if part.kind == "text":
                pieces.append(part.value)
                continue
            if pending_default:
                pieces.append(chat.default_system)
                pending_default = False
            pieces.append(_borders(chat, part.value)[0 if part.kind == "begin" else 1])
        return "".join(pieces)


def _borders(chat: ChatFormat, role: str) -> tuple[str, str]:
    if role not in chat.borders:
        known = ", ".join(sorted(chat.borders)) or "none"
        raise Unsupported(f"the model's chat template has no {role} turns; it knows: {known}", param=role)
    return chat.borders[role]


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One generation that a program asks for. `sampling` uses the server's names (native API §2); absent names mean the default."""

    conversation: Conversation
    sampling: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Mapping[str, Any] = field(default_factory=dict)  # return_logprob, logprob_start_len, top_logprobs_num …
    run_id: str = ""  # generations of one program run carry one id
    hints: Mapping[str, int] = field(default_factory=dict)  # what the compiler knows: max_tokens, path (generations still to come), group
    stream: bool = True  # False: nobody watches, one chunk with the whole text will do


@dataclass(frozen=True, slots=True)
class GenerateChunk:
    """`text` is new text. `meta_info` is the server's, complete on the last chunk (its finish_reason is then set)."""

    text: str
    meta_info: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = False


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """Log-probabilities of one choice's own tokens after the prompt, boundary token healed; `unconditional` the same tokens without
    the prompt, when asked for."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    unconditional: tuple[float, ...] = ()


class Backend(Protocol):
    def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        """Stream one generation. Raises `ramet.errors` types. Closing the iterator aborts it."""
        ...

    async def score(
        self, conversation: Conversation, choices: Sequence[str], *, unconditional: bool = False, run_id: str = ""
    ) -> list[ChoiceScore]:
        """Score all choices as continuations, in one batched pass. `run_id` as in `GenerateCall`."""
        ...

    async def prefill(self, conversation: Conversation) -> None:
        """Bring the prompt into the prefix cache (a hint; may do nothing)."""
        ...

    async def chat_format(self) -> ChatFormat: ...

    async def flush_cache(self) -> None: ...

    async def server_info(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...
