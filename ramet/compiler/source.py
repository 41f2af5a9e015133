"""From a Python function to its syntax tree, with the places of the user's own file."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ramet.compiler.diagnostics import CompileError, Diagnostic, Unfit
from ramet.ir.module import Source
from ramet.ir.types import Location

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """`source.lines` are the file's own lines; the tree was parsed from them dedented by `indent`."""

    function: Callable[..., Any]
    tree: FunctionNode
    source: Source
    indent: int

    def location(self, node: ast.AST, index: int) -> Location:
        line = self.source.first_line + getattr(node, "lineno", 1) - 1
        text = self.source.line(line)
        start = self._column(text, getattr(node, "col_offset", 0))
        one_line = getattr(node, "end_lineno", None) == getattr(node, "lineno", 1)
        end = self._column(text, getattr(node, "end_col_offset", 0)) if one_line else len(text)
        return Location(index, line, start, end)

    def _column(self, text: str, byte_offset: int) -> int:
        """The parser counts UTF-8 bytes of the dedented line; people count characters."""
        return self.indent + len(text[self.indent :].encode()[:byte_offset].decode(errors="ignore"))

    def diagnostic(self, problem: Unfit) -> Diagnostic:
        place = self.location(problem.node, 0)
        text = self.source.line(place.line)
        return Diagnostic(problem.message, problem.advice, self.source.file, place.line, place.col, place.end_col, text)


def load_source(function: Callable[..., Any]) -> FunctionSource:
    """Raises CompileError where Python cannot show the source (typed into a shell, built by exec)."""
    try:
        lines, first_line = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        name = getattr(function, "__qualname__", repr(function))
        raise CompileError(
            [Diagnostic(f"the source of {name} cannot be read ({error})", "define it in a file", "<unknown>", 1, 0, 1, "")]
        ) from None
    text = "".join(lines)
    dedented = textwrap.dedent(text)
    tree = next((node for node in ast.parse(dedented).body if isinstance(node, FunctionNode)), None)
    source = Source(inspect.getsourcefile(function) or "<unknown>", first_line, tuple(text.splitlines()))
    if tree is None:
        raise CompileError(
            [Diagnostic("only functions written with def compile", "use def", source.file, first_line, 0, 1, source.line(first_line))]
        )
    indent = len(text) - len(text.lstrip(" \t")) if dedented != text else 0
    return FunctionSource(function, tree, source, indent)
