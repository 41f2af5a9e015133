"""One gen or select of a program, from its arguments to the next conversation and the variable's value."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from ramet.errors import InvalidRequest
from ramet.program.answer_shape import AnswerShape, answer_shape, num_copies
from ramet.program.backend import Backend, GenerateCall, GenerateChunk
from ramet.program.conversation_state import ConversationState
from ramet.program.reasoning import REASONING_SUFFIX, split_reasoning
from ramet.program.selection import METHODS, decide

Usage = dict[str, int]
Answer = tuple[ConversationState, Any, Usage]
"""The conversation with the text, the variable's value, and the counts of tokens that the backend gave."""
COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "forced_tokens")


async def generate(
    backend: Backend,
    state: ConversationState,
    name: Any,
    arguments: Mapping[str, Any],
    run_id: str,
    hints: Mapping[str, int],
    show: Callable[[str], None] | None,
) -> Answer:
    """`show` gets each new piece of text; without it the text may come in one piece."""
    shape = answer_shape(arguments)
    sampling = {**state.sampling, **shape.sampling}
    copies = num_copies(sampling.pop("n", None))
    quiet = copies > 1 or shape.reasoning is not None
    logprobs, stream = {**state.logprobs, **shape.logprobs}, show is not None and not quiet
    calls = [GenerateCall(state.conversation, _seeded(sampling, i), logprobs, run_id, hints, stream) for i in range(copies)]
    if copies == 1:
        answers = [await _collect(backend, calls[0], None if quiet else show)]
    else:
        answers = await _all([_collect(backend, call, None) for call in calls])
    split = [("", text) if shape.reasoning is None else split_reasoning(text, shape.reasoning) for text, _ in answers]
    values = [_parsed(shape, name, text, meta) for (_, text), (_, meta) in zip(split, answers, strict=True)]
    meta = answers[0][1]
    usage = {count: sum(int(each.get(count) or 0) for _, each in answers) for count in COUNTS}
    value, meta = (values[0], meta) if copies == 1 else (values, {**meta, "all": [each for _, each in answers]})
    after = state.with_text(split[0][1])
    if name is not None:
        after = after.with_variable(_name(name), value, meta)
        if shape.reasoning is not None:
            thoughts = [each for each, _ in split]
            after = after.with_variable(name + REASONING_SUFFIX, thoughts[0] if copies == 1 else thoughts)
    return after, value, usage


def _seeded(sampling: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """Copies of a seeded generation differ from one another, and are the same at every run."""
    seed = sampling.get("seed")
    return sampling if seed is None or not index else {**sampling, "seed": seed + index}


async def _collect(backend: Backend, call: GenerateCall, show: Callable[[str], None] | None) -> tuple[str, dict[str, Any]]:
    pieces: list[str] = []
    meta: dict[str, Any] = {}
    async with aclosing(cast(AsyncGenerator[GenerateChunk, None], backend.generate(call))) as chunks:
        async for chunk in chunks:
            pieces.append(chunk.text)
            meta.update(chunk.meta_info)
            if show is not None and chunk.text:
                show(chunk.text)
    return "".join(pieces), meta


async def _all(coroutines: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _parsed(shape: AnswerShape, name: Any, text: str, meta: Mapping[str, Any]) -> Any:
    try:
        return shape.parse(text)
    except ValueError as error:
        reason = meta.get("finish_reason")
        kind = reason.get("type") if isinstance(reason, dict) else reason
        advice = "it was cut by max_tokens: raise max_tokens" if kind == "length" else f"it ended with {reason!r}"
        raise InvalidRequest(
            f"gen({name!r}) did not yield a complete value: {text[:200]!r} ({error}); {advice}", param=str(name)
        ) from error


async def select(
    backend: Backend,
    state: ConversationState,
    name: Any,
    choices: Any,
    method: str,
    arguments: Mapping[str, Any],
    draw: Callable[[Any], random.Random],
    run_id: str = "",
) -> Answer:
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequest(f"select() needs a list of non-empty texts as choices, got {choices!r:.80}", param="choices")
    if len(set(choices)) < len(choices):
        raise InvalidRequest("select() got the same choice twice", param="choices")
    temperature = arguments.get("temperature") or 0.0
    if temperature < 0:
        raise InvalidRequest(f"temperature must be 0 or more, got {temperature}", param="temperature")
    chosen = METHODS[method]
    unconditional = chosen.requires_unconditional_logprobs
    scores = await backend.score(state.conversation, choices, unconditional=unconditional, run_id=run_id)
    found = decide(choices, scores, chosen, temperature, draw(arguments.get("seed")))
    after = state.with_text(found.decision)
    return (after if name is None else after.with_variable(_name(name), found.decision, found.meta_info)), found.decision, {}


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidRequest(f"a variable's name is text, not {name!r:.60}", param="name")
    return name
