"""Says at once everything in a function that has no meaning in the IR, before any of it is lowered."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from ramet.compiler.diagnostics import CompileError, Unfit
from ramet.compiler.source import FunctionSource

REFUSED: Mapping[type[ast.AST], tuple[str, str]] = MappingProxyType(
    {
        ast.Try: ("try does not compile", "handle the error where run() raises it, or catch it inside a host function"),
        ast.TryStar: ("try does not compile", "handle the error where run() raises it, or catch it inside a host function"),
        ast.Yield: ("a program cannot be a generator", "append to a list and return it; stream with run(stream=True)"),
        ast.YieldFrom: ("a program cannot be a generator", "append to a list and return it; stream with run(stream=True)"),
        ast.ClassDef: ("a class cannot be defined inside a program", "define it at module level and use it in a host function"),
        ast.FunctionDef: ("a function cannot be defined inside a program", "define it at module level; it then becomes a host call"),
        ast.AsyncFunctionDef: ("a function cannot be defined inside a program", "define it at module level; it then becomes a host call"),
        ast.Import: ("import cannot run on the server", "import at module level; calls into it become host calls"),
        ast.ImportFrom: ("import cannot run on the server", "import at module level; calls into it become host calls"),
        ast.Global: ("a program cannot change globals", "return the value"),
        ast.Nonlocal: ("a program cannot change captured variables", "return the value"),
        ast.AsyncFor: ("async for does not compile", "loop over a list; forks run concurrently without it"),
        ast.AsyncWith: ("async with does not compile", "use a host function"),
        ast.Match: ("match does not compile", "use if / elif"),
        ast.Starred: ("* does not compile here", "write the items out, or use + on lists"),
    }
)
_OPERATORS = (ast.BitAnd, ast.BitOr, ast.BitXor, ast.LShift, ast.RShift, ast.MatMult, ast.Invert)


def check(source: FunctionSource) -> None:
    """Raises CompileError with one diagnostic per refused place."""
    problems = [*_signature(source.tree.args), *_body(source)]
    if problems:
        raise CompileError([source.diagnostic(problem) for problem in problems])


def _signature(args: ast.arguments) -> Iterator[Unfit]:
    for star in (args.vararg, args.kwarg):
        if star is not None:
            yield Unfit(star, "a compiled program has a fixed list of parameters", "name each parameter, or take one list or dict")


def _body(source: FunctionSource) -> Iterator[Unfit]:
    for statement in source.tree.body:
        for node in ast.walk(statement):
            if type(node) in REFUSED:
                yield Unfit(node, *REFUSED[type(node)])
            elif isinstance(node, ast.BinOp | ast.AugAssign | ast.UnaryOp) and isinstance(node.op, _OPERATORS):
                yield Unfit(node, f"the operator {type(node.op).__name__} does not compile", "use a host function")
            elif isinstance(node, ast.Delete) and not all(isinstance(target, ast.Subscript) for target in node.targets):
                yield Unfit(node, "del of a name does not compile", "assign None to it")
            elif isinstance(node, ast.comprehension) and node.is_async:
                yield Unfit(node.iter, "async comprehensions do not compile", "loop over a list")
            elif isinstance(node, ast.Constant) and not isinstance(node.value, str | int | float | bool | None):
                yield Unfit(
                    node, f"a literal of type {type(node.value).__name__} does not compile", "use text, numbers, True, False or None"
                )
