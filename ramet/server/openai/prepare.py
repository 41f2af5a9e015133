"""From a request body to generations: sampling parameters under their native names, one generation per choice."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ramet.errors import InvalidRequest, Unsupported
from ramet.runtime.request import Generation, LogprobParams, SamplingParams
from ramet.runtime.sampling_params import parse_sampling_params
from ramet.server.openai.schema import ResponseFormat, SamplingFields
from ramet.server.server_context import ServerContext

SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "stop_token_ids",
    "stop_regex",
    "no_stop_trim",
    "ignore_eos",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "seed",
    "timeout_s",
)
ANY_OBJECT = '{"type":"object"}'


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, ready to run: `generations[i]` is choice i; `prompts[i // n]` is its prompt."""

    id: str
    rid: str
    created: int
    model: str
    generations: tuple[Generation, ...]
    n: int
    include_usage: bool
    continuous_usage: bool


async def prepare_call(
    context: ServerContext,
    body: SamplingFields,
    prompts: Sequence[Sequence[int]],
    *,
    prefix: str,
    max_new_tokens: int | None,
    logprobs: LogprobParams | None,
    constraint: Mapping[str, Any],
) -> Call:
    """`max_new_tokens` None: as many as the context holds. `constraint`: sampling parameters that the body does not say as they are."""
    n = body.n or 1
    unique = uuid.uuid4().hex
    rid = body.rid or f"{prefix}-{unique}"
    generations: list[Generation] = []
    limit = await context.token_limit() if max_new_tokens is None else 0
    for prompt in prompts:
        room = max(1, limit - len(prompt))
        sampling = sampling_of(context, body, room if max_new_tokens is None else max_new_tokens, constraint)
        generations += [_choice(body, prompt, sampling, logprobs, rid, len(generations) + i, i) for i in range(n)]
    if len(generations) == 1:
        generations = [replace(generations[0], request_id=rid)]
    options = body.stream_options
    return Call(
        id=f"{prefix}-{unique}",
        rid=rid,
        created=int(time.time()),
        model=context.model_name,
        generations=tuple(generations),
        n=n,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
    )


def check_common(context: ServerContext, body: SamplingFields) -> None:
    """Refuse what no text model here can do, and models that are not served."""
    context.check_model(body.model)
    if body.lora_path is not None:
        raise Unsupported("lora_path: LoRA adapters are not supported yet", param="lora_path")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream=true", param="stream_options")


def sampling_of(context: ServerContext, body: SamplingFields, max_new_tokens: int, constraint: Mapping[str, Any]) -> SamplingParams:
    values: dict[str, Any] = {}
    if context.config.engine.api.sampling_defaults == "model":
        values |= context.engine.generation_defaults
    values |= {name: value for name in SAME_NAME if (value := getattr(body, name)) is not None}
    values["max_new_tokens"] = max_new_tokens
    if body.min_tokens is not None:
        values["min_new_tokens"] = body.min_tokens
    if body.logit_bias:
        values["logit_bias"] = body.logit_bias
    values |= constraint
    return parse_sampling_params(values)


def constraint_of(body: SamplingFields) -> dict[str, str]:
    """What the answer must follow: regex, ebnf, json_schema or structural_tag, from the extensions or from response_format. A schema is
    enforced whether it says `strict` or not."""
    found = {name: source for name in ("regex", "ebnf") if (source := getattr(body, name)) is not None}
    if body.json_schema is not None:
        found["json_schema"] = _as_text(body.json_schema)
    if body.structural_tag is not None:
        found["structural_tag"] = _as_text(body.structural_tag)
    if body.response_format is not None:
        wanted = _response_constraint(body.response_format)
        given = [name for name in ("regex", "ebnf", "json_schema", "structural_tag") if getattr(body, name) is not None]
        if wanted and given:
            raise InvalidRequest(f"give either response_format or {given[0]}, not both", param="response_format")
        found |= wanted
    if len(found) > 1:
        raise InvalidRequest(f"{' and '.join(found)} are given; a reply follows one of them at most", param=list(found)[1])
    return found


def _response_constraint(wanted: ResponseFormat) -> dict[str, str]:
    if wanted.type == "json_object":
        return {"json_schema": ANY_OBJECT}
    if wanted.type == "structural_tag":
        return {"structural_tag": json.dumps(wanted.model_dump(exclude={"json_schema"}))}
    if wanted.type == "json_schema":
        if wanted.json_schema is None or wanted.json_schema.schema_ is None:
            raise InvalidRequest("response_format.json_schema.schema is missing", param="response_format.json_schema.schema")
        return {"json_schema": json.dumps(wanted.json_schema.schema_)}
    return {}


def _as_text(source: str | dict[str, Any]) -> str:
    return source if isinstance(source, str) else json.dumps(source)


def _choice(
    body: SamplingFields,
    prompt: Sequence[int],
    sampling: SamplingParams,
    logprobs: LogprobParams | None,
    rid: str,
    position: int,
    sample: int,
) -> Generation:
    """Choice `sample` of one prompt; each has a seed of its own, so that they differ and each can be repeated."""
    seed = None if sampling.seed is None else (sampling.seed + sample) % 2**64 if sample else sampling.seed
    return Generation(
        request_id=f"{rid}-{position}",
        input_ids=tuple(prompt),
        sampling=replace(sampling, n=1, seed=seed),
        logprobs=logprobs,
        priority=body.priority,
        cache_namespace=_cache_namespace(body.cache_salt, body.extra_key),
    )


def _cache_namespace(cache_salt: str | None, extra_key: str | None) -> str:
    """Both names ask for a cache of one's own; given together, they are one key."""
    return "\x1f".join(key for key in (extra_key, cache_salt) if key)
