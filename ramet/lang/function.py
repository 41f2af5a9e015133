"""`@function`: a program, and the ways to run it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, overload

from ramet.errors import InvalidRequest, UserError
from ramet.lang.batch import BATCH_KEYWORDS, BatchOptions, call_arguments, pulled, results_in_order
from ramet.lang.bridge import in_body
from ramet.lang.compilation import Compilation
from ramet.lang.explanation import Explanation, explain_function
from ramet.lang.launch_run import run_to_end, start
from ramet.lang.options import RUN_KEYWORDS, Mode, RunOptions, check_mode, split_options
from ramet.lang.process import current_backend, runner
from ramet.lang.result import ProgramState
from ramet.lang.runner import wait_for
from ramet.lang.state import State
from ramet.lang.strategy import Program
from ramet.lang.tracing import Trace, trace_program

STATE_PARAMETER = "s"


class Function:
    """A program made of a Python function, `def` or `async def`. Its style shows in the signature: a first parameter named `s` (or
    annotated `State`) is the explicit conversation; without it the function speaks into an ambient one.

    The run options of `run` and its siblings are SGLang's (max_new_tokens, temperature, stop, …, stream, backend) and `timeout`, `mode`,
    `seed`; every other keyword is an argument of the program.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        mode: Mode = "auto",
        bound: Mapping[str, Any] | None = None,
        disable_passes: Sequence[str] = (),
        compilation: Compilation | None = None,
    ) -> None:
        self.function, self.mode = function, check_mode(mode)
        self.bound = dict(bound or {})
        self.signature = inspect.signature(function)
        self.ambient = not _takes_state(self.signature)
        self.compilation = compilation or Compilation(function, self.ambient, disable_passes)
        self.__name__, self.__doc__ = getattr(function, "__name__", "program"), function.__doc__
        self.__wrapped__ = function
        _refuse_reserved(self.__name__, self.signature)

    def run(self, *args: Any, **keywords: Any) -> ProgramState:
        """Run to the end and raise what the program raises; with `stream=True` return at once with a result that streams."""
        options, _ = split_options(keywords)
        do = self.astart if options.stream else self.arun
        return wait_for(_home(), lambda: do(*args, **keywords))

    async def arun(self, *args: Any, **keywords: Any) -> ProgramState:
        """`run` on the caller's own event loop. Cancelling it aborts the program's generations at the backend."""
        options, arguments = split_options(keywords)
        return await run_to_end(self._program(args, arguments), options, self.mode)

    async def astart(self, *args: Any, **keywords: Any) -> ProgramState:
        """Begin, and return a result that streams (`async for piece in result.text_async_iter()`)."""
        options, arguments = split_options(keywords)
        return await start(self._program(args, arguments), options, self.mode)

    async def astream(self, *args: Any, var_name: str | None = None, **keywords: Any) -> AsyncIterator[str]:
        """Run, and yield new text of `var_name` or of the whole transcript. Leaving the loop early cancels the run."""
        state = await self.astart(*args, **keywords)
        try:
            async for piece in state.text_async_iter(var_name):
                yield piece
        finally:
            state.cancel()
            await state._settled()

    def run_batch(self, batch_kwargs: Sequence[Any], **keywords: Any) -> Any:
        """Run once per element (a dict of arguments, or a tuple of positional ones) and return the results in order: a list, or a
        generator with `generator_style=True`. `progress_bar`, `num_threads` (runs alive at once), `return_exceptions` as in
        asyncio.gather: otherwise the first failure cancels the rest and is raised."""
        loop = _home()
        if keywords.get("generator_style"):
            return pulled(loop, self.abatch_iter(batch_kwargs, **keywords))
        return wait_for(loop, lambda: self.arun_batch(batch_kwargs, **keywords))

    async def arun_batch(self, batch_kwargs: Sequence[Any], **keywords: Any) -> Any:
        """`run_batch` on the caller's own event loop; with `generator_style=True` it returns an async iterator."""
        results = self.abatch_iter(batch_kwargs, **keywords)
        return results if keywords.get("generator_style") else [result async for result in results]

    def abatch_iter(self, batch_kwargs: Sequence[Any], **keywords: Any) -> AsyncIterator[Any]:
        """The results in order, as they come."""
        options = BatchOptions(**{name: keywords.pop(name) for name in BATCH_KEYWORDS if name in keywords})
        calls = [call_arguments(item) for item in batch_kwargs]
        run, shared = split_options(keywords)
        for number, (args, arguments) in enumerate(calls):
            try:
                self._program(args, {**shared, **arguments})
            except TypeError as error:
                raise TypeError(f"batch_kwargs[{number}]: {error}") from None

        turns = options.concurrency if self._runs_on_server(run) else None

        async def run_one(item: tuple[tuple[Any, ...], dict[str, Any]]) -> ProgramState:
            args, arguments = item
            program = self._program(args, {**shared, **arguments})
            return await run_to_end(program, replace(run, concurrency=turns), self.mode)

        return results_in_order(calls, run_one, options if turns is None else replace(options, num_threads=max(1, len(calls))))

    def _runs_on_server(self, options: RunOptions) -> bool:
        """Then a batch goes in one request, and its runs take turns there."""
        if (options.mode or self.mode) == "interpreted" or getattr(current_backend(options.backend), "programs", None) is None:
            return False
        try:
            return self.compilation.get() is not None
        except UserError:
            return False

    def bind(self, **arguments: Any) -> Function:
        """This program with some arguments fixed."""
        return Function(self.function, mode=self.mode, bound={**self.bound, **arguments}, compilation=self.compilation)

    def without_passes(self, *names: str) -> Function:
        """This program, compiled without the passes of these names (`ramet.compiler.default_order.PASS_NAMES`)."""
        return Function(self.function, mode=self.mode, bound=self.bound, disable_passes=names)

    def trace(self, *, backend: Any = None, **arguments: Any) -> Trace:
        """Run the body once, on purpose, without generating: what it appends up to the first thing that depends on an argument not
        given here or on a generation. (`backend` is SGLang's; tracing needs none.)"""
        missing = [name for name in self._parameters() if name not in arguments and name not in self.bound]
        return trace_program(self.function, self.ambient, {**self.bound, **arguments}, missing)

    def explain(self, *args: Any, analyze: bool = False, **keywords: Any) -> Explanation:
        """How this program is executed and why: per line what each pass did or did not do. With `analyze=True` the program is run with
        the given arguments and options, and the explanation says what happened; its `waterfall()` is a picture of the run."""
        if not analyze:
            return explain_function(self.__name__, self.compilation)
        options, arguments = split_options(keywords)
        program, traced = self._program(args, arguments), replace(options, traced=True)
        state = wait_for(_home(), lambda: run_to_end(program, traced, self.mode))
        where = "on the server" if state.run_id else "in this process"
        return explain_function(self.__name__, self.compilation, state.spans(), where)

    def cache(self, backend: Any = None) -> None:
        """Bring the constant beginning of this program into the backend's prefix cache. Runs the body once, as `trace` does."""
        found, prefix = current_backend(backend), self.trace().conversation
        if prefix.parts:
            wait_for(_home(), lambda: found.prefill(prefix))

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """With a state as first argument: append to that conversation and return the function's value. Otherwise `run`."""
        if not self.ambient and args and isinstance(args[0], State):
            return self.function(*args, **{**self.bound, **keywords})
        return self.run(*args, **keywords)

    def _program(self, args: tuple[Any, ...], arguments: Mapping[str, Any]) -> Program:
        """Bind the arguments now, so that a wrong call is the caller's TypeError."""
        merged = {**self.bound, **arguments}
        state = () if self.ambient else (None,)
        try:
            self.signature.bind(*state, *args, **merged)
        except TypeError as error:
            raise TypeError(f"{self.__name__}{self.signature}: {error}{self._meant(merged)}") from None
        return Program(self.function, self.ambient, args, merged, self.compilation)

    def _meant(self, given: Mapping[str, Any]) -> str:
        """What an unknown keyword looks like."""
        known = [*self.signature.parameters, *RUN_KEYWORDS, *BATCH_KEYWORDS]
        for name in given:
            if name not in known and (near := get_close_matches(name, known, n=1)):
                return f"; for {name!r}, did you mean {near[0]!r}?"
        return ""

    def _parameters(self) -> list[str]:
        found = list(self.signature.parameters.values())[0 if self.ambient else 1 :]
        return [p.name for p in found if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

    def __repr__(self) -> str:
        return f"<sgl.function {self.__name__}{self.signature}>"


@overload
def function(func: Callable[..., Any]) -> Function: ...
@overload
def function(*, num_api_spec_tokens: int | None = None, mode: Mode = "auto") -> Callable[[Callable[..., Any]], Function]: ...
def function(func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None, *, mode: Mode = "auto") -> Any:
    """Make a program of a Python function: `@sgl.function` or `@sgl.function(mode="interpreted")`. (`num_api_spec_tokens` is SGLang's
    hint to guess ahead on a remote API; it never changes a result, and here has no effect.)"""
    if func is not None:
        return Function(func, mode=mode)
    return lambda decorated: Function(decorated, mode=mode)


def _takes_state(signature: inspect.Signature) -> bool:
    first = next(iter(signature.parameters.values()), None)
    return first is not None and (first.name == STATE_PARAMETER or first.annotation in (State, "State", "sgl.State"))


def _refuse_reserved(name: str, signature: inspect.Signature) -> None:
    taken = [parameter for parameter in signature.parameters if parameter in RUN_KEYWORDS or parameter in BATCH_KEYWORDS]
    if taken:
        raise InvalidRequest(f"{name}: parameter {taken[0]!r} is also an option of run(); rename it", param=taken[0])


def _home() -> Any:
    """The loop that sync calls use: inside a program that program's own, else the background runner's."""
    import asyncio

    return asyncio.get_running_loop() if in_body() else runner().loop
