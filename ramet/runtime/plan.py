"""The vocabulary between scheduler and executor: what one step computes, and what it brought. No torch.

Scheduler and executor share only these types. A plan carries *changes* (new tokens, new pages), so that its size
does not grow with the length of the sequences; the executor keeps one row of state per `slot`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ramet.runtime.request import LogprobParams, SamplingParams, TokenLogprob

if TYPE_CHECKING:  # the front, which starts the worker, has no other use for it
    import numpy as np
    import numpy.typing as npt

PENDING_TOKEN = -1
"""In `PlanRow.token_ids`: "the token that this slot sampled last". It lets step n+1 be planned before step n's tokens are known."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Numbers that scheduler, config and front need of a model; shapes are per whole model, not per rank."""

    name: str
    architecture: str
    vocab_size: int  # width of the logits (may exceed the tokenizer's)
    context_len: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    dtype: str
    eos_token_ids: tuple[int, ...] = ()


def most_sampling_rows(max_running: int) -> int:
    """Of one step: guesses sample too, beside few requests."""
    return max(max_running, 64)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the executor can hold: `num_pages` pages of `page_size` tokens, `max_running` slots."""

    num_pages: int
    page_size: int
    max_running: int

    @property
    def num_tokens(self) -> int:
        return self.num_pages * self.page_size


@dataclass(frozen=True, slots=True)
class RowStart:
    """Sent with the first row of a request in a slot (also when it comes back after a retraction): resets the slot's state."""

    sampling: SamplingParams
    seed: int
    logprobs: LogprobParams | None
    prompt_ids: tuple[int, ...]  # for repetition penalty; the original prompt
    output_ids: tuple[int, ...] = ()  # already generated before a retraction; counts for penalties and for the seed's position
    stop_token_ids: tuple[int, ...] = ()  # forbidden while fewer than min_new_tokens are out


class PlanRow(NamedTuple):
    """One request's share of a step: compute KV of `token_ids` at positions start … start+len-1, maybe sample after the last.

    `new_pages` are written to the slot's page table at index `first_page`. Token i of the sequence lives in page
    `table[i // page_size]` at offset `i % page_size`. Prompt logprobs are wanted for the token at position p of this row
    exactly where `prompt_logprobs_from <= p` (the logits at p-1 are needed: a row whose first position needs one is
    always planned to start at least one token before it).

    A tuple, since there is one per running request and step: it is made in a quarter of the time of a frozen dataclass.
    """

    request_id: str
    slot: int
    token_ids: tuple[int, ...]  # PENDING_TOKEN may stand first; what a head guesses from, also behind
    start: int
    first_page: int
    new_pages: tuple[int, ...]
    samples: bool  # False: a prompt chunk that is not the last
    reset: RowStart | None = None
    prompt_logprobs_from: int | None = None
    mask_row: int | None = None  # row in TokenMasks.bits; None: unconstrained

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


class PageMove(NamedTuple):
    """A copy between the pool and host memory (`HostMemory`): of `pages`, which are those of block `block` from its page number `first` on.
    To the block where it `saves` (all of its pages then), else from it."""

    saves: bool
    block: int
    first: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One step. Rows of prefill and decode are mixed freely; decode rows have one token (or more, when tokens are forced). A slot has
    several rows where tokens are guessed: each begins where the one before it ends, none but the first may bring a reset or a
    PENDING_TOKEN, and the next step does not begin with a PENDING_TOKEN for this slot. `moves` are done first, in this order; a step may
    have nothing else."""

    step: int
    rows: tuple[PlanRow, ...]
    num_masks: int = 0
    moves: tuple[PageMove, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """`bits[row, word]`: little-endian bit b of word w allows token 32*w + b. One row per constrained PlanRow."""

    bits: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class RowResult:
    """`token_ids`: what this row sampled ([] where `samples` is False). `logprobs` is parallel to it when asked for."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """`rows` is parallel to `BatchPlan.rows`. `seconds`: device time of the step. `ran`: False for a step that failed, somewhere."""

    rows: tuple[RowResult, ...]
    seconds: float = 0.0
    ran: bool = True
