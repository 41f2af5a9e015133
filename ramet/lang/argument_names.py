"""A misspelt argument of a verb is told the one that was meant, as it is where the program is compiled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ramet.compiler.diagnostics import meant

P = ParamSpec("P")
R = TypeVar("R")


def knows_its_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with a TypeError of its own for a keyword that it has not."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{function.__name__}() has no argument {name!r}; {meant(name, known)}")
        return function(*args, **kwargs)

    return called
