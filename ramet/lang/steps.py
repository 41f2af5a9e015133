"""What a track executes besides the user's own ops: assignments, forks and joins; and which variables each step writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ramet.lang.expressions import Gen, Image, Key, Op, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, Select, Text
from ramet.program.reasoning import REASONING_SUFFIX

if TYPE_CHECKING:
    from ramet.lang.track import Track

JoinMode = Literal["gather_variable", "concate_and_append"]


@dataclass(frozen=True, slots=True)
class Assign:
    key: Key
    value: Any


@dataclass(frozen=True, slots=True)
class Split:
    """Give each child what the parent holds at this point."""

    children: tuple[Track, ...]


@dataclass(frozen=True, slots=True)
class Join:
    children: tuple[Track, ...]
    mode: JoinMode


Step = Op | Assign | Split | Join
Instant = (Text, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, Assign, Split)
"""Steps that need no waiting."""

__all__ = ["Assign", "Gen", "Image", "Instant", "Join", "JoinMode", "Select", "Split", "Step", "keys_written"]


def keys_written(step: Step) -> tuple[Key, ...]:
    match step:
        case Gen(name=str(name), reasoning=str()):
            return (name, name + REASONING_SUFFIX)
        case Gen(name=str(name)) | Select(name=str(name)):
            return (name,)
        case ScopeEnd(key=key) | Assign(key=key):
            return (key,)
    return ()
