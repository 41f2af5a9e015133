"""Host calls of a compiled program: the client's own Python, run exactly as an interpreted body would run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ramet.compiler.driver import CompiledProgram
from ramet.errors import InvalidRequest
from ramet.ir.host_object import HostObject
from ramet.ir.ops import HostCall
from ramet.lang.bridge import run_body
from ramet.lang.host_operators import host_operator
from ramet.lang.process import enter_backend
from ramet.program.backend import Backend
from ramet.program.running import HostCall as Call


class HostObjects:
    """Objects that a program may hold without seeing into them, for the length of one run."""

    def __init__(self, compiled: CompiledProgram) -> None:
        self._compiled = compiled
        self._known: list[Any] = []
        self._made: dict[tuple[str, str], Any] = {}

    def conceal(self, value: Any) -> Any:
        """What a program may get: plain values as they are, any other object, also a list or dict of a kind of its own, as a
        HostObject."""
        if value is None or isinstance(value, str | int | float):
            return value
        if type(value) is list:
            return [self.conceal(each) for each in value]
        if type(value) is tuple:
            return tuple(self.conceal(each) for each in value)
        if type(value) is dict:
            return {self.conceal(key): self.conceal(each) for key, each in value.items()}
        self._known.append(value)
        return HostObject(len(self._known) - 1, type(value).__name__)

    def reveal(self, value: Any) -> Any:
        """The host's own objects again."""
        if isinstance(value, HostObject):
            return self._known[value.number] if value.content is None else self._instance(value.kind, value.content)
        if isinstance(value, list):
            return [self.reveal(each) for each in value]
        if isinstance(value, tuple):
            return tuple(self.reveal(each) for each in value)
        return {key: self.reveal(each) for key, each in value.items()} if isinstance(value, dict) else value

    def _instance(self, model: str, content: str) -> Any:
        """Of a model class, made of a generated text: once, as a variable and a returned value are one object."""
        key = (model, content)
        if key not in self._made:
            make: Any = self._compiled.host_function(model)
            try:
                self._made[key] = make.model_validate_json(content)
            except ValueError as error:
                raise InvalidRequest(f"the answer is not a valid {model}: {content[:200]!r} ({error})") from error
        return self._made[key]


class ClientHost:
    """Implements the interpreter's `HostCalls`. A function marked `@sgl.host` runs in a pool of threads, an async one on the loop, any
    other on the loop's thread; programs that it runs inherit the backend."""

    def __init__(self, compiled: CompiledProgram, backend: Backend) -> None:
        self._compiled, self._backend = compiled, backend
        self._wanted = {op.function for function in compiled.module.functions for op in function.ops() if isinstance(op, HostCall)}
        self.objects = HostObjects(compiled)

    async def call(self, call: Call) -> Any:
        return await self.run(call.function, call.args, call.kwargs)

    async def run(self, name: str, args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        function = host_operator(name, self._wanted)
        if function is None and name not in self._wanted:  # a server may ask for what the program itself calls, and for nothing else
            raise InvalidRequest(f"the program has no host call {name!r:.80}")
        function = function or self._compiled.host_function(name)
        reveal = self.objects.reveal
        given = [reveal(each) for each in args], {key: reveal(each) for key, each in keywords.items()}
        running = f"{name}() in {self._compiled.module.main.name}"
        return self.objects.conceal(await run_body(lambda: self._invoke(function, *given), running))

    def _invoke(self, function: Callable[..., Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        enter_backend(self._backend)
        return function(*args, **keywords)
