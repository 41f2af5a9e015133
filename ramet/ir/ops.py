"""The closed set of operations. One class each; what a field means to the IR is in its metadata, and the printer, the parser, the
wire codec, the verifier and every pass read it from there, so that a new op is one class in this file.

Field roles: `consumes` (takes a linear value), `borrows` (looks at one), `operand`, `operands` (a tuple), `optional`, `result`,
`target` (a successor block with its arguments), and plain attributes, which are JSON.
"""

# ruff: noqa: RUF009 - `_role` only builds dataclass fields

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from ramet.ir.types import Location, Type, Value


def _role(role: str, **options: Any) -> Any:
    return field(metadata={"role": role}, **options)


@dataclass(frozen=True, slots=True)
class Target:
    """A jump: the block, and the values that become its arguments."""

    block: int
    args: tuple[Value, ...] = ()


_NOWHERE = Location()


@dataclass(frozen=True, slots=True, kw_only=True)
class Const:
    """A literal. Lists and dicts are fresh objects each time, as a Python literal is."""

    out: Value = _role("result")
    value: Any = None
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A new, empty conversation. `keys`/`args` are the defaults of its generations, with the server's names."""

    args: tuple[Value, ...] = _role("operands", default=())
    keys: tuple[str, ...] = ()
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """Adds pieces to a conversation, or to each of a group. `shape` names them in order: "text" (the next of `texts`), "begin:ROLE",
    "end:ROLE"."""

    state: Value = _role("consumes")
    texts: tuple[Value, ...] = _role("operands", default=())
    shape: tuple[str, ...] = ()
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Gen:
    """Generates text at the end of a conversation (or of each of a group, then `value` is a list). `keys[i]` names `args[i]`; `name`
    is the variable to set. `hints` are what the scheduler may know, written by passes."""

    state: Value = _role("consumes")
    name: Value | None = _role("optional", default=None)
    args: tuple[Value, ...] = _role("operands", default=())
    keys: tuple[str, ...] = ()
    hints: Mapping[str, int] = field(default_factory=dict)
    out: Value = _role("result")
    value: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Scores `choices` as continuations and appends the best by `method`."""

    state: Value = _role("consumes")
    choices: Value = _role("operand")
    name: Value | None = _role("optional", default=None)
    args: tuple[Value, ...] = _role("operands", default=())
    keys: tuple[str, ...] = ()
    method: str = "token_length_normalized"
    hints: Mapping[str, int] = field(default_factory=dict)
    out: Value = _role("result")
    value: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVar:
    """Reads a variable of a conversation, waiting for the generation that sets it; `deferred`: the wait moves to the first use."""

    state: Value = _role("borrows")
    name: Value = _role("operand")
    deferred: bool = False
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVar:
    """Sets a variable of a conversation."""

    state: Value = _role("consumes")
    name: Value = _role("operand")
    value: Value = _role("operand")
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """Looks at a conversation: "text", "messages", "meta" and "has" (of variable `arg`), "mark" (its length now), "since" (the text after
    mark `arg`), or at a group: "size"."""

    state: Value = _role("borrows")
    arg: Value | None = _role("optional", default=None)
    what: str = "text"
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Copies a conversation `count` times: the only op that does. `texts`/`shape` are pieces that every branch begins with; with
    `prefetch`, the shared part is prefilled once before the branches go apart."""

    state: Value = _role("consumes")
    count: Value = _role("operand")
    texts: tuple[Value, ...] = _role("operands", default=())
    shape: tuple[str, ...] = ()
    prefetch: bool = False
    out: Value = _role("result")
    group: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """The state of one branch of a group."""

    group: Value = _role("borrows")
    index: Value = _role("operand")
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """The group with one branch replaced."""

    group: Value = _role("consumes")
    index: Value = _role("operand")
    state: Value = _role("consumes")
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Ends a group: the variables that its branches set become lists in the parent ("gather_variable"), or their texts are appended
    ("concate_and_append")."""

    state: Value = _role("consumes")
    group: Value = _role("consumes")
    mode: str = "gather_variable"
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A whitelisted builtin, operator or method; `keys` names the last arguments. `deferred`: computed when its arguments are there."""

    function: str = ""
    args: tuple[Value, ...] = _role("operands", default=())
    keys: tuple[str, ...] = ()
    deferred: bool = False
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCall:
    """Runs a function of the client: the program waits, its KV stays. `keys` names the last arguments."""

    function: str = ""
    args: tuple[Value, ...] = _role("operands", default=())
    keys: tuple[str, ...] = ()
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramCall:
    """Runs another function of the module on `state`; yields the conversation it leaves and its value. `deferred`: later ops go on
    meanwhile."""

    function: str = ""
    state: Value = _role("consumes")
    args: tuple[Value, ...] = _role("operands", default=())
    deferred: bool = False
    out: Value = _role("result")
    value: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeList:
    """A new list. `deferred`: made when its items are there."""

    items: tuple[Value, ...] = _role("operands", default=())
    out: Value = _role("result")
    deferred: bool = False
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeDict:
    """A new dict from keys and values in turn. `deferred`: made when they are there."""

    items: tuple[Value, ...] = _role("operands", default=())
    out: Value = _role("result")
    deferred: bool = False
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """`object[key]`."""

    object: Value = _role("operand")
    key: Value = _role("operand")
    deferred: bool = False
    out: Value = _role("result")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Br:
    """Jumps."""

    to: Target = _role("target")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class CondBr:
    """Jumps by Python's truth of a value."""

    test: Value = _role("operand")
    then: Target = _role("target")
    otherwise: Target = _role("target")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """Ends the function: its conversation and its value."""

    state: Value = _role("consumes")
    value: Value = _role("operand")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """Brings a conversation into the prefix cache while the program does something else. Only passes insert it."""

    state: Value = _role("borrows")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Keeps a conversation's KV while the program waits for its host. Only passes insert it."""

    state: Value = _role("borrows")
    loc: Location = _NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """The last use of a conversation or group is past: its KV may go. Only passes insert it."""

    state: Value = _role("consumes")
    loc: Location = _NOWHERE


Op: TypeAlias = (
    Const
    | Open
    | Append
    | Gen
    | Select
    | GetVar
    | SetVar
    | Inspect
    | Fork
    | Take
    | Put
    | Join
    | Call
    | HostCall
    | ProgramCall
    | MakeList
    | MakeDict
    | Index
    | Br
    | CondBr
    | Return
    | Prefetch
    | Pin
    | Free
)
Terminator: TypeAlias = Br | CondBr | Return
TERMINATORS = (Br, CondBr, Return)


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


OPS: Mapping[str, type[Op]] = MappingProxyType({snake_case(cls.__name__): cls for cls in Op.__args__})
"""Textual name → class; the order is the order of the op table in docs/ir.md."""


@dataclass(frozen=True, slots=True)
class Layout:
    """An op class's fields, sorted by what they are to the IR."""

    name: str
    uses: tuple[tuple[str, str], ...]  # (field, role) of all value operands, in order
    results: tuple[str, ...]
    targets: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...]  # (field, default)


def _layout(name: str, cls: type[Op]) -> Layout:
    roles = [(each, each.metadata.get("role", "attribute")) for each in fields(cls) if each.name != "loc"]

    def named(*wanted: str) -> tuple[str, ...]:
        return tuple(each.name for each, role in roles if role in wanted)

    uses = tuple((each.name, role) for each, role in roles if role in USES)
    attributes = tuple(
        (each.name, each.default_factory() if callable(each.default_factory) else each.default)
        for each, role in roles
        if role == "attribute"
    )
    return Layout(name, uses, named("result"), named("target"), attributes)


USES = frozenset({"consumes", "borrows", "operand", "operands", "optional"})
LAYOUTS: Mapping[type[Op], Layout] = MappingProxyType({cls: _layout(name, cls) for name, cls in OPS.items()})


def name_of(op: Op) -> str:
    return LAYOUTS[type(op)].name


def uses_of(op: Op) -> Iterator[tuple[Value, str]]:
    """Each value that the op reads, with its role; arguments of jumps are consumed if they are linear."""
    layout = LAYOUTS[type(op)]
    for field_name, role in layout.uses:
        held = getattr(op, field_name)
        if role == "operands":
            yield from ((value, "operand") for value in held)
        elif held is not None:
            yield held, role
    for field_name in layout.targets:
        for value in getattr(op, field_name).args:
            yield value, "consumes" if value.type.linear else "operand"


def operands_of(op: Op) -> list[Value]:
    return [value for value, _ in uses_of(op)]


def consumed_by(op: Op) -> list[Value]:
    return [value for value, role in uses_of(op) if role == "consumes"]


def results_of(op: Op) -> list[Value]:
    return [getattr(op, field_name) for field_name in LAYOUTS[type(op)].results]


def targets_of(op: Op) -> list[Target]:
    return [getattr(op, field_name) for field_name in LAYOUTS[type(op)].targets]


def map_operands(op: Op, change: Callable[[Value], Value]) -> Op:
    """The same op with every operand, jump arguments included, replaced by `change(operand)`; `op` itself if that changes nothing."""
    layout = LAYOUTS[type(op)]
    news: dict[str, Any] = {}
    for field_name, role in layout.uses:
        held = getattr(op, field_name)
        new = tuple([change(value) for value in held]) if role == "operands" else held if held is None else change(held)
        if new != held:
            news[field_name] = new
    for field_name in layout.targets:
        held = getattr(op, field_name)
        args = tuple([change(value) for value in held.args])
        if args != held.args:
            news[field_name] = Target(held.block, args)
    return replace(op, **news) if news else op


def map_results(op: Op, change: Callable[[Value], Value]) -> Op:
    news: dict[str, Any] = {name: change(getattr(op, name)) for name in LAYOUTS[type(op)].results}
    return replace(op, **news)


def map_targets(op: Op, change: Callable[[Target], Target]) -> Op:
    names = LAYOUTS[type(op)].targets
    if not names:
        return op
    news: dict[str, Any] = {name: change(getattr(op, name)) for name in names}
    return replace(op, **news)


def result_types(op: Op) -> tuple[Type, ...]:
    return tuple(value.type for value in results_of(op))
