"""The native format (SGLang's `/generate`): what is asked as generations, and deltas as reply dictionaries. Pure functions over data."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ramet import errors
from ramet.errors import InternalError, InvalidRequest, RametError, UserError
from ramet.runtime.engine.generation_engine import Tokenizer
from ramet.runtime.request import Delta, Finish, FinishKind, Generation, LogprobParams, TokenLogprob
from ramet.runtime.sampling_params import parse_sampling_params


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeCall:
    """One call as its user writes it. A list of prompts is a batch; over it, every field that may be a list is distributed."""

    text: str | Sequence[str] | None = None
    add_special_tokens: bool = True
    input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None
    sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    return_logprob: bool | Sequence[bool] | None = None
    logprob_start_len: int | Sequence[int] | None = None
    top_logprobs_num: int | Sequence[int] | None = None
    token_ids_logprob: Sequence[int] | Sequence[Sequence[int]] | None = None
    rid: str | Sequence[str] | None = None
    priority: int | None = None
    extra_key: str | Sequence[str] | None = None
    cache_salt: str | Sequence[str] | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Expansion:
    """`is_list`: the reply is a list, because a list was asked for or n > 1."""

    generations: tuple[Generation, ...]
    is_list: bool


def expand(call: NativeCall) -> Expansion:
    """Split batches and n > 1. Raises `InvalidRequest` with the field's name."""
    prompts, is_batch = _prompts(call)
    size = len(prompts)
    rids = _rids(call.rid, size)
    generations: list[Generation] = []
    for index, prompt in enumerate(prompts):
        asked = _at("sampling_params", call.sampling_params, index, size) or {}
        if not isinstance(asked, Mapping):
            raise InvalidRequest("sampling_params: expected an object or a list of objects", param="sampling_params")
        sampling = parse_sampling_params(asked)
        one = Generation(
            request_id=rids[index],
            text=prompt if isinstance(prompt, str) else None,
            add_special_tokens=call.add_special_tokens,
            input_ids=None if isinstance(prompt, str) else tuple(prompt),
            sampling=sampling,
            logprobs=_logprobs(call, index, size),
            priority=call.priority or 0,
            cache_namespace=_namespace(call, index, size),
            group=call.group,
        )
        generations += samples(one)
    if len({generation.request_id for generation in generations}) < len(generations):
        raise InvalidRequest("rid: the ids of a batch must differ", param="rid")
    return Expansion(tuple(generations), is_batch or len(generations) > size)


def samples(generation: Generation) -> list[Generation]:
    """The n generations that one asks for. Given seeds count up, so that the samples differ and each can be repeated."""
    sampling = generation.sampling
    if sampling.n == 1:
        return [generation]
    seeds = [None if sampling.seed is None else sampling.seed + index for index in range(sampling.n)]
    return [
        replace(generation, request_id=f"{generation.request_id}-{index}", sampling=replace(sampling, n=1, seed=seed))
        for index, seed in enumerate(seeds)
    ]


@dataclass(slots=True)
class NativeResult:
    """One generation's replies. `tokenizer` is given where logprob entries are to carry their token's text."""

    wanted: LogprobParams | None = None
    tokenizer: Tokenizer | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Delta | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        self.last = delta

    def reply(self) -> dict[str, Any]:
        """Everything so far."""
        assert self.last is not None, "a reply needs a delta"
        meta = meta_info(self.last) | self._logprob_fields(self.prompt_logprobs, self.logprobs)
        return {"text": self.text, "output_ids": list(self.token_ids), "meta_info": meta}

    def increment(self, delta: Delta) -> dict[str, Any]:
        """Only what `delta` brought."""
        meta = meta_info(delta) | self._logprob_fields(delta.prompt_logprobs, delta.logprobs)
        return {"text": delta.text, "output_ids": list(delta.token_ids), "meta_info": meta}

    def _logprob_fields(self, prompt: Sequence[TokenLogprob], output: Sequence[TokenLogprob]) -> dict[str, Any]:
        if self.wanted is None:
            return {}
        fields: dict[str, Any] = {
            "input_token_logprobs": [self._entry(entry.logprob, entry.token_id) for entry in prompt],
            "output_token_logprobs": [self._entry(entry.logprob, entry.token_id) for entry in output],
        }
        if self.wanted.top:
            fields["input_top_logprobs"] = [self._entries(entry.top) for entry in prompt]
            fields["output_top_logprobs"] = [self._entries(entry.top) for entry in output]
        if self.wanted.token_ids:
            fields["input_token_ids_logprobs"] = [self._entries(entry.chosen) for entry in prompt]
            fields["output_token_ids_logprobs"] = [self._entries(entry.chosen) for entry in output]
        return fields

    def _entries(self, pairs: Iterable[tuple[int, float]]) -> list[list[Any]] | None:
        """None where there is no distribution: at the first prompt token."""
        return [self._entry(logprob, token_id) for token_id, logprob in pairs] or None

    def _entry(self, logprob: float | None, token_id: int) -> list[Any]:
        text = None if self.tokenizer is None else self.tokenizer.decode([token_id], skip_special_tokens=False)
        return [logprob, token_id, text]


def meta_info(delta: Delta) -> dict[str, Any]:
    return {
        "id": delta.request_id,
        "finish_reason": None if delta.finish is None else finish_reason(delta.finish, delta.completion_tokens),
        "prompt_tokens": delta.prompt_tokens,
        "completion_tokens": delta.completion_tokens,
        "cached_tokens": delta.cached_tokens,
        "forced_tokens": delta.forced_tokens,
        "num_retractions": delta.num_retractions,
        "queue_time": delta.queue_time,
        "first_token_latency": delta.first_token_latency,
        "e2e_latency": delta.e2e_latency,
        **_speculation(delta),
    }


def _speculation(delta: Delta) -> dict[str, Any]:
    """SGLang's names; only where tokens were guessed. `spec_accept_length`: output tokens per step that verified."""
    if not delta.num_verified:
        return {}
    return {
        "spec_verify_ct": delta.num_verified,
        "spec_draft_token_num": delta.guessed_tokens,
        "spec_accept_token_num": delta.right_guesses,
        "spec_accept_rate": delta.right_guesses / delta.guessed_tokens,
        "spec_accept_length": 1 + delta.right_guesses / delta.num_verified,
    }


def finish_reason(finish: Finish, completion_tokens: int) -> dict[str, Any]:
    if finish.kind is FinishKind.STOP:
        return {"type": "stop", "matched": finish.matched}
    if finish.kind is FinishKind.LENGTH:
        return {"type": "length", "length": completion_tokens}
    return {"type": "abort", "message": finish.message, "status_code": finish.status, "err_type": finish.code}


def error_of(finish: Finish) -> RametError:
    """The exception that an error finish stands for."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RametError)]
    for kind in kinds:
        if kind.code is not None and kind.code == finish.code:
            return kind(finish.message)
    error: RametError = UserError(finish.message) if finish.status < 500 else InternalError(finish.message)
    error.status, error.code = finish.status, finish.code or None
    return error


def _prompts(call: NativeCall) -> tuple[Sequence[str | Sequence[int]], bool]:
    """(prompts, whether a batch was given). That each is legal is checked when it is submitted."""
    if (call.text is None) == (call.input_ids is None):
        raise InvalidRequest("give exactly one of text and input_ids", param="text")
    given: Any = call.text if call.text is not None else call.input_ids
    if call.text is not None and not (isinstance(given, str) or (_is_list(given) and all(isinstance(text, str) for text in given))):
        raise InvalidRequest("text: expected a string or a list of strings", param="text")
    if call.text is None and not _is_list(given):
        raise InvalidRequest("input_ids: expected a list of integers or a list of lists of integers", param="input_ids")
    is_batch = not isinstance(given, str) and (call.text is not None or bool(given and isinstance(given[0], Sequence)))
    prompts = list(given) if is_batch else [given]
    if not prompts:
        raise InvalidRequest("the batch is empty; give at least one prompt", param="text")
    return prompts, is_batch


def _is_list(given: object) -> bool:
    return hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, str | bytes | Mapping)


def _rids(given: str | Sequence[str] | None, size: int) -> list[str]:
    if given is not None and not isinstance(given, str):
        return [str(_at("rid", given, index, size)) for index in range(size)]
    rid = given or uuid.uuid4().hex
    return [rid] if size == 1 else [f"{rid}-{index}" for index in range(size)]


def _logprobs(call: NativeCall, index: int, size: int) -> LogprobParams | None:
    if not _at("return_logprob", call.return_logprob, index, size):
        return None
    ids: Any = call.token_ids_logprob or ()
    if ids and isinstance(ids[0], Sequence):
        ids = _at("token_ids_logprob", ids, index, size)
    start_len = _at("logprob_start_len", call.logprob_start_len, index, size)
    top = _at("top_logprobs_num", call.top_logprobs_num, index, size)
    return LogprobParams(-1 if start_len is None else start_len, top or 0, tuple(ids))


def _namespace(call: NativeCall, index: int, size: int) -> str:
    """Both names ask for a cache of one's own; given together, they are one key."""
    keys = (_at("extra_key", call.extra_key, index, size), _at("cache_salt", call.cache_salt, index, size))
    return "\x1f".join(key for key in keys if key)


def _at(name: str, value: Any, index: int, size: int) -> Any:
    """A field's value for one prompt: its own where a list was given, else the one for all."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        return value
    if len(value) != size:
        raise InvalidRequest(f"{name}: {len(value)} entries for {size} prompts", param=name)
    return value[index]
