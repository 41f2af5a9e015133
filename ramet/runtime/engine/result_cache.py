"""Whole generations remembered: sound only where a request has one answer, which `enable_deterministic_inference` promises.

Greedy and seeded requests are pure there: the same tokens, sampling, grammar and wishes for logprobs give the same output to the last bit.
A request without a seed is another one each time, and one with stop strings is ended by the front: neither is kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from hashlib import blake2b

from ramet.runtime.request import FinishKind, Request, RequestOutput, TokenLogprob

ResultKey = bytes


def result_key(request: Request) -> ResultKey | None:
    """All that the output of `request` depends on; None where it is not pure. Namespaces share no results, as they share no KV."""
    sampling = request.sampling
    if sampling.stop or sampling.stop_regex or (sampling.seed is None and not sampling.greedy):
        return None
    asked = replace(sampling, timeout_s=None, seed=None)
    seed = 0 if sampling.greedy else request.seed
    parts = (request.prompt_ids, asked, seed, request.stop_token_ids, request.grammar, request.logprobs, request.cache_namespace)
    return blake2b(repr(parts).encode(), digest_size=20).digest()


class Recording:
    """The outputs of one request, put together as they come."""

    def __init__(self, key: ResultKey) -> None:
        self.key = key
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob] = []

    def add(self, output: RequestOutput) -> RequestOutput | None:
        """The whole, once `output` is the last and the request ended as it should."""
        self._token_ids += output.token_ids
        self._logprobs += output.logprobs
        self._prompt_logprobs += output.prompt_logprobs
        if output.finish is None or output.finish.kind not in (FinishKind.STOP, FinishKind.LENGTH):
            return None
        return output._replace(
            token_ids=tuple(self._token_ids), logprobs=tuple(self._logprobs), prompt_logprobs=tuple(self._prompt_logprobs)
        )


class ResultCache:
    """Holds up to `max_tokens` tokens of prompts' logprobs and outputs; the least recently used result goes first. Thread-safe."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._results: OrderedDict[ResultKey, RequestOutput] = OrderedDict()
        self._num_tokens = 0
        self._lock = threading.Lock()
        self.num_hits = 0

    def find(self, key: ResultKey) -> RequestOutput | None:
        with self._lock:
            found = self._results.get(key)
            if found is not None:
                self._results.move_to_end(key)
                self.num_hits += 1
            return found

    def keep(self, key: ResultKey, output: RequestOutput) -> None:
        with self._lock:
            self._drop(key)
            self._results[key] = output
            self._num_tokens += _size(output)
            while self._num_tokens > self._max_tokens:
                self._drop(next(iter(self._results)))

    def clear(self) -> None:
        with self._lock:
            self._results.clear()
            self._num_tokens = 0

    def _drop(self, key: ResultKey) -> None:
        output = self._results.pop(key, None)
        if output is not None:
            self._num_tokens -= _size(output)


def _size(output: RequestOutput) -> int:
    return 1 + len(output.token_ids) + len(output.prompt_logprobs)
