"""From a /generate body to generations."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ramet.errors import InvalidRequest, RametError, Unsupported
from ramet.runtime.request import Generation, LogprobParams, SamplingParams
from ramet.runtime.sampling_params import parse_sampling_params
from ramet.server.native_schema import GenerateRequest
from ramet.server.openai.prepare import cache_namespace

REFUSED = {
    "lora_path": "LoRA adapters are not supported yet",
    "image_data": "the served model reads text only",
    "video_data": "the served model reads text only",
    "audio_data": "the served model reads text only",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """`is_list`: the reply is a list (a list was asked for, or n > 1)."""

    rid: str
    generations: tuple[Generation, ...]
    is_list: bool


def parse_batch(body: GenerateRequest, vocab_size: int) -> Batch:
    """Raises `InvalidRequest` or `Unsupported` with the field's name."""
    _refuse(body)
    prompts, is_batch = _prompts(body, vocab_size)
    sampling = _sampling(body, len(prompts))
    rids = _rids(body, len(prompts))
    is_list = is_batch or any(s.n > 1 for s in sampling)
    generations: list[Generation] = []
    for index, prompt in enumerate(prompts):
        generations += _samples(body, prompt, sampling[index], rids[index], index, len(prompts))
    if len({g.request_id for g in generations}) < len(generations):
        raise InvalidRequest("rid: the ids of a batch must differ", param="rid")
    rid = body.rid if isinstance(body.rid, str) else rids[0] if len(rids) == 1 else uuid.uuid4().hex
    return Batch(rid, tuple(generations), is_list)


def _refuse(body: GenerateRequest) -> None:
    for name, reason in REFUSED.items():
        if getattr(body, name) not in (None, [], ""):
            raise Unsupported(f"{name}: {reason}", param=name)


def _prompts(body: GenerateRequest, vocab_size: int) -> tuple[list[str | tuple[int, ...]], bool]:
    if (body.text is None) == (body.input_ids is None):
        raise InvalidRequest("give exactly one of text and input_ids", param="text")
    if body.text is not None:
        is_batch = isinstance(body.text, list)
        texts = body.text if isinstance(body.text, list) else [body.text]
        prompts: list[str | tuple[int, ...]] = list(texts)
        name = "text"
    else:
        given: list[Any] = list(body.input_ids or ())
        is_batch = not given or isinstance(given[0], list)
        prompts = [tuple(ids) for ids in (given if is_batch else [given])]
        name = "input_ids"
        _check_ids(prompts, vocab_size)
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InvalidRequest(f"{name}: an empty prompt gives the model nothing to continue", param=name)
    return prompts, is_batch


def _check_ids(prompts: Sequence[Any], vocab_size: int) -> None:
    for prompt in prompts:
        wrong = next((i for i in prompt if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(f"input_ids: token id {wrong} is outside 0 … {vocab_size - 1}", param="input_ids")


def _sampling(body: GenerateRequest, num_prompts: int) -> list[SamplingParams]:
    given = body.sampling_params
    if not isinstance(given, list):
        return [_parsed(given or {})] * num_prompts
    if len(given) != num_prompts:
        raise InvalidRequest(f"sampling_params: {len(given)} entries for {num_prompts} prompts", param="sampling_params")
    return [_parsed(entry) for entry in given]


def _parsed(values: dict[str, Any]) -> SamplingParams:
    try:
        return parse_sampling_params(values)
    except RametError as error:
        if error.param and not error.param.startswith("sampling_params"):
            error.param = f"sampling_params.{error.param}"
        raise


def _rids(body: GenerateRequest, num_prompts: int) -> list[str]:
    if isinstance(body.rid, list):
        if len(body.rid) != num_prompts:
            raise InvalidRequest(f"rid: {len(body.rid)} ids for {num_prompts} prompts", param="rid")
        return body.rid
    rid = body.rid or uuid.uuid4().hex
    return [rid] if num_prompts == 1 else [f"{rid}-{index}" for index in range(num_prompts)]


def _samples(
    body: GenerateRequest, prompt: str | tuple[int, ...], sampling: SamplingParams, rid: str, index: int, num_prompts: int
) -> list[Generation]:
    """The n generations of one prompt; each has a seed of its own, so that they differ and each can be repeated."""
    salt, key = _at(body, "cache_salt", index, num_prompts), _at(body, "extra_key", index, num_prompts)
    one = Generation(
        request_id=rid,
        text=prompt if isinstance(prompt, str) else None,
        input_ids=prompt if not isinstance(prompt, str) else None,
        sampling=replace(sampling, n=1),
        logprobs=_logprobs(body, index, num_prompts),
        priority=body.priority or 0,
        cache_namespace=cache_namespace(salt, key),
        group=body.group or "",
    )
    if sampling.n == 1:
        return [one]
    seeds = [None if sampling.seed is None else (sampling.seed + i) % 2**64 if i else sampling.seed for i in range(sampling.n)]
    return [replace(one, request_id=f"{rid}-{i}", sampling=replace(one.sampling, seed=seed)) for i, seed in enumerate(seeds)]


def _logprobs(body: GenerateRequest, index: int, num_prompts: int) -> LogprobParams | None:
    if not _at(body, "return_logprob", index, num_prompts):
        return None
    start_len = _at(body, "logprob_start_len", index, num_prompts)
    ids: list[Any] = list(body.token_ids_logprob or ())
    if ids and isinstance(ids[0], list):
        ids = _checked_len("token_ids_logprob", ids, num_prompts)[index]
    return LogprobParams(
        start_len=-1 if start_len is None else start_len,
        top=_at(body, "top_logprobs_num", index, num_prompts) or 0,
        token_ids=tuple(ids),
    )


def _at(body: GenerateRequest, name: str, index: int, num_prompts: int) -> Any:
    """The value of a field for one prompt of the batch."""
    value = getattr(body, name)
    return _checked_len(name, value, num_prompts)[index] if isinstance(value, list) else value


def _checked_len(name: str, values: list[Any], num_prompts: int) -> list[Any]:
    if len(values) != num_prompts:
        raise InvalidRequest(f"{name}: {len(values)} entries for {num_prompts} prompts", param=name)
    return values
