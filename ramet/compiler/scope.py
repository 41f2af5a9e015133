"""What a name means: a local variable, or an object that the function captures from its module or closure."""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ramet.compiler.diagnostics import Unfit

MISSING = object()


@dataclass(frozen=True, slots=True)
class ProgramObject:
    """What the compiler needs to know of a decorated function: `bound` are the arguments that `bind` fixed."""

    function: Callable[..., Any]
    ambient: bool
    bound: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verbs:
    """What the language front end hands in, so that the compiler need not import it: the verbs by object identity, and how to tell one
    of its program objects from any other object (then None)."""

    names: Mapping[int, str]
    program_of: Callable[[Any], ProgramObject | None]

    @classmethod
    def of(cls, verbs: Mapping[str, object], program_of: Callable[[Any], ProgramObject | None]) -> Verbs:
        return cls({id(value): name for name, value in verbs.items()}, program_of)


@dataclass(slots=True)
class Scope:
    """Names of one function. `captures` collects every captured plain value that became a constant of the program."""

    function: Callable[..., Any]
    locals: frozenset[str]
    captures: dict[str, Any] = field(default_factory=dict)

    def is_local(self, name: str) -> bool:
        return name in self.locals

    def lookup(self, node: ast.expr) -> Any:
        """The captured object that a dotted name stands for now, or MISSING (a local, a computed object, an unknown name)."""
        if isinstance(node, ast.Name):
            return MISSING if self.is_local(node.id) else captured(self.function, node.id)
        if isinstance(node, ast.Attribute):
            owner = self.lookup(node.value)
            return MISSING if owner is MISSING else _attribute(owner, node.attr)
        return MISSING

    def constant(self, node: ast.expr, value: Any) -> Any:
        """Record the captured `value` as a constant; refuse what cannot travel."""
        if not is_plain(value):
            kind = type(value).__name__
            raise Unfit(
                node,
                f"the captured {kind} cannot become part of the program",
                "pass what you need of it as an argument, or use a host function",
            )
        self.captures[ast.unparse(node)] = copy.deepcopy(value)
        return self.captures[ast.unparse(node)]


def scope_of(function: Callable[..., Any], tree: ast.FunctionDef | ast.AsyncFunctionDef) -> Scope:
    """Python's rule: a name assigned anywhere in the body is local everywhere in it."""
    arguments = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
    names = {argument.arg for argument in arguments}
    for statement in tree.body:
        nodes = list(ast.walk(statement))
        inner = {id(name) for node in nodes if isinstance(node, ast.comprehension) for name in ast.walk(node.target)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in inner}
    return Scope(function, frozenset(names))


def captured(function: Callable[..., Any], name: str) -> Any:
    variables = inspect.unwrap(function)
    free = getattr(variables, "__code__").co_freevars  # noqa: B009 - a Callable has no __code__ to the type checker
    if name in free:
        cell = variables.__closure__[free.index(name)]
        try:
            return cell.cell_contents
        except ValueError:
            return MISSING
    known = variables.__globals__
    return known[name] if name in known else getattr(builtins, name, MISSING)


def _attribute(owner: Any, name: str) -> Any:
    """Attributes of modules, classes and objects; never of plain values, whose methods are builtins of the IR."""
    if is_plain(owner) and not isinstance(owner, ModuleType):
        return MISSING
    return getattr(owner, name, MISSING)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Does the value survive the wire as it is?"""
    if value is None or type(value) in (str, int, float, bool):
        return True
    if depth > 32:
        return False
    if type(value) in (list, tuple):
        return all(is_plain(each, depth + 1) for each in value)
    return type(value) is dict and all(type(key) is str and is_plain(each, depth + 1) for key, each in value.items())


def uses_language(function: Any, verbs: Verbs, depth: int = 3) -> bool:
    """Does a Python function, or one of its module that it calls, name a verb of the language?"""
    plain = inspect.unwrap(function) if callable(function) else None
    if not isinstance(plain, FunctionType):
        return False
    names = {name for code in _codes(plain.__code__) for name in (*code.co_names, *code.co_freevars)}
    for found in (captured(plain, name) for name in names):
        if id(found) in verbs.names:
            return True
        if isinstance(found, ModuleType) and any(id(getattr(found, name, None)) in verbs.names for name in names):
            return True
        if depth and isinstance(found, FunctionType) and found.__module__ == plain.__module__ and uses_language(found, verbs, depth - 1):
            return True
    return False


def _codes(code: CodeType) -> list[CodeType]:
    return [code, *(inner for each in code.co_consts if isinstance(each, CodeType) for inner in _codes(each))]
