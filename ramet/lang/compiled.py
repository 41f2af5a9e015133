"""Compiled programs in this process: the interpreter of the IR on any backend, with results and errors like those of the body itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramet.compiler.driver import CompiledProgram
from ramet.ir.module import Module
from ramet.ir.types import Location
from ramet.lang.host_calls import ClientHost
from ramet.lang.track import Track
from ramet.program.backend import Conversation
from ramet.program.budget import Budget
from ramet.program.failure import ProgramFailed
from ramet.program.interpreter import run_program
from ramet.program.timeline import Timeline

UNLIMITED = Budget(steps=1 << 62, tokens=1 << 62, forks=1 << 31, nesting=256, seconds=1e9, bytes=1 << 62, generations=1 << 62)
"""What runs in the user's own process is bounded by the user's own `timeout` only."""


@dataclass(frozen=True, slots=True)
class InProcess:
    """A strategy. `arguments`: one plain value per parameter."""

    compiled: CompiledProgram
    arguments: dict[str, Any]

    async def execute(self, program: Any, root: Track) -> Any:
        run = root.run
        host = ClientHost(self.compiled, run.backend)
        run.timeline = Timeline(prompts=[] if run.traced else None)
        run.start_clock()
        await run.know_chat()
        try:
            result = await run_program(
                self.compiled.module,
                self.arguments,
                run.backend,
                host=host,
                sampling=run.sampling,
                logprobs=run.logprobs,
                budget=UNLIMITED,
                timeline=run.timeline,
                watch=Mirror(root, host) if run.live else None,
                run_id=run.run_id,
            )
        except ProgramFailed as error:
            raise original(self.compiled.module, error) from None
        state = result.state
        adopt(root, state.conversation, {name: host.objects.reveal(value) for name, value in state.variables.items()}, state.meta)
        return host.objects.reveal(result.value)


class Mirror:
    """Shows the conversation of a run that goes on elsewhere in a track of this process."""

    def __init__(self, track: Track, host: ClientHost) -> None:
        self.said, self.saying = track.said, track.saying
        self._track, self._host = track, host

    def wrote(self, name: str, value: Any, meta: Mapping[str, Any] | None) -> None:
        self._track.record(name, self._host.objects.reveal(value), meta)


def adopt(track: Track, conversation: Conversation, variables: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Make the end of a compiled run the end of the conversation that its result shows."""
    track.conversation, track.partial = conversation, ""
    for name, value in variables.items():
        track.record(name, value, meta.get(name))


def original(module: Module, error: ProgramFailed) -> BaseException:
    """What the program raised, with its line as a note; as an interpreted body would have raised it."""
    cause = error.__cause__ or error
    if cause is not error:
        cause.add_note(place(module, error.location))
    return cause


def place(module: Module, location: Location) -> str:
    """Where in the user's code, with a caret."""
    if not location.line or location.source >= len(module.sources):
        return "  in the program"
    source = module.sources[location.source]
    text = source.line(location.line)
    indent = len(text) - len(text.lstrip())
    caret = " " * (location.col - indent) + "^" * max(1, min(location.end_col, len(text)) - location.col)
    return f'  in the program: File "{source.file}", line {location.line}\n    {text.strip()}\n    {caret}'
