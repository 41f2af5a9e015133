"""What compiler tests share: the verb table of the language, programs made of source text, a backend whose answer is a pure hash of
what it is asked, and one outcome per way of running."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ramet.compiler.driver import CompiledProgram, compile_program
from ramet.compiler.pipeline import Pipeline
from ramet.compiler.scope import ProgramObject, Verbs
from ramet.ir.module import Module
from ramet.lang import verbs
from ramet.lang.function import Function
from ramet.program import selection
from ramet.program.backend import ChatFormat, ChoiceScore, Conversation, GenerateCall, GenerateChunk
from ramet.program.budget import Budget
from ramet.program.failure import ProgramFailed
from ramet.program.interpreter import HostCall, run_program

ROLES = ("system", "user", "assistant")
NAMES = (
    "gen",
    "gen_int",
    "gen_string",
    "select",
    *ROLES,
    *(f"{role}_{end}" for role in ROLES for end in ("begin", "end")),
    "image",
    "separate_reasoning",
)
METHODS = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")
CHAT = ChatFormat({role: (f"<{role}>", "</>") for role in (*ROLES, "tool")})


def program_of(value: Any) -> ProgramObject | None:
    return ProgramObject(value.function, value.ambient, value.bound) if isinstance(value, Function) else None


VERBS = Verbs.of({**{name: getattr(verbs, name) for name in NAMES}, **{name: getattr(selection, name) for name in METHODS}}, program_of)


def compiled(function: Function, pipeline: Pipeline | None = None) -> CompiledProgram:
    program = program_of(function)
    assert program is not None
    return compile_program(program, VERBS) if pipeline is None else compile_program(program, VERBS, pipeline=pipeline)


def define(source: str, name: str = "main", **known: Any) -> Function:
    """The program `name` of a module's source text; `sgl` and `function` are there."""
    file = f"<program {hashlib.sha1(source.encode()).hexdigest()[:12]}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"sgl": verbs, "function": Function, **known}
    exec(compile(source, file, "exec"), namespace)
    found = namespace[name]
    assert isinstance(found, Function)
    return found


class HashBackend:
    """Answers depend on the prompt and the parameters alone, so any order and any merging of calls that keeps the meaning keeps them."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.prefilled: list[str] = []

    async def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        prompt = call.conversation.render(CHAT)
        self.prompts.append(prompt)
        text = _answer(prompt, call.sampling)
        yield GenerateChunk(text, {"finish_reason": {"type": "stop"}, "completion_tokens": len(text)}, finished=True)

    async def score(
        self, conversation: Conversation, choices: Sequence[str], *, unconditional: bool = False, run_id: str = ""
    ) -> list[ChoiceScore]:
        prompt = conversation.render(CHAT)
        weights = [-(_digest(prompt, choice) % 997) / 100 - 0.01 for choice in choices]
        return [ChoiceScore((index,), (weight,), (-1.0,) if unconditional else ()) for index, weight in enumerate(weights)]

    async def prefill(self, conversation: Conversation) -> None:
        self.prefilled.append(conversation.render(CHAT))

    async def chat_format(self) -> ChatFormat:
        return CHAT

    async def flush_cache(self) -> None: ...

    async def server_info(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None: ...


def _digest(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=6).digest())


def _answer(prompt: str, sampling: Mapping[str, Any]) -> str:
    number = _digest(prompt, repr(sorted((key, repr(value)) for key, value in sampling.items())))
    if "[0-9]" in str(sampling.get("regex", "")):
        return str(number % 12)
    words = ("yes", "no", "bug", "alpha", "beta", "7", "a b", "")
    return " ".join(words[(number >> shift) % len(words)] for shift in range(0, 3 * (1 + number % 3), 3)).strip()


@dataclass(frozen=True)
class Outcome:
    """What a user can see of a run; a failed one shows only that it failed."""

    value: Any = None
    text: str = ""
    variables: Any = None
    host: Any = None
    error: str = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outcome):
            return NotImplemented
        if self.error or other.error:
            return bool(self.error) == bool(other.error)
        mine, theirs = (self.value, self.text, self.variables, self.host), (other.value, other.text, other.variables, other.host)
        return repr(mine) == repr(theirs)


class Host:
    def __init__(self, program: CompiledProgram) -> None:
        self._program = program

    async def call(self, call: HostCall) -> Any:
        return self._program.host_function(call.function)(*call.args, **call.kwargs)


async def interpreted(function: Function, arguments: Mapping[str, Any], log: list[Any]) -> Outcome:
    log.clear()
    try:
        result = await function.arun(**arguments, backend=HashBackend(), mode="interpreted", temperature=0.0)
        value = str(result.value) if hasattr(result.value, "as_expr") else result.value
        return Outcome(value, result.text(), result.variables(), list(log))
    except Exception as error:
        return Outcome(error=type(error).__name__)


async def executed(program: CompiledProgram, module: Module, arguments: Mapping[str, Any], log: list[Any], backend: Any = None) -> Outcome:
    log.clear()
    budget = Budget(steps=50_000, seconds=20)
    backend = backend or HashBackend()
    try:
        run = await run_program(module, arguments, backend, host=Host(program), sampling={"temperature": 0.0}, budget=budget)
        text = run.state.conversation.render(await backend.chat_format())
        return Outcome(run.value, text, dict(run.state.variables), list(log))
    except ProgramFailed as error:
        return Outcome(error=error.cause_type)


HostLog = list[Any]
Tool = Callable[..., Any]
