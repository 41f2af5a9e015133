"""A generation as the user asked for it → a request in tokens that the worker can run as it is."""

from __future__ import annotations

import itertools
import random
import secrets
import threading
import time
from collections.abc import Iterable

from ramet.errors import ContextTooLong, InvalidRequest, Unsupported
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.generation_engine import Tokenizer
from ramet.runtime.engine.messages import Ready
from ramet.runtime.request import Generation, GrammarSpec, Request, SamplingParams

_SEED_BITS = 63
_WHOLE_INTERVAL = 32
"""Tokens that go to the front together where nobody waits for single ones: telling costs both processes time in every step."""


class RequestBuilder:
    """Tokenises, checks everything that can be checked without the scheduler, and draws seeds. Thread-safe."""

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer, ready: Ready) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._model = ready.model
        self._pool_tokens = ready.capacity.num_tokens
        self._serial = itertools.count()
        self._random = random.Random(config.model.random_seed or secrets.randbits(_SEED_BITS))
        self._lock = threading.Lock()
        self._eos_ids = tuple(dict.fromkeys([*ready.model.eos_token_ids, *tokenizer.eos_token_ids]))

    def build(self, generation: Generation, interval: int | None = 1) -> Request:
        """Raises `UserError`. The request carries a wire id of its own (see `messages.py`). `interval`: tokens that its user wants to get
        together; None: all."""
        arrival = time.monotonic()
        sampling = generation.sampling
        prompt_ids = self._prompt_ids(generation)
        self._check_lengths(len(prompt_ids), sampling.max_new_tokens)
        self._check_ids(sampling.stop_token_ids, "stop_token_ids")
        self._check_ids(sampling.logit_bias, "logit_bias")
        if generation.logprobs is not None:
            self._check_ids(generation.logprobs.token_ids, "token_ids_logprob")
        return Request(
            request_id=f"{generation.request_id}#{next(self._serial)}",
            prompt_ids=prompt_ids,
            sampling=sampling,
            seed=self._seed(sampling.seed),
            stop_token_ids=self._stop_token_ids(sampling),
            grammar=self._grammar(sampling),
            logprobs=generation.logprobs,
            priority=generation.priority,
            cache_namespace=generation.cache_namespace,
            group=generation.group,
            path=generation.path,
            length_bound=generation.length_bound,
            news_interval=1 if sampling.stop or sampling.stop_regex else interval or _WHOLE_INTERVAL,
            arrival_time=arrival,
            deadline=None if sampling.timeout_s is None else arrival + sampling.timeout_s,
        )

    def _prompt_ids(self, generation: Generation) -> tuple[int, ...]:
        if (generation.text is None) == (generation.input_ids is None):
            raise InvalidRequest("give exactly one of text and input_ids", param="text")
        if generation.text is not None:
            ids, param = tuple(self._tokenizer.encode(generation.text, add_special_tokens=generation.add_special_tokens)), "text"
        else:
            ids, param = generation.input_ids or (), "input_ids"
            self._check_ids(ids, param)
        if not ids:
            raise InvalidRequest("the prompt is empty; give at least one token", param=param)
        return ids

    def _check_lengths(self, prompt_len: int, max_new_tokens: int) -> None:
        wanted = prompt_len + max_new_tokens
        asked = f"the prompt has {prompt_len} tokens and max_new_tokens is {max_new_tokens}, together {wanted}"
        if wanted > self._model.context_len:
            raise ContextTooLong(f"{asked}, but the context holds {self._model.context_len}; shorten one of them", param="max_new_tokens")
        if wanted > self._pool_tokens:
            raise ContextTooLong(
                f"{asked}, but the KV cache holds {self._pool_tokens}; shorten one of them, or raise --max-total-tokens or "
                "--mem-fraction-static",
                param="max_new_tokens",
            )

    def _check_ids(self, ids: Iterable[int], param: str) -> None:
        size = self._model.vocab_size
        for token_id in ids:
            if not 0 <= token_id < size:
                raise InvalidRequest(f"{param}: token id {token_id} is outside the vocabulary (0 … {size - 1})", param=param)

    def _seed(self, given: int | None) -> int:
        if given is not None:
            return given
        with self._lock:
            return self._random.getrandbits(_SEED_BITS)

    def _stop_token_ids(self, sampling: SamplingParams) -> tuple[int, ...]:
        eos = () if sampling.ignore_eos else self._eos_ids
        return tuple(dict.fromkeys([*sampling.stop_token_ids, *eos]))

    def _grammar(self, sampling: SamplingParams) -> GrammarSpec | None:
        sources = {
            "regex": sampling.regex,
            "json_schema": sampling.json_schema,
            "ebnf": sampling.ebnf,
            "structural_tag": sampling.structural_tag,
        }
        given = [GrammarSpec(kind, source) for kind, source in sources.items() if source is not None]  # type: ignore[arg-type]
        if len(given) > 1:
            raise InvalidRequest(f"give at most one of {', '.join(spec.kind for spec in given)}", param=given[1].kind)
        if given and self._config.backend.grammar_backend == "none":
            raise Unsupported(f"{given[0].kind}: this engine was started with --grammar-backend none", param=given[0].kind)
        return given[0] if given else None
