"""What the verbs build: an `Expr` is a list of ops, and `+` joins lists. A state executes the ops in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ramet.errors import InvalidRequest
from ramet.program.backend import Role
from ramet.program.selection import ChoicesMethod

Key = str | int
"""A variable: a user's name, or a number for what only the language itself refers to."""


@dataclass(frozen=True, slots=True)
class Text:
    value: str


@dataclass(frozen=True, slots=True)
class RoleBegin:
    role: Role


@dataclass(frozen=True, slots=True)
class RoleEnd:
    role: Role


@dataclass(frozen=True, slots=True)
class ScopeBegin:
    """From here to the matching end the text produced is kept as variable `key`."""

    key: Key


@dataclass(frozen=True, slots=True)
class ScopeEnd:
    key: Key


def plain_text(text: str) -> Any:
    return text


@dataclass(frozen=True, slots=True)
class Gen:
    """`sampling` and `logprobs` hold the server's names. `parse` makes the variable's value of the text. `reasoning` are the markers
    around thoughts that are split off (`separate_reasoning`)."""

    name: str | None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Mapping[str, Any] = field(default_factory=dict)
    parse: Callable[[str], Any] = plain_text
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Select:
    name: str | None
    choices: tuple[str, ...]
    temperature: float
    method: ChoicesMethod
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """Reaches the backend's refusal: no text backend takes images."""

    source: str


Op = Text | RoleBegin | RoleEnd | ScopeBegin | ScopeEnd | Gen | Select | Image


class Expr:
    """An immutable list of ops. Text joins from either side: `"a" + gen("x") + "b"`."""

    __slots__ = ("ops",)

    def __init__(self, ops: tuple[Op, ...]) -> None:
        self.ops = ops

    def __add__(self, other: object) -> Expr:
        return Expr((*self.ops, *as_expr(other).ops))

    def __radd__(self, other: object) -> Expr:
        return Expr((*as_expr(other).ops, *self.ops))

    def __repr__(self) -> str:
        return f"Expr({', '.join(map(repr, self.ops))})"

    def __bool__(self) -> bool:
        raise InvalidRequest("a generation has no value before it is appended: append it (`s += …`) and read its variable (`s['name']`)")

    def __format__(self, spec: str) -> str:
        raise InvalidRequest("a generation cannot be formatted into a string; join with `+`: 'Answer: ' + sgl.gen('answer')")

    __str__ = __repr__


def as_expr(value: object) -> Expr:
    """Text and expressions; anything else is refused rather than turned into its repr."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        return Expr((Text(value),)) if value else Expr(())
    ops = getattr(value, "as_expr", None)
    if ops is not None:
        found = ops()
        assert isinstance(found, Expr)
        return found
    raise InvalidRequest(
        f"only text and sgl expressions can be appended, not {type(value).__name__} ({value!r:.60}); convert it with str()"
    )
