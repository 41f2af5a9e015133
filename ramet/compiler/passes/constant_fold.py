"""Computes at compile time what needs nothing from the run: text, arithmetic, comparisons, branches on constants."""

from __future__ import annotations

from collections.abc import Sequence

from ramet.compiler.pipeline import Notes
from ramet.compiler.rewrite import SCALAR_TYPES, Scalar, each_function, scalars, substitute
from ramet.ir.builtins import BUILTINS, LimitExceeded, evaluate
from ramet.ir.control_flow import reverse_postorder
from ramet.ir.module import Function, Module, ValueNames
from ramet.ir.ops import Br, Call, CondBr, Const, MakeList, Op
from ramet.ir.types import Type, Value, type_of

MAX_FOLDED_TEXT = 1 << 16
_KEPT = frozenset({"bound", "undefined", "check", "fail"})


def constant_fold(module: Module, notes: Notes) -> Module:
    return each_function(module, lambda function: _Folder(function, notes).fold())


class _Folder:
    def __init__(self, function: Function, notes: Notes) -> None:
        self._function, self._notes = function, notes
        self._known = scalars(function)
        self._same: dict[int, Value] = {}
        self._names = ValueNames.after(function)
        self._concats = {op.out.id: op for op in function.ops() if isinstance(op, Call) and op.function == "concat"}
        self._changed = False

    def fold(self) -> Function:
        done: dict[int, list[Op]] = {}
        for block_id in reverse_postorder(self._function):
            done[block_id] = [new for op in self._function.block(block_id).ops for new in self._op(op)]
        if not self._changed:
            return self._function
        blocks = [block.with_ops(done.get(block.id, list(block.ops))) for block in self._function.blocks]
        return substitute(self._function.with_blocks(blocks), self._same)

    def _op(self, op: Op) -> list[Op]:
        if isinstance(op, CondBr) and op.test.id in self._known:
            self._changed = True
            taken = op.then if self._known[op.test.id] else op.otherwise
            self._notes.did(op.loc, f"the branch is always {'taken' if taken is op.then else 'skipped'}")
            return [Br(to=taken, loc=op.loc)]
        if isinstance(op, MakeList) and op.items and all(item.id in self._known for item in op.items):
            self._changed = True
            return [Const(out=op.out, value=[self._known[item.id] for item in op.items], loc=op.loc)]
        if not isinstance(op, Call) or op.function in _KEPT or BUILTINS[op.function].writes:
            return [op]
        if all(arg.id in self._known for arg in op.args):
            return self._evaluate(op)
        if self._is_identity(op):
            self._changed = True
            self._same[op.out.id] = op.args[0]
            return []
        return self._concat(op) if op.function == "concat" else [op]

    def _is_identity(self, op: Call) -> bool:
        return len(op.args) == 1 and op.args[0].type is Type.TEXT and op.function in ("concat", "str", "format")

    def _evaluate(self, op: Call) -> list[Op]:
        """An error stays for the run, where it is an error of the user's line."""
        try:
            value = evaluate(op.function, [self._known[arg.id] for arg in op.args], op.keys)
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, LimitExceeded):
            return [op]
        kind = type_of(value)
        if kind not in SCALAR_TYPES or (isinstance(value, str) and len(value) > MAX_FOLDED_TEXT):
            return [op]
        self._changed = True
        self._known[op.out.id] = value
        self._notes.did(op.loc, f"{op.function} is {value!r:.60}")
        if kind is op.out.type:
            return [Const(out=op.out, value=value, loc=op.loc)]
        out = self._names.new(kind)
        self._same[op.out.id], self._known[out.id] = out, value
        return [Const(out=out, value=value, loc=op.loc)]

    def _concat(self, op: Call) -> list[Op]:
        """Neighbouring constants become one; a concat inside is opened up."""
        args = [inner for arg in op.args for inner in (self._concats[arg.id].args if arg.id in self._concats else (arg,))]
        groups = _runs(args, self._known)
        if len(groups) == len(op.args):
            return [op]
        self._changed = True
        made: list[Op] = []
        final: list[Value] = []
        for values in groups:
            if len(values) == 1:
                final.append(values[0])
                continue
            out = self._names.new(Type.TEXT)
            text = "".join(str(self._known[value.id]) for value in values)
            self._known[out.id] = text
            made.append(Const(out=out, value=text, loc=op.loc))
            final.append(out)
        new = Call(function="concat", args=tuple(final), out=op.out, loc=op.loc)
        self._concats[op.out.id] = new
        return [*made, new]


def _runs(args: Sequence[Value], known: dict[int, Scalar]) -> list[list[Value]]:
    """Neighbouring constant texts in one list, everything else alone."""
    groups: list[list[Value]] = []
    for arg in args:
        constant = isinstance(known.get(arg.id), str)
        if constant and groups and isinstance(known.get(groups[-1][-1].id), str):
            groups[-1].append(arg)
        else:
            groups.append([arg])
    return groups
