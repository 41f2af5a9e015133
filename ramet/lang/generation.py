"""One `gen`, from the call to the value: streaming, several answers at once, thoughts split off, typed values."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from ramet.errors import InvalidRequest
from ramet.lang.expressions import Gen
from ramet.program.answer_shape import num_copies
from ramet.program.backend import Conversation, GenerateCall, GenerateChunk
from ramet.program.reasoning import split_reasoning

if TYPE_CHECKING:
    from ramet.lang.run import Run


@dataclass(frozen=True, slots=True)
class Generated:
    """`text` goes into the conversation, `value` into the variable; lists of values, thoughts and meta_info parts for n > 1."""

    text: str
    value: Any
    thoughts: Any
    meta_info: dict[str, Any]


async def generate(run: Run, conversation: Conversation, op: Gen, show: Callable[[str], None]) -> Generated:
    """`show` gets the text so far at every chunk (not while thoughts may still have to be taken out)."""
    from ramet.lang.run import all_of

    sampling = {**run.sampling, **op.sampling}
    copies = num_copies(sampling.pop("n", None))
    quiet = op.reasoning is not None or copies > 1
    call = GenerateCall(conversation, sampling, {**run.logprobs, **op.logprobs}, run.run_id, stream=run.live and not quiet)
    if copies == 1:
        return _finish(op, *await _collect(run, call, None if quiet else show))
    answers = await all_of([_collect(run, _copy(call, i), None) for i in range(copies)])
    results = [_finish(op, *answer) for answer in answers]
    meta = {**results[0].meta_info, "all": [result.meta_info for result in results]}
    return Generated(results[0].text, [r.value for r in results], [r.thoughts for r in results], meta)


def _copy(call: GenerateCall, index: int) -> GenerateCall:
    """Copies of a seeded call differ from one another, and are the same at every run."""
    seed = call.sampling.get("seed")
    return call if seed is None else replace(call, sampling={**call.sampling, "seed": seed + index})


async def _collect(run: Run, call: GenerateCall, show: Callable[[str], None] | None) -> tuple[str, dict[str, Any]]:
    pieces: list[str] = []
    meta: dict[str, Any] = {}
    async with aclosing(cast(AsyncGenerator[GenerateChunk, None], run.backend.generate(call))) as chunks:
        async for chunk in chunks:
            pieces.append(chunk.text)
            meta.update(chunk.meta_info)
            if show is not None and chunk.text:
                show("".join(pieces))
    return "".join(pieces), meta


def _finish(op: Gen, text: str, meta: dict[str, Any]) -> Generated:
    thoughts, answer = split_reasoning(text, op.reasoning) if op.reasoning is not None else ("", text)
    try:
        value = op.parse(answer)
    except ValueError as error:
        raise InvalidRequest(_unfit(op, answer, meta, error), param=op.name) from error
    return Generated(answer, value, thoughts, meta)


def _unfit(op: Gen, answer: str, meta: dict[str, Any], error: ValueError) -> str:
    reason = meta.get("finish_reason")
    kind = reason.get("type") if isinstance(reason, dict) else reason
    advice = "it was cut by max_tokens: raise max_tokens" if kind == "length" else f"it ended with {reason!r}"
    return f"gen({op.name!r}) did not yield a complete value: {answer[:200]!r} ({error}); {advice}"
