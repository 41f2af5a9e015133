"""What a user is told when a function cannot be compiled: where, what, and what to write instead."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ramet.errors import UserError

MOST_NAMES = 40
"""That one line lists."""


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


def meant(name: str, known: Iterable[str]) -> str:
    """Of a name that is not known: the one that it looks like, else all there are."""
    names = sorted(known)
    if near := get_close_matches(name, names, n=1):
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names[:MOST_NAMES])}" + (", …" if len(names) > MOST_NAMES else "")
