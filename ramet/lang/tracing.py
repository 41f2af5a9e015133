"""A dry run that the user asked for: the body with placeholders for arguments, up to the first thing that is not constant."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.lang.run import Run
from ramet.lang.runner import Runner
from ramet.lang.strategy import Interpreted, Program
from ramet.program.backend import PLAIN_FORMAT, ChatFormat, ChoiceScore, Conversation, GenerateCall, GenerateChunk


class TraceEnd(BaseException):
    """Leaves the body where it stops being constant. A BaseException, so that the program's own handlers do not swallow it."""


class _Unknown(Exception):
    """A generation: its text is not known in a trace."""


@dataclass(frozen=True, slots=True)
class Trace:
    """`conversation` is the constant beginning; `calls` the first generation, if the body got there."""

    conversation: Conversation
    calls: tuple[GenerateCall, ...]

    def text(self, chat: ChatFormat = PLAIN_FORMAT) -> str:
        return self.conversation.render(chat)


def trace_program(function: Callable[..., Any], ambient: bool, known: Mapping[str, Any], missing: Sequence[str]) -> Trace:
    arguments = {**known, **{name: Placeholder() for name in missing}}
    own = Runner()
    try:
        return own.submit(_trace(Program(function, ambient, (), arguments))).result()
    finally:
        own.stop()


async def _trace(program: Program) -> Trace:
    backend = _Recorder()
    root = Run(backend).open_track()
    try:
        await Interpreted().execute(program, root)
        await root.idle()
    except (TraceEnd, _Unknown):
        await root.idle()
    await root.run.cancel()
    return Trace(root.conversation, tuple(backend.calls))


@dataclass(slots=True)
class _Recorder:
    """A backend on which nothing is ever generated."""

    calls: list[GenerateCall] = field(default_factory=list)

    async def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        self.calls.append(call)
        raise _Unknown
        yield GenerateChunk("")

    async def score(
        self, conversation: Conversation, choices: Sequence[str], *, unconditional: bool = False, run_id: str = ""
    ) -> list[ChoiceScore]:
        raise _Unknown

    async def prefill(self, conversation: Conversation) -> None:
        pass

    async def chat_format(self) -> ChatFormat:
        return PLAIN_FORMAT

    async def flush_cache(self) -> None:
        pass

    async def server_info(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        pass


def _stop(*_: Any, **__: Any) -> Any:
    raise TraceEnd


_OPERATIONS = (
    *("str", "repr", "format", "bool", "int", "float", "index", "len", "iter", "next", "contains", "getitem", "getattr", "call", "hash"),
    *("eq", "ne", "lt", "le", "gt", "ge", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "mod", "rmod", "enter", "await"),
)
Placeholder = type("Placeholder", (), {f"__{name}__": _stop for name in _OPERATIONS})
"""An argument whose value is not known: whatever looks at it ends the trace."""
