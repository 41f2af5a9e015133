"""What the compiler makes of one function: made at the first need, kept while the values that the function captures still hold."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ramet.errors import Unsupported, UserError

if TYPE_CHECKING:
    from ramet.compiler.driver import CompiledProgram
    from ramet.compiler.pipeline import Pipeline
    from ramet.compiler.scope import ProgramObject, Verbs

_ROLES = ("system", "user", "assistant")
_VERB_NAMES = (
    *("gen", "gen_int", "gen_string", "select", "image", "separate_reasoning"),
    *_ROLES,
    *(f"{role}_{end}" for role in _ROLES for end in ("begin", "end")),
)
_METHOD_NAMES = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")


class Prepared:
    """A compiled program and, once somebody asks, its wire form."""

    def __init__(self, compiled: CompiledProgram) -> None:
        self.compiled = compiled

    @cached_property
    def encoded(self) -> bytes:
        from ramet.wire.codec import encode

        return encode(self.compiled.module)

    @cached_property
    def digest(self) -> str:
        from ramet.wire.codec import digest

        return digest(self.encoded)


class Compilation:
    """Thread-safe. `disabled` names passes to leave out. A function that does not compile is not tried again until what it captures
    has changed."""

    def __init__(self, function: Callable[..., Any], ambient: bool, disabled: Sequence[str] = ()) -> None:
        self._function, self._ambient, self.disabled = function, ambient, tuple(disabled)
        self._found: Prepared | UserError | None = None
        self._lock = threading.Lock()

    def get(self) -> Prepared:
        """Raises CompileError with every place that does not compile."""
        with self._lock:
            if self._found is None or (not isinstance(self._found, UserError) and not self._found.compiled.is_current()):
                self._found = self._compile()
            if isinstance(self._found, UserError):
                raise self._found
            return self._found

    def _compile(self) -> Prepared | UserError:
        from ramet.compiler.driver import compile_program
        from ramet.compiler.scope import ProgramObject

        try:
            program = ProgramObject(self._function, self._ambient)
            return Prepared(compile_program(program, language_verbs(), pipeline=self._pipeline()))
        except UserError as error:
            return error.with_traceback(None)

    def _pipeline(self) -> Pipeline:
        from ramet.compiler.default_order import DEFAULT

        return DEFAULT.without(self.disabled)


def language_verbs() -> Verbs:
    """The language's vocabulary, as the compiler wants it: by the identity of its objects."""
    from ramet.compiler.scope import Verbs
    from ramet.lang import verbs
    from ramet.program import selection

    found = {name: getattr(verbs, name) for name in _VERB_NAMES} | {name: getattr(selection, name) for name in _METHOD_NAMES}
    return Verbs.of(found, _program_of)


def _program_of(value: Any) -> ProgramObject | None:
    from ramet.compiler.scope import ProgramObject
    from ramet.lang.function import Function

    return ProgramObject(value.function, value.ambient, value.bound) if isinstance(value, Function) else None


def named_arguments(function: Callable[..., Any], ambient: bool, args: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """One value per parameter, defaults included. Raises Unsupported for one that cannot travel to where the program runs."""
    from ramet.compiler.scope import is_plain

    bound = inspect.signature(function).bind(*(() if ambient else (None,)), *args, **keywords)
    bound.apply_defaults()
    found = dict(list(bound.arguments.items())[0 if ambient else 1 :])
    for name, value in found.items():
        if not is_plain(value):
            raise Unsupported(f"the argument {name!r} is a {type(value).__name__}, which a compiled program cannot take", param=name)
    return found
