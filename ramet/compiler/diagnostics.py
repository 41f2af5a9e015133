"""What a user is told when a function cannot be compiled: where, what, and what to write instead."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from ramet.errors import UserError


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """`line` is 1-based in `file`, columns are 0-based characters of `text`, the source line."""

    message: str
    advice: str
    file: str
    line: int
    col: int
    end_col: int
    text: str

    def render(self) -> str:
        caret = " " * self.col + "^" * max(1, min(self.end_col, len(self.text)) - self.col)
        return f"{self.file}:{self.line}:{self.col + 1}: {self.message}\n  {self.text}\n  {caret}\n  instead: {self.advice}"


class CompileError(UserError):
    """The function uses what the language does not compile; `diagnostics` holds one entry per place."""

    code = "cannot_compile"

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__("\n".join(each.render() for each in diagnostics))
        self.diagnostics = tuple(diagnostics)


class Unfit(Exception):
    """Raised inside the compiler at an AST node; the driver turns it into a CompileError with the place."""

    def __init__(self, node: ast.AST, message: str, advice: str) -> None:
        super().__init__(message)
        self.node, self.message, self.advice = node, message, advice
