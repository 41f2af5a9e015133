"""An executor without tensors: a paged store of tokens instead of keys and values, and a hash instead of a model.

Every token depends on the *whole sequence as it is read back through the page table*, so a page that was freed too early, shared
wrongly or never written changes the output, which `expected_output` computes without any pages. Plans that no executor could
run are refused with `InternalError`. For tests, and for measuring everything that is not the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ramet.errors import InternalError
from ramet.grammar.matcher import Matcher
from ramet.runtime.executor.executor import PendingResult
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, Capacity, ModelInfo, PageMove, PlanRow, RowResult, RowStart, StepResult, TokenMasks
from ramet.runtime.request import GREEDY_TEMPERATURE, LogprobParams, SamplingParams, TokenLogprob

Logits = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]
Hash = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NEVER = -1e9


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A deterministic "language model": logits are a hash of the sequence. `eos_probability`: how often the end comes next
    (0: never, unless a mask leaves nothing else)."""

    vocab_size: int = 512
    context_len: int = 8192
    eos_token_ids: tuple[int, ...] = (0,)
    eos_probability: float = 0.0

    def info(self) -> ModelInfo:
        return ModelInfo(
            name="fake",
            architecture="FakeForCausalLM",
            vocab_size=self.vocab_size,
            context_len=self.context_len,
            num_layers=1,
            num_kv_heads=1,
            head_dim=1,
            num_parameters=0,
            weight_bytes=0,
            kv_bytes_per_token=8,
            dtype="int64",
            eos_token_ids=self.eos_token_ids,
        )

    def prefix_hashes(self, tokens: Tokens) -> Hash:
        """One hash per prefix: element i covers tokens[: i + 1], each with its position."""
        positions = np.arange(1, len(tokens) + 1, dtype=np.uint64)
        return np.cumsum(_mix(tokens.astype(np.uint64) + _GOLDEN * positions), dtype=np.uint64)

    def logits(self, prefix_hash: np.uint64) -> Logits:
        """What follows a prefix: values between 0 and 8, end tokens far above or far below them."""
        noise = _mix(np.arange(self.vocab_size, dtype=np.uint64) * _GOLDEN + _mix(np.array([prefix_hash]))[0])
        logits = _unit(noise) * 8.0
        ends = _unit(_mix(np.array([prefix_hash ^ _GOLDEN])))[0] < self.eos_probability
        logits[list(self.eos_token_ids)] = 20.0 if ends else -20.0
        return logits

    def choose(self, logits: Logits, start: RowStart, num_out: int, allowed: npt.NDArray[np.bool_] | None) -> int:
        """Sample output token number `num_out`: the best one, or by seed and temperature (Gumbel noise)."""
        scores = logits.copy()
        if num_out < start.sampling.min_new_tokens:
            scores[list(start.stop_token_ids)] += _NEVER
        if allowed is not None:
            scores[~allowed] += 4 * _NEVER
        if not start.sampling.greedy:
            scores = scores / max(start.sampling.temperature, GREEDY_TEMPERATURE) + _gumbel(start.seed, num_out, self.vocab_size)
        return int(scores.argmax())


def expected_output(
    model: FakeModel,
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    *,
    seed: int = 0,
    stop_token_ids: Sequence[int] = (),
    matcher: Matcher | None = None,
) -> tuple[int, ...]:
    """What any correct scheduler must get from `FakeExecutor` for one request, computed with neither cache nor pages."""
    tokens = np.zeros(len(prompt_ids) + sampling.max_new_tokens, dtype=np.int64)
    tokens[: len(prompt_ids)] = prompt_ids
    start = RowStart(sampling, seed, None, tuple(prompt_ids), (), tuple(stop_token_ids))
    room = min(sampling.max_new_tokens, model.context_len - len(prompt_ids))
    for num_out in range(room):
        end = len(prompt_ids) + num_out
        logits = model.logits(model.prefix_hashes(tokens[:end])[-1])
        token = model.choose(logits, start, num_out, _allowed_by(matcher, model.vocab_size))
        tokens[end] = token
        if token in stop_token_ids and num_out >= sampling.min_new_tokens:
            room = num_out + 1
            break
        if matcher is not None and (not matcher.accept((token,)) or matcher.stopped):
            room = num_out + 1
            break
    return tuple(tokens[len(prompt_ids) : len(prompt_ids) + room].tolist())


@dataclass(slots=True)
class _Slot:
    """What the executor keeps per running request."""

    request_id: str
    start: RowStart
    pages: list[int]
    last_token: int = PENDING_TOKEN


@dataclass(slots=True)
class _Launched:
    """A step between its two halves: per row the tokens read back, up to the row's end."""

    plan: BatchPlan
    sequences: list[Tokens]


@dataclass(frozen=True, slots=True)
class FakePending:
    step: StepResult
    ready_at: float

    def result(self) -> StepResult:
        time.sleep(max(0.0, self.ready_at - time.monotonic()))
        return self.step


class FakeHostMemory:
    """Implements `HostMemory`: a token and its position are the whole of its KV."""

    def __init__(
        self, num_blocks: int, block_tokens: int, page_size: int, *, fingerprint: str = "fake", is_beside_pool: bool = False
    ) -> None:
        self.num_blocks, self.block_pages = num_blocks, block_tokens // page_size
        self.fingerprint, self.is_beside_pool = fingerprint, is_beside_pool
        self.bytes_per_second = 1e9
        self.stored = np.full((num_blocks, 2, block_tokens), -1, dtype=np.int64)

    @property
    def block_bytes(self) -> int:
        return int(self.stored[0].nbytes)

    def view(self, block: int) -> memoryview:
        return memoryview(self.stored[block].reshape(-1).view(np.uint8))


class FakeExecutor:
    """`Executor` over a `FakeModel`. A step takes `step_seconds` + `token_seconds` per token, on a clock that runs like a device's:
    steps queue up behind one another."""

    def __init__(
        self,
        capacity: Capacity,
        model: FakeModel | None = None,
        *,
        step_seconds: float = 0.0,
        token_seconds: float = 0.0,
        host_memory: FakeHostMemory | None = None,
    ) -> None:
        self.host_memory = host_memory
        self._model = model or FakeModel()
        self._capacity = capacity
        self._step_seconds = step_seconds
        self._token_seconds = token_seconds
        self._stored_tokens = np.full(capacity.num_tokens, -1, dtype=np.int64)
        self._stored_positions = np.full(capacity.num_tokens, -1, dtype=np.int64)
        self._slots: dict[int, _Slot] = {}
        self._launched: _Launched | None = None
        self._busy_until = 0.0

    @property
    def model(self) -> ModelInfo:
        return self._model.info()

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def launch(self, plan: BatchPlan) -> None:
        _demand(self._launched is None, "launch before the last step was sampled")
        _demand(bool(plan.rows or plan.moves), "a step without rows or moves")
        for move in plan.moves:
            self._move(move)
        ends: dict[int, int] = {}
        for row in plan.rows:
            _demand(ends.get(row.slot, row.start) == row.start, "two rows in one slot that do not follow each other")
            ends[row.slot] = row.end
        for row in plan.rows:
            self._update_slot(row)
        self._store(plan)
        self._launched = _Launched(plan, [self._read_back(row) for row in plan.rows])

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        launched = self._launched
        if launched is None or launched.plan is not plan:
            raise InternalError("illegal plan: sampled before it was launched")
        self._launched = None
        _demand((masks is not None) == (plan.num_masks > 0), "masks without constrained rows, or the other way round")
        rows = tuple(self._sample_row(row, tokens, masks) for row, tokens in zip(plan.rows, launched.sequences, strict=True))
        seconds = self._step_seconds + self._token_seconds * plan.num_tokens
        self._busy_until = max(self._busy_until, time.monotonic()) + seconds if seconds else 0.0
        return FakePending(StepResult(rows, seconds), self._busy_until)

    def close(self) -> None:
        self._slots.clear()

    def _move(self, move: PageMove) -> None:
        _demand(self.host_memory is not None, "pages are moved to where there is no memory")
        assert self.host_memory is not None
        size, block = self._capacity.page_size, self.host_memory.stored[move.block]
        _demand(not move.saves or len(move.pages) == self.host_memory.block_pages, "a part of a block is saved")
        places = (np.array(move.pages, dtype=np.int64)[:, None] * size + np.arange(size)).reshape(-1)
        inside = slice(move.first * size, (move.first + len(move.pages)) * size)
        if move.saves:
            block[:, inside] = self._stored_tokens[places], self._stored_positions[places]
        else:
            self._stored_tokens[places], self._stored_positions[places] = block[:, inside]

    def _update_slot(self, row: PlanRow) -> None:
        _demand(0 <= row.slot < self._capacity.max_running, f"slot {row.slot} does not exist")
        if row.reset is not None:
            self._slots[row.slot] = _Slot(row.request_id, row.reset, [])
        slot = self._slots.get(row.slot)
        if slot is None or slot.request_id != row.request_id:
            raise InternalError(f"illegal plan: slot {row.slot} was not reset for request {row.request_id}")
        _demand(row.first_page <= len(slot.pages), f"a gap in the page table of slot {row.slot}")
        _demand(all(0 <= page < self._capacity.num_pages for page in row.new_pages), "a page that does not exist")
        slot.pages[row.first_page : row.first_page + len(row.new_pages)] = row.new_pages
        _demand(bool(row.token_ids), "a row without tokens")
        _demand(row.end <= len(slot.pages) * self._capacity.page_size, f"slot {row.slot} has no page for position {row.end - 1}")

    def _store(self, plan: BatchPlan) -> None:
        """Write all rows' tokens, as a model writes all keys and values of a layer before it attends."""
        if not plan.rows:
            return
        places = [self._places(row)[row.start :] for row in plan.rows]
        everywhere = np.concatenate(places)
        _demand(len(np.unique(everywhere)) == len(everywhere), "two rows write to one place")
        for row, place in zip(plan.rows, places, strict=True):
            tokens = np.array(row.token_ids, dtype=np.int64)
            if row.token_ids[0] == PENDING_TOKEN:
                tokens[0] = self._slots[row.slot].last_token
            _demand(bool((tokens >= 0).all()), f"slot {row.slot} has no sampled token to go on from")
            self._stored_tokens[place] = tokens
            self._stored_positions[place] = np.arange(row.start, row.end)

    def _read_back(self, row: PlanRow) -> Tokens:
        places = self._places(row)
        written = np.array_equal(self._stored_positions[places], np.arange(row.end))
        _demand(written, f"request {row.request_id} reads KV that was never written, or not for its position")
        return self._stored_tokens[places]

    def _places(self, row: PlanRow) -> Tokens:
        positions = np.arange(row.end)
        size = self._capacity.page_size
        table = np.array(self._slots[row.slot].pages, dtype=np.int64)
        places: Tokens = table[positions // size] * size + positions % size
        return places

    def _sample_row(self, row: PlanRow, tokens: Tokens, masks: TokenMasks | None) -> RowResult:
        slot = self._slots[row.slot]
        wanted = slot.start.logprobs
        hashes = self._model.prefix_hashes(tokens)
        prompt_logprobs = self._prompt_logprobs(row, tokens, hashes, wanted)
        if not row.samples:
            return RowResult(prompt_logprobs=prompt_logprobs)
        logits = self._model.logits(hashes[-1])
        allowed = None
        if row.mask_row is not None and masks is not None:
            allowed = unpack_mask(masks.bits[row.mask_row], self._model.vocab_size)
        token = self._model.choose(logits, slot.start, row.end - len(slot.start.prompt_ids), allowed)
        slot.last_token = token
        logprobs = (_token_logprob(logits, token, wanted),) if wanted is not None else ()
        return RowResult((token,), logprobs, prompt_logprobs)

    def _prompt_logprobs(self, row: PlanRow, tokens: Tokens, hashes: Hash, wanted: LogprobParams | None) -> tuple[TokenLogprob, ...]:
        first = row.prompt_logprobs_from
        if first is None or wanted is None:
            return ()
        first = max(first, row.start)
        _demand(first == 0 or first > row.start, "a prompt logprob without the logits before it")
        found = [TokenLogprob(int(tokens[0]), None)] if first == 0 else []
        positions = range(max(first, 1), row.end)
        found += [_token_logprob(self._model.logits(hashes[p - 1]), int(tokens[p]), wanted) for p in positions]
        return tuple(found)


def unpack_mask(words: npt.NDArray[np.uint32], vocab_size: int) -> npt.NDArray[np.bool_]:
    """One row of `TokenMasks` as booleans."""
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
    return bits[:vocab_size].astype(np.bool_)


def _allowed_by(matcher: Matcher | None, vocab_size: int) -> npt.NDArray[np.bool_] | None:
    if matcher is None:
        return None
    words = np.zeros(-(-vocab_size // 32), dtype=np.uint32)
    matcher.fill_mask(words)
    return unpack_mask(words, vocab_size)


def _token_logprob(logits: Logits, token: int, wanted: LogprobParams) -> TokenLogprob:
    logprobs = logits - logits.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    best = np.argsort(-logprobs, kind="stable")[: wanted.top]
    return TokenLogprob(
        token,
        float(logprobs[token]),
        top=tuple((int(index), float(logprobs[index])) for index in best),
        chosen=tuple((index, float(logprobs[index])) for index in wanted.token_ids),
    )


def _gumbel(seed: int, num_out: int, size: int) -> npt.NDArray[np.float64]:
    """Noise that makes the best of "logits + noise" a sample of their softmax; the same for one seed and output position."""
    draw = _mix(np.array([seed % 2**63], dtype=np.uint64))[0] ^ np.uint64(num_out)
    noise = _mix(np.arange(size, dtype=np.uint64) * _GOLDEN + _mix(np.array([draw]))[0])
    gumbel: npt.NDArray[np.float64] = -np.log(-np.log(_unit(noise) * 0.999998 + 1e-6))
    return gumbel


def _mix(values: Hash) -> Hash:
    """splitmix64's finaliser: every bit of the input moves every bit of the output."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _unit(values: Hash) -> npt.NDArray[np.float64]:
    """64 random bits → [0, 1)."""
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise InternalError(f"illegal plan: {otherwise}")
