"""PUT /v1/programs/{digest}: a program arrives once, is verified, and everything that is known of it before it runs is prepared."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from ramet.errors import RametError, RequestNotFound
from ramet.ir.module import Grammar, Module
from ramet.program.answer_shape import answer_shape
from ramet.program.prefix import constant_prefix
from ramet.runtime.engine.native_format import error_of
from ramet.runtime.engine.program_backend import EngineBackend
from ramet.runtime.request import Generation
from ramet.runtime.sampling_params import parse_sampling_params
from ramet.server.openai.reply_schema import ERROR_REPLIES
from ramet.server.server_context import Context, ServerContext
from ramet.wire.codec import check_digest, decode

router = APIRouter(tags=["programs"])

MAX_TOTAL_BYTES = 256 << 20
MAX_GRAMMARS = 64
CONSTRAINED_KINDS = ("regex", "json_schema", "ebnf", "dtype")


@dataclass(frozen=True, slots=True)
class RegisteredProgram:
    digest: str
    module: Module
    size: int  # bytes on the wire
    report: dict[str, Any]


class ProgramRegistry:
    """The programs that may be run, least recently used first; bounded in number and in bytes."""

    def __init__(self, max_programs: int) -> None:
        self._max_programs = max_programs
        self._programs: OrderedDict[str, RegisteredProgram] = OrderedDict()
        self._arriving: dict[str, asyncio.Task[RegisteredProgram]] = {}

    def __len__(self) -> int:
        return len(self._programs)

    def find(self, digest: str) -> RegisteredProgram | None:
        if digest in self._programs:
            self._programs.move_to_end(digest)
        return self._programs.get(digest)

    def get(self, digest: str) -> RegisteredProgram:
        found = self.find(digest)
        if found is None:
            raise ProgramNotFound(f"no program {digest[:16]}… is registered here; PUT /v1/programs/{{digest}} first")
        return found

    async def register(self, context: ServerContext, digest: str, encoded: bytes) -> RegisteredProgram:
        """The program of this digest, prepared once however many bring it at the same time. Raises what is wrong with it."""
        if (known := self.find(digest)) is not None:
            return known
        check_digest(encoded, digest)
        if digest not in self._arriving:
            task = self._arriving[digest] = asyncio.create_task(_prepared(context, digest, encoded))
            task.add_done_callback(lambda done: self._arrived(digest, done))
        return await asyncio.shield(self._arriving[digest])

    def _arrived(self, digest: str, task: asyncio.Task[RegisteredProgram]) -> None:
        del self._arriving[digest]
        if not task.cancelled() and task.exception() is None:
            self._add(task.result())

    def _add(self, program: RegisteredProgram) -> None:
        self._programs[program.digest] = program
        while len(self._programs) > self._max_programs or sum(each.size for each in self._programs.values()) > MAX_TOTAL_BYTES:
            self._programs.popitem(last=False)


class ProgramNotFound(RequestNotFound):
    code = "program_not_found"


async def get_registry(request: Request) -> ProgramRegistry:
    registry: ProgramRegistry = request.app.state.programs
    return registry


Registry = Annotated[ProgramRegistry, Depends(get_registry)]


@router.put("/v1/programs/{digest}", responses=ERROR_REPLIES)
async def register(digest: str, request: Request, context: Context, registry: Registry) -> dict[str, Any]:
    """Register a program in its wire form. Idempotent: the digest is its content's SHA-256. The reply says what was prepared."""
    encoded = await request.body()
    if (known := registry.find(digest)) is not None:
        return known.report | {"known": True}
    return (await registry.register(context, digest, encoded)).report


async def _prepared(context: ServerContext, digest: str, encoded: bytes) -> RegisteredProgram:
    module = await asyncio.to_thread(decode, encoded, digest)
    began = time.monotonic()
    grammars, prefix_tokens = await asyncio.gather(
        asyncio.gather(*(_compile(context, grammar) for grammar in _constraints(module))), _warm(context, module)
    )
    report = {
        "digest": digest,
        "functions": len(module.functions),
        "ops": module.num_ops(),
        "grammars": grammars,
        "prefix_tokens": prefix_tokens,
        "seconds": time.monotonic() - began,
    }
    return RegisteredProgram(digest, module, len(encoded), report)


def _constraints(module: Module) -> Sequence[Grammar]:
    return [grammar for grammar in module.grammars if grammar.kind in CONSTRAINED_KINDS][:MAX_GRAMMARS]


async def _compile(context: ServerContext, grammar: Grammar) -> dict[str, Any]:
    """Compile a constraint now, by generating one token under it. One that cannot be compiled fails the generation that uses it, if
    the program gets there, and is only reported here."""
    try:
        sampling = answer_shape({grammar.kind: grammar.source}).sampling
        params = {**sampling, "max_new_tokens": 1, "temperature": 0}
        one = Generation(
            request_id=f"grammar-{uuid.uuid4().hex}",
            input_ids=(0,),
            sampling=parse_sampling_params(params),
            cache_namespace="grammar",
        )
        whole = await context.engine.complete(one)
        if whole.finish is not None and whole.finish.status >= 400:
            raise error_of(whole.finish)
    except RametError as error:
        return {"kind": grammar.kind, "error": error.message}
    return {"kind": grammar.kind, "error": None}


async def _warm(context: ServerContext, module: Module) -> int:
    """Tokenise the constant beginning and bring it into the prefix cache; a hint, which may fail."""
    try:
        prefix = constant_prefix(module)
        if not prefix.parts:
            return 0
        backend = EngineBackend(context.engine)
        await backend.prefill(prefix)
        return await backend.num_tokens(prefix)
    except RametError:
        return 0
