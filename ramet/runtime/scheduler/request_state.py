"""One request inside the scheduler: where it is in its life, and how far it has come.

                ┌────────────── RETRACTED ◄──────┬─────────────┐
                │                                │             │
WAITING_GRAMMAR ─► WAITING ─► PREFILLING ─► DECODING           │
       │              │           │    └────────┼──────────────┘
       └──────────────┴───────────┴─────────────┴──► FINISHED
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from ramet.errors import InternalError
from ramet.runtime.cache.lease import Lease
from ramet.runtime.cache.radix_tree import TokenArray
from ramet.runtime.request import Request
from ramet.runtime.scheduler.contained_matcher import ContainedMatcher


class Phase(StrEnum):
    WAITING_GRAMMAR = "waiting for its grammar"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    RETRACTED = "retracted"
    FINISHED = "finished"


_NEXT: dict[Phase, tuple[Phase, ...]] = {
    Phase.WAITING_GRAMMAR: (Phase.WAITING, Phase.FINISHED),
    Phase.WAITING: (Phase.PREFILLING, Phase.FINISHED),
    Phase.PREFILLING: (Phase.DECODING, Phase.RETRACTED, Phase.FINISHED),
    Phase.DECODING: (Phase.RETRACTED, Phase.FINISHED),
    Phase.RETRACTED: (Phase.PREFILLING, Phase.FINISHED),
    Phase.FINISHED: (),
}


class RequestState:
    """Positions are those of the sequence prompt + output. `num_planned` runs ahead of `num_computed` by what is in flight, and
    `num_known` (prompt and output so far) may run ahead of both: output that a grammar forces is known before it is computed.

    0 ……… num_computed ……… num_planned ……… num_known
      KV is in the pages    KV is on its way   the next row samples behind this
    """

    __slots__ = (
        "admissions_before",
        "arrival",
        "cached_tokens",
        "epoch",
        "guessed",
        "guessed_from",
        "is_decoding",
        "is_finished",
        "is_fresh",
        "is_guessed",
        "lease",
        "loaded_tokens",
        "logprobs_next",
        "matcher",
        "max_outputs",
        "num_computed",
        "num_forced",
        "num_guessed",
        "num_matched",
        "num_pages_sent",
        "num_planned",
        "num_retractions",
        "num_right",
        "num_sent",
        "num_verified",
        "output_ids",
        "peeked",
        "phase",
        "promised",
        "prompt_len",
        "queue_ahead",
        "request",
        "rows_in_flight",
        "scheduled_time",
        "slot",
        "tokens",
    )

    def __init__(self, request: Request, arrival: int, max_outputs: int, phase: Phase) -> None:
        self.request = request
        self.arrival = arrival  # serial number: the order of fcfs
        self.phase = phase
        self.is_decoding = self.is_finished = False  # follow `phase`: asked for every row of every step
        self.prompt_len = len(request.prompt_ids)
        self.max_outputs = max_outputs  # what max_new_tokens and the context leave
        self.tokens: TokenArray = np.array(request.prompt_ids, dtype=np.int32)  # what a prefill computes
        self.output_ids: list[int] = []
        self.matcher: ContainedMatcher | None = None
        self.lease: Lease | None = None
        self.slot = -1
        self.num_planned = 0
        self.num_computed = 0
        self.num_matched = 0  # of these, found in the cache by the current run
        self.promised = 0  # what num_known will be, at least, when the rows in flight have brought their tokens
        self.rows_in_flight = 0
        self.num_pages_sent = 0  # of the slot's page table on the executor
        self.is_fresh = True  # the next row resets the slot
        self.epoch = 0  # counts retractions: a row of an older epoch left no KV behind
        wanted = request.logprobs.start_len if request.logprobs is not None else -1
        # First position, up to num_known, whose logprob no row in flight will bring: it comes when the token is computed.
        self.logprobs_next = wanted if 0 <= wanted < self.prompt_len else None
        self.is_guessed = False  # whether its next tokens are guessed
        self.guessed: tuple[int, ...] = ()  # tokens of rows in flight that may be wrong, at guessed_from and behind it
        self.guessed_from = 0
        self.num_verified = self.num_guessed = self.num_right = 0  # steps that verified guesses, guesses, right ones
        self.num_forced = 0  # output tokens that the grammar wrote
        self.num_sent = 0  # output tokens that have left the scheduler
        self.cached_tokens = 0
        self.loaded_tokens = 0  # of these, from the second tier
        self.num_retractions = 0
        self.scheduled_time = 0.0
        self.queue_ahead = 0  # requests that waited when this one came
        self.admissions_before = 0  # admissions of the scheduler until then
        self.peeked = (-1, 0)  # (version of the tree, cached prefix length then)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def prefill_end(self) -> int:
        return len(self.tokens)

    @property
    def most_outputs(self) -> int:
        """`max_outputs`, or what the program knows to be less."""
        bound = self.request.length_bound
        return self.max_outputs if bound is None else min(self.max_outputs, bound)

    @property
    def num_outputs(self) -> int:
        return len(self.output_ids)

    @property
    def num_known(self) -> int:
        return self.prompt_len + len(self.output_ids)

    @property
    def is_running(self) -> bool:
        return self.phase in (Phase.PREFILLING, Phase.DECODING)

    @property
    def may_sample_again(self) -> bool:
        """False once the tokens out and on their way reach the length limit."""
        return max(self.num_known, self.promised) - self.prompt_len < self.max_outputs

    @property
    def reusable(self) -> TokenArray:
        """What a cache match may cover: at least one token is computed, and every logit that a logprob needs."""
        limit = len(self.tokens) - 1
        if self.logprobs_next is not None:
            limit = min(limit, max(self.logprobs_next - 1, 0))
        return self.tokens[:limit]

    def move(self, phase: Phase) -> None:
        if phase not in _NEXT[self.phase]:
            raise InternalError(f"request {self.request_id} cannot go from '{self.phase}' to '{phase}'")
        self.phase = phase
        self.is_decoding = phase is Phase.DECODING
        self.is_finished = phase is Phase.FINISHED

    def start(self, lease: Lease, slot: int, num_loaded: int = 0) -> None:
        """Begin, or begin again, on `slot` with what the cache had, and `num_loaded` tokens more that the second tier brings on the way."""
        self.move(Phase.PREFILLING)
        self.lease, self.slot = lease, slot
        self.num_computed = lease.num_shared
        self.num_planned = self.num_matched = lease.num_shared + num_loaded
        self.num_pages_sent = 0
        self.is_fresh = True

    def stop_running(self, phase: Phase) -> None:
        """Leave the slot: for good, or (RETRACTED) to come back with prompt and output as the new prefill."""
        self.move(phase)
        self.lease, self.slot = None, -1
        if phase is Phase.RETRACTED:
            self.epoch += 1
            self.num_retractions += 1
            self.extend_prefill()

    def extend_prefill(self) -> None:
        """The prefill of a request that does not run covers all output so far, made before a retraction or forced at the start."""
        self.tokens = self.sequence()
        self.peeked = (-1, 0)

    def known_tokens(self, start: int, end: int) -> tuple[int, ...]:
        """Positions start … end-1, all of the prefill or all of the output."""
        if end <= len(self.tokens):
            return tuple(self.tokens[start:end].tolist())
        return tuple(self.output_ids[start - self.prompt_len : end - self.prompt_len])

    def computed_tokens(self) -> TokenArray:
        """The tokens whose KV is in the lease's pages."""
        return self.sequence()[: self.num_computed]

    def sequence(self) -> TokenArray:
        return np.concatenate((self.tokens[: self.prompt_len], np.array(self.output_ids, dtype=np.int32)))
