"""What every module must satisfy, before and after each pass and again when a server receives it.

VerificationError
├── StructureError   blocks, jumps, parameters, names, shapes
├── DominanceError   a value is used where it need not have been computed
├── TypeMismatch     a value cannot be what the op needs
├── LinearityError   a conversation is continued twice
└── ForkBoundError   a fork's constant width is out of bounds
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ramet.errors import InvalidRequest
from ramet.ir.builtins import BUILTINS
from ramet.ir.control_flow import dominator_spans, dominators, reachable, successors
from ramet.ir.module import Block, Function, Module
from ramet.ir.ops import (
    LAYOUTS,
    TERMINATORS,
    Append,
    Call,
    Const,
    Fork,
    Gen,
    HostCall,
    Inspect,
    Join,
    MakeDict,
    Op,
    Open,
    ProgramCall,
    Select,
    Take,
    consumed_by,
    name_of,
    operands_of,
    results_of,
    targets_of,
    uses_of,
)
from ramet.ir.types import Location, Type, Value, fits

MAX_FORK = 1024
MAX_WORK = 1_000_000
ROLES = ("system", "user", "assistant", "tool")
INSPECTIONS = ("text", "messages", "meta", "has", "mark", "since", "size")
METHODS = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")
JOINS = ("gather_variable", "concate_and_append")


class VerificationError(InvalidRequest):
    code = "invalid_program"


class StructureError(VerificationError):
    pass


class DominanceError(VerificationError):
    pass


class TypeMismatch(VerificationError):
    pass


class LinearityError(VerificationError):
    pass


class ForkBoundError(VerificationError):
    pass


def verify(module: Module) -> None:
    """Raises the first violation found; says nothing if there is none."""
    names = Counter(function.name for function in module.functions)
    if not module.functions or max(names.values()) > 1:
        raise StructureError("a module has one or more functions, each with its own name")
    functions = {function.name: function for function in module.functions}
    for function in module.functions:
        _FunctionVerifier(module, functions, function).run()


class _FunctionVerifier:
    def __init__(self, module: Module, functions: Mapping[str, Function], function: Function) -> None:
        self._module = module
        self._functions = functions
        self._function = function
        self._blocks: dict[int, Block] = {block.id: block for block in function.blocks}
        self._constants: dict[int, object] = {}
        self._reached: dict[tuple[int, int], set[int]] = {}
        self._work = 0

    def run(self) -> None:
        self._structure()
        defined = self._definitions()
        self._dominance(defined)
        for op in self._function.ops():
            self._roles(op)
            self._shape(op)
        self._linearity(defined)

    def _fail(self, error: type[VerificationError], what: str, op: Op | None = None) -> VerificationError:
        where = f"\n{self._module.show(op.loc)}" if op is not None and op.loc != Location() else ""
        return error(f"function {self._function.name}: {f'{name_of(op)}: ' if op else ''}{what}{where}")

    def _structure(self) -> None:
        function = self._function
        if not function.blocks or len(self._blocks) != len(function.blocks):
            raise self._fail(StructureError, "needs blocks with different ids")
        if len(function.entry.args) != len(function.params) + 1 or function.entry.args[0].type is not Type.STATE:
            raise self._fail(StructureError, "the entry takes the state and one argument per parameter")
        for block in function.blocks:
            if not block.ops or not isinstance(block.ops[-1], TERMINATORS) or any(isinstance(op, TERMINATORS) for op in block.ops[:-1]):
                raise self._fail(StructureError, f"block ^{block.id} must end with its only br, cond_br or return")
            for target in targets_of(block.terminator):
                self._jump(block, target.block, [value.type for value in target.args])

    def _jump(self, block: Block, to: int, types: list[Type]) -> None:
        if to not in self._blocks or to == self._function.entry.id:
            raise self._fail(StructureError, f"^{to} is no block to jump to", block.terminator)
        want = [value.type for value in self._blocks[to].args]
        if len(want) != len(types):
            raise self._fail(StructureError, f"^{to} takes {len(want)} arguments, {len(types)} are given", block.terminator)
        if not all(map(fits, types, want)):
            raise self._fail(TypeMismatch, f"^{to} takes ({', '.join(want)}), not ({', '.join(types)})", block.terminator)

    def _definitions(self) -> dict[int, tuple[Value, int, int]]:
        """Value id → (value, block, position in it; -1 for block arguments)."""
        found: dict[int, tuple[Value, int, int]] = {}
        for block in self._function.blocks:
            made = [(value, -1) for value in block.args]
            made += [(value, position) for position, op in enumerate(block.ops) for value in results_of(op)]
            for value, position in made:
                if value.id in found:
                    raise self._fail(StructureError, f"%{value.id} is defined twice")
                found[value.id] = (value, block.id, position)
        self._constants = {op.out.id: op.value for op in self._function.ops() if isinstance(op, Const)}
        return found

    def _dominance(self, defined: dict[int, tuple[Value, int, int]]) -> None:
        spans = dominator_spans(dominators(self._function))
        for block in self._function.blocks:
            for position, op in enumerate(block.ops):
                for value in operands_of(op):
                    at = defined.get(value.id)
                    if at is None or at[0] != value:
                        raise self._fail(DominanceError, f"%{value.id} is not defined", op)
                    before = (
                        at[2] < position
                        if at[1] == block.id
                        else block.id in spans and at[1] in spans and spans[at[1]][0] <= spans[block.id][0] <= spans[at[1]][1]
                    )
                    if not before and block.id in spans:
                        raise self._fail(DominanceError, f"%{value.id} may not have been computed here", op)

    def _roles(self, op: Op) -> None:
        """Linear values only where the op consumes or borrows one, and only there."""
        for value, role in uses_of(op):
            if (role in ("consumes", "borrows")) != value.type.linear:
                raise self._fail(TypeMismatch, f"%{value.id} is a {value.type}, the op {role} it", op)
        wanted = _LINEAR_OPERANDS.get(type(op), {})
        for name, _ in LAYOUTS[type(op)].uses:
            held = getattr(op, name)
            if isinstance(held, Value) and held.type.linear and held.type not in wanted.get(name, (Type.STATE,)):
                raise self._fail(TypeMismatch, f"{name} is a {held.type}, expected {' or '.join(wanted.get(name, (Type.STATE,)))}", op)
        for name in LAYOUTS[type(op)].results:
            self._result(op, name, getattr(op, name).type)

    def _result(self, op: Op, name: str, have: Type) -> None:
        if isinstance(op, Append | Gen | Select) and name == "out":
            good = have is op.state.type
        elif (name == "out" and type(op).__name__ in _STATE_MAKERS) or (type(op).__name__ == "Take"):
            good = have is Type.STATE
        elif (name == "group" and isinstance(op, Fork)) or type(op).__name__ == "Put":
            good = have is Type.GROUP
        else:
            good = not have.linear
        if isinstance(op, Call) and op.function in BUILTINS:
            good = good and fits(BUILTINS[op.function].result, have)
        if not good:
            raise self._fail(TypeMismatch, f"its {name} cannot be a {have}", op)

    def _shape(self, op: Op) -> None:
        problem = _shape_problem(op, self._functions)
        if problem:
            raise self._fail(StructureError, problem, op)
        if isinstance(op, Fork) and op.count.id in self._constants:
            count = self._constants[op.count.id]
            if type(count) is not int or not 1 <= count <= MAX_FORK:
                raise self._fail(ForkBoundError, f"forks {count!r} ways; a whole number from 1 to {MAX_FORK} is needed", op)
        elif isinstance(op, Fork) and not fits(op.count.type, Type.INT):
            raise self._fail(TypeMismatch, f"forks {op.count.type} ways", op)

    def _linearity(self, defined: dict[int, tuple[Value, int, int]]) -> None:
        """On no path is a value consumed twice. A jump consumes on its own edge: the arms of a branch do not see one another."""
        nexts = successors(self._function)
        for value_id, uses in self._consumptions().items():
            home = defined[value_id][1]
            if len(uses) == 1 and uses[0].block == home:
                continue  # seen again only after it was made again
            for position, use in enumerate(uses):
                after = self._after(use, nexts, home)
                twice = any(other is not use and other.block == use.block and None in (other.to, use.to) for other in uses[position:])
                if twice or any(other.block in after for other in uses):
                    raise self._fail(LinearityError, f"%{value_id} is continued twice; only fork copies a conversation", use.op)

    def _consumptions(self) -> dict[int, list[_Consumption]]:
        found: dict[int, list[_Consumption]] = defaultdict(list)
        for block in self._function.blocks:
            for op in block.ops:
                targets = targets_of(op)
                for value in consumed_by(op) if not targets else ():
                    found[value.id].append(_Consumption(block.id, None, op))
                for target in targets:
                    linear = [value.id for value in target.args if value.type.linear]
                    if len(set(linear)) != len(linear):
                        raise self._fail(LinearityError, "one jump passes a conversation twice", op)
                    for value_id in linear:
                        found[value_id].append(_Consumption(block.id, target.block, op))
        return found

    def _after(self, use: _Consumption, nexts: dict[int, list[int]], home: int) -> set[int]:
        """Blocks that run after the consumption and still see the same value."""
        if use.to == home:
            return set()
        start = use.block if use.to is None else use.to
        if (start, home) not in self._reached:
            found = self._reached[start, home] = reachable(nexts, start, avoid=home)
            self._work += len(found) + 1
            if self._work > MAX_WORK:
                raise self._fail(StructureError, "its conversations go through too many blocks to be checked", use.op)
        return self._reached[start, home] | (set() if use.to is None else {use.to})


@dataclass(frozen=True, slots=True)
class _Consumption:
    """In a block, or (with `to`) on one of the edges out of it."""

    block: int
    to: int | None
    op: Op


_STATE_MAKERS = frozenset({"Open", "SetVar", "Fork", "Join", "ProgramCall"})
_BOTH = (Type.STATE, Type.GROUP)
_LINEAR_OPERANDS: Mapping[type[Op], dict[str, tuple[Type, ...]]] = {
    **{cls: {"state": _BOTH} for cls in LAYOUTS if cls.__name__ in ("Append", "Gen", "Select", "Inspect", "Free", "Pin", "Prefetch")},
    **{cls: {"group": (Type.GROUP,)} for cls in LAYOUTS if cls.__name__ in ("Take", "Put", "Join")},
}


def _shape_problem(op: Op, functions: Mapping[str, Function]) -> str | None:
    if isinstance(op, Append | Fork):
        return _pieces_problem(op.shape, len(op.texts))
    if isinstance(op, Gen | Select | HostCall | Call) and len(op.keys) > len(op.args):
        return "more argument names than arguments"
    if isinstance(op, Gen | Select | Open) and len(op.keys) != len(op.args):
        return "each argument needs its name"
    if isinstance(op, Call) and op.function not in BUILTINS:
        return f"there is no builtin {op.function!r}"
    if isinstance(op, ProgramCall):
        callee = functions.get(op.function)
        if callee is None or len(callee.params) != len(op.args):
            return f"there is no function {op.function!r} with {len(op.args)} parameters"
    known = {Inspect: ("what", INSPECTIONS), Select: ("method", METHODS), Join: ("mode", JOINS)}.get(type(op))
    if known and getattr(op, known[0]) not in known[1]:
        return f"{known[0]} is one of {', '.join(known[1])}, not {getattr(op, known[0])!r}"
    if isinstance(op, MakeDict) and len(op.items) % 2:
        return "a key without a value"
    if isinstance(op, Inspect | Take):
        return _inspect_problem(op)
    return None


def _pieces_problem(shape: tuple[str, ...], num_texts: int) -> str | None:
    if sum(piece == "text" for piece in shape) != num_texts:
        return "shape and texts disagree"
    for piece in shape:
        verb, _, role = piece.partition(":")
        if piece != "text" and (verb not in ("begin", "end") or role not in ROLES):
            return f"{piece!r} is no piece; use text, begin:ROLE or end:ROLE with ROLE in {', '.join(ROLES)}"
    return None


def _inspect_problem(op: Op) -> str | None:
    if isinstance(op, Inspect):
        if (op.state.type is Type.GROUP) != (op.what == "size"):
            return f"{op.what!r} cannot be asked of a {op.state.type}"
        if (op.arg is not None) != (op.what in ("meta", "has", "since")):
            return f"{op.what!r} {'needs' if op.arg is None else 'takes no'} argument"
    return None
