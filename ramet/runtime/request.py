"""The vocabulary between front (text) and worker (tokens): what is asked, and what comes back.

Plain frozen data, no torch, no tokenizer; every type here crosses the process border through msgspec.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

GREEDY_TEMPERATURE = 1e-6
"""At or below this temperature sampling is greedy (SGLang's rule)."""

GrammarKind = Literal["regex", "json_schema", "ebnf", "structural_tag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens, with SGLang's names and defaults. Parsed and range-checked by `sampling_params.parse`."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    no_stop_trim: bool = False
    ignore_eos: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    n: int = 1
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    timeout_s: float | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature <= GREEDY_TEMPERATURE or self.top_k == 1


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """Source text of a constraint; the key under which its compiled form is cached."""

    kind: GrammarKind
    source: str


@dataclass(frozen=True, slots=True)
class LogprobParams:
    """`start_len`: first prompt position whose logprob is wanted (-1: output tokens only). `top`: alternatives per position.
    `token_ids`: logprobs of these ids at every position."""

    start_len: int = -1
    top: int = 0
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation, in tokens: exactly what the worker needs. `n > 1` and batches are already split by the engine.

    Times are `time.monotonic()` seconds, which all processes of one host share.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int  # always set: the engine draws one where the user gave none
    stop_token_ids: tuple[int, ...] = ()  # the user's and, unless ignore_eos, the model's
    grammar: GrammarSpec | None = None
    logprobs: LogprobParams | None = None
    priority: int = 0
    cache_namespace: str = ""  # requests of different namespaces never share KV
    group: str = ""  # requests of one program run carry its id
    path: int = 0  # generations on the longest chain of the program that begins here, itself included; 0: unknown
    length_bound: int | None = None  # most output tokens that the program can get, where that is less than max_new_tokens
    news_interval: int = 1  # output tokens that go to the front together; the first goes at once, with logprobs each does
    arrival_time: float = 0.0
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvHint:
    """What a program run tells of its KV. `pin`: it pauses, and goes on from these tokens. `free`: that was the last use of these tokens.
    `end`: the run is over. Hints change what is evicted first and nothing else; whoever ignores them is correct."""

    kind: Literal["pin", "free", "end"]
    run_id: str
    token_ids: tuple[int, ...] = ()
    cache_namespace: str = ""


class FinishKind(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finish:
    """The one terminal event of a request. `matched`: stop token id, or the stop string / regex that ended it. For abort and
    error, `message`, `status` and `code` say why (as in `ramet.errors`)."""

    kind: FinishKind
    matched: int | str | None = None
    message: str = ""
    status: int = 200
    code: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token under the model's distribution (temperature 1, before masks and penalties)."""

    token_id: int
    logprob: float | None  # None: the first prompt token has no left context
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first
    chosen: tuple[tuple[int, float], ...] = ()  # for LogprobParams.token_ids


class RequestOutput(NamedTuple):
    """What one step brought to one request. `token_ids` may hold several (forced or speculated) or none (prompt logprobs,
    abort). The counters are cumulative; the times are monotonic seconds, 0.0 until known. A tuple for the same reason as `PlanRow`."""

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    forced_tokens: int = 0
    num_retractions: int = 0
    scheduled_time: float = 0.0
    num_verified: int = 0  # steps that verified guesses
    guessed_tokens: int = 0
    right_guesses: int = 0


# The text side: what the server asks of the engine, and what the engine streams back.


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One generation, in text or tokens, before tokenisation. Exactly one of `text` and `input_ids` is set; `n` is already split."""

    request_id: str
    text: str | None = None
    add_special_tokens: bool = True  # of a text: what the tokenizer itself puts around it, usually a BOS
    input_ids: tuple[int, ...] | None = None
    sampling: SamplingParams = SamplingParams()
    logprobs: LogprobParams | None = None
    priority: int = 0
    cache_namespace: str = ""
    group: str = ""
    path: int = 0  # as in Request, like the next
    length_bound: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """News of one generation. `text` is new, complete UTF-8, and never holds a (possible beginning of a) stop string that will be
    trimmed; joined deltas are the whole output. The last one carries `finish`. Counters are cumulative; times are seconds."""

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    forced_tokens: int = 0
    num_retractions: int = 0
    num_verified: int = 0  # as in RequestOutput, like the next two
    guessed_tokens: int = 0
    right_guesses: int = 0
    queue_time: float = 0.0
    first_token_latency: float = 0.0
    e2e_latency: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Cumulative counters and momentary gauges of one worker; the source of /metrics, /server_info and log lines."""

    num_running: int = 0
    num_waiting: int = 0
    num_waiting_grammar: int = 0
    total_tokens: int = 0  # capacity of the pool
    used_tokens: int = 0  # held by running requests
    evictable_tokens: int = 0  # cached, nobody uses them
    pinned_tokens: int = 0
    available_tokens: int = 0  # free
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    generation_tokens_total: int = 0
    forced_tokens_total: int = 0
    prefill_tokens_total: int = 0  # prompt tokens computed, after retractions too
    possible_cached_tokens_total: int = 0  # what a cache that forgets nothing would have found
    evicted_tokens_total: int = 0
    num_retractions_total: int = 0
    num_steps_total: int = 0
    host_tokens: int = 0  # in the second tier's memory
    host_total_tokens: int = 0
    disk_tokens: int = 0  # in its files
    loaded_tokens_total: int = 0  # brought back from there
    disk_loaded_tokens_total: int = 0  # of these, from files
    saved_tokens_total: int = 0
    result_hits_total: int = 0  # requests answered whole from memory
    guessed_tokens_total: int = 0  # verified as speculation
    right_guesses_total: int = 0
    grammars_total: int = 0  # compiled or refused, and how long their requests waited for that, the wait for a compiler included
    grammar_seconds_total: float = 0.0
    masked_rows_total: int = 0  # rows of steps that a grammar constrained, and how long filling their masks took, beside the model
    mask_seconds_total: float = 0.0
    gen_throughput: float = 0.0  # tokens/s over the last log interval
    weight_bytes: int = 0
    kv_pool_bytes: int = 0
    resident_bytes: int = 0  # of the worker process: what of all that is in memory now
