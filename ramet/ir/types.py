"""The nouns of the IR: types, values, places in the user's source."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Type(StrEnum):
    """`state` is a conversation's token stream and `group` the states that one fork made: both are linear. `json` is any plain value
    whose type is only known when the program runs."""

    STATE = "state"
    GROUP = "group"
    TEXT = "text"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    NONE = "none"
    JSON = "json"
    LIST = "list"
    DICT = "dict"

    @property
    def linear(self) -> bool:
        return self in (Type.STATE, Type.GROUP)


def fits(have: Type, want: Type) -> bool:
    """May a value of type `have` stand where `want` is asked? Only linear types are strict; a json may turn out to be anything plain."""
    if have == want:
        return True
    if have.linear or want.linear:
        return False
    return Type.JSON in (have, want) or {have, want} <= {Type.INT, Type.FLOAT, Type.BOOL}


def type_of(value: object) -> Type:
    """The static type of a constant."""
    for kind, python in _PYTHON:
        if type(value) in python:
            return kind
    return Type.JSON


_PYTHON: tuple[tuple[Type, tuple[type, ...]], ...] = (
    (Type.TEXT, (str,)),
    (Type.BOOL, (bool,)),
    (Type.INT, (int,)),
    (Type.FLOAT, (float,)),
    (Type.NONE, (type(None),)),
    (Type.LIST, (list, tuple)),
    (Type.DICT, (dict,)),
)


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A place in the user's code: index into `Module.sources`, 1-based line, 0-based columns (`end_col` exclusive)."""

    source: int = 0
    line: int = 0
    col: int = 0
    end_col: int = 0


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA value; `id` is unique in its function."""

    id: int
    type: Type
