"""What all parts of the lowering share while one function is lowered: its names, its block in the making, its way to other functions."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ramet.compiler.diagnostics import Unfit
from ramet.compiler.scope import ProgramObject, Scope, Verbs
from ramet.compiler.source import FunctionSource
from ramet.compiler.ssa import Draft, SsaBuilder
from ramet.ir.builtins import BUILTINS
from ramet.ir.ops import Call, Const, Index
from ramet.ir.types import Location, Type, Value, type_of

if TYPE_CHECKING:
    from ramet.compiler.lower_conversations import ConversationLowering
    from ramet.compiler.lower_expressions import ExpressionLowering
    from ramet.compiler.lower_loops import LoopLowering


@dataclass(frozen=True, slots=True)
class Member:
    """A name that stands for one branch of a group, as `f` in `for f in forks`: both are variables of the builder."""

    group: str
    index: str


Kind = str | Member
"""Of a name: "value", "state", "group", "turn" (text spoken into the ambient conversation), or a Member."""


@dataclass(slots=True)
class Context:
    source: FunctionSource
    source_index: int
    scope: Scope
    verbs: Verbs
    ambient: bool
    conversation: str  # the variable that holds the function's own conversation
    callee: Callable[[ProgramObject, ast.AST], str]  # compiles another function into the module, returns its name there
    builder: SsaBuilder = field(init=False)
    kinds: dict[str, Kind] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)  # group → the state that it was forked from
    aliases: dict[str, str] = field(default_factory=dict)
    expressions: ExpressionLowering = field(init=False)
    conversations: ConversationLowering = field(init=False)
    loops: LoopLowering = field(init=False)
    assign: Callable[[ast.expr, Value], None] = field(init=False)
    unbound: frozenset[ast.Name] = frozenset()
    parameters: frozenset[str] = frozenset()
    _hidden: int = 0

    def __post_init__(self) -> None:
        self.builder = SsaBuilder(self._undefined)

    def loc(self, node: ast.AST) -> Location:
        return self.source.location(node, self.source_index)

    def fresh(self, what: str) -> str:
        """A variable that no user can name."""
        self._hidden += 1
        return f"${what}{self._hidden}"

    def const(self, value: Any, node: ast.AST) -> Value:
        out = self.builder.values.new(type_of(value))
        self.builder.emit(Const(out=out, value=value, loc=self.loc(node)))
        return out

    def call(self, function: str, args: Sequence[Value], node: ast.AST, keys: Sequence[str] = ()) -> Value:
        out = self.builder.values.new(result_type(function, [arg.type for arg in args]))
        self.builder.emit(Call(function=function, args=tuple(args), keys=tuple(keys), out=out, loc=self.loc(node)))
        return out

    def branch(self, test: Value, node: ast.AST) -> tuple[Draft, Draft]:
        then, otherwise = self.builder.new_block(), self.builder.new_block()
        self.builder.branch(test, then, otherwise, self.loc(node))
        return then, otherwise

    def choose(self, test: Value, node: ast.AST, then: Callable[[], Value], otherwise: Callable[[], Value]) -> Value:
        """The value of the arm that `test` picks; only that arm runs."""
        result = self.fresh("choice")
        first, second = self.branch(test, node)
        after = self.builder.new_block()
        for draft, arm in ((first, then), (second, otherwise)):
            self.builder.start(draft)
            self.builder.write(result, arm())
            self.builder.jump(after, self.loc(node))
        self.builder.start(after)
        return self.builder.read(result)

    def index(self, target: Value, key: Value, node: ast.AST) -> Value:
        out = self.builder.values.new(Type.JSON)
        self.builder.emit(Index(object=target, key=key, out=out, loc=self.loc(node)))
        return out

    def may_be_unbound(self, node: ast.Name) -> bool:
        return node in self.unbound

    @contextmanager
    def own_names(self, node: ast.AST) -> Iterator[None]:
        """A comprehension's names are its own: what they hide outside comes back after it."""
        names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        names |= {argument.arg for argument in node.args.args} if isinstance(node, ast.Lambda) else set()
        saved = {name: self.fresh("outer") for name in names if self.kind(name) in ("value", "turn") and self._is_known(name)}
        kinds = {name: self.kinds.pop(name) for name in names if name in self.kinds}
        locals_before = self.scope.locals
        self.scope.locals = locals_before | names
        for name, keep in saved.items():
            self.builder.write(keep, self.builder.read(name))
        yield
        for name, keep in saved.items():
            self.builder.write(name, self.builder.read(keep))
        for name in names:
            self.kinds.pop(name, None)
        self.kinds |= kinds
        self.scope.locals = locals_before

    def _is_known(self, name: str) -> bool:
        return name in self.kinds or name in self.parameters

    def kind(self, name: str) -> Kind:
        return self.kinds.get(name, "value")

    def bind(self, name: str, kind: Kind, node: ast.AST) -> None:
        """A name keeps one kind: a conversation is a place in the program, not a value that comes and goes."""
        known = self.kinds.setdefault(name, kind)
        if known != kind and not (isinstance(known, Member) and isinstance(kind, Member)):
            raise Unfit(node, f"{name!r} is a {_describe(known)} in one place and a {_describe(kind)} here", "use two names")
        self.kinds[name] = kind

    def _undefined(self, name: str) -> Value:
        if self.kind(name) in ("state", "group"):
            raise Unfit(self.source.tree, f"the conversation {name!r} may not exist where it is used", "fork or copy it on every path")
        out = self.builder.values.new(Type.JSON)
        self.builder.emit_first(Call(function="undefined", out=out))
        return out


def _describe(kind: Kind) -> str:
    names: Mapping[str, str] = {"state": "conversation", "group": "group of forks", "turn": "turn of the conversation"}
    return "fork" if isinstance(kind, Member) else names.get(kind, kind)


def result_type(function: str, args: Sequence[Type]) -> Type:
    """The static type of a builtin's result, where its arguments' types say more than its signature."""
    if function in ("add", "sub", "mul", "mod", "floordiv", "add") and args and all(kind is Type.INT for kind in args):
        return Type.INT
    if function in ("add", "iadd") and args and all(kind is Type.TEXT for kind in args):
        return Type.TEXT
    if function == "truediv" and all(kind in (Type.INT, Type.FLOAT) for kind in args):
        return Type.FLOAT
    return BUILTINS[function].result
