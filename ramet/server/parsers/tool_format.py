"""What a format of tool calls is: how to read one, and how to write one."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

from ramet.server.parsers.scan import Scan, Steps


@dataclass(frozen=True, slots=True)
class Wire:
    """The text of calls: opening, calls joined by separator, closing. A call is head, name, body, arguments, tail.

    `trigger`: with this text a model begins its calls; text in front of it is free. "": calls stand alone, from the first character.
    `argument_style`: how the arguments are written. `markers`: those of the texts which may be single special tokens.
    """

    opening: str = ""
    head: str = ""
    body: str = ""
    tail: str = ""
    separator: str = ""
    closing: str = ""
    trigger: str = ""
    markers: tuple[str, ...] = ()
    python_arguments: bool = False
    id_length: int = 29  # characters of a call's id; Mistral's templates insist on theirs

    def call(self, name: str, arguments: str) -> str:
        return self.head + name + self.body + arguments + self.tail

    def calls(self, calls: Sequence[str]) -> str:
        return self.opening + self.separator.join(calls) + self.closing


class ToolFormat(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def wire(self) -> Wire: ...

    def read(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        """Read a whole message. A call stands when its name is one of `tools` and its arguments have begun."""
        ...
