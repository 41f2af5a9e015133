"""The sampler against a slow numpy twin that follows the documented order word by word, and against exact distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.executor.cpu_choice import CpuChoice
from ramet.runtime.executor.cpu_penalties import CpuPenalties
from ramet.runtime.executor.draws import Draw, uniforms
from ramet.runtime.executor.sampler import Sampler
from ramet.runtime.executor.token_choice import RowArithmetic
from ramet.runtime.executor.torch_choice import TorchChoice, torch_arithmetic, unpack_masks
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.packed_weight import CpuContext
from ramet.runtime.plan import PENDING_TOKEN, PlanRow, RowStart, TokenMasks
from ramet.runtime.request import SamplingParams

CPU = torch.device("cpu")
VOCAB = 71
TORCH = TorchChoice(CPU)


class KernelChoice:
    """`CpuChoice` for tensors, in the memory where they lie."""

    def __init__(self, own: CpuChoice) -> None:
        self.own = own

    def forbid(self, logits: torch.Tensor, rows: Sequence[int], masks: Sequence[int], bits: npt.NDArray[np.uint32]) -> None:
        self.own.forbid(logits.numpy(), rows, masks, bits)

    def likeliest(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self.own.likeliest(logits.numpy(), rows))

    def draw(self, logits: torch.Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> torch.Tensor:
        return torch.from_numpy(self.own.draw(logits.contiguous().numpy(), rows, draws))


Choice = TorchChoice | KernelChoice
CHOICES: list[Choice] = [TORCH]
if cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
    CHOICES.append(KernelChoice(CpuChoice(CpuContext(2))))
by_every_choice = pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: type(choice).__name__)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """One request, ready to sample its next token."""

    params: SamplingParams
    seed: int = 7
    prompt: tuple[int, ...] = (1, 2, 3, 2)
    output: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    allowed: tuple[int, ...] | None = None

    def row(self, slot: int, mask_row: int | None = None) -> PlanRow:
        tokens = self.prompt + self.output
        start = RowStart(self.params, self.seed, None, self.prompt, self.output, self.stops)
        return PlanRow(f"r{slot}", slot, tokens, 0, 0, (), True, start, None, mask_row)


def sampler_of(vocab: int, choice: Choice) -> Sampler[Any]:
    """In torch; or in numpy around the kernels, as the CPU's executor has it."""
    if isinstance(choice, TorchChoice):
        return Sampler(vocab, torch_arithmetic(vocab, CPU))
    arithmetic: RowArithmetic[Any] = RowArithmetic(choice.own, CpuPenalties(vocab), np.array)
    return Sampler(vocab, arithmetic)


def sample(asked: Sequence[Asked], logits: torch.Tensor, choice: Choice = TORCH, sampler: Sampler[Any] | None = None) -> list[int]:
    sampler = sampler or sampler_of(logits.shape[1], choice)
    masked = [a for a in asked if a.allowed is not None]
    rows = [a.row(slot, None if a.allowed is None else masked.index(a)) for slot, a in enumerate(asked)]
    sampler.begin(rows)
    masks = masks_of([a.allowed or () for a in masked], logits.shape[1]) if masked else None
    tokens: list[int] = sampler.sample(rows, own_logits(choice, logits), masks).tolist()
    return tokens


def own_logits(choice: Choice, logits: torch.Tensor) -> Any:
    return logits.clone() if isinstance(choice, TorchChoice) else logits.clone().numpy()


def masks_of(allowed: Sequence[Sequence[int]], vocab: int) -> TokenMasks:
    bits = np.zeros((len(allowed), -(-vocab // 32)), dtype=np.uint32)
    for row, tokens in enumerate(allowed):
        for token in tokens:
            bits[row, token // 32] |= np.uint32(1 << (token % 32))
    return TokenMasks(bits)


# The slow twin.


def changed_logits(asked: Asked, logits: Floats) -> Floats:
    """Steps 1 to 4."""
    x, p = logits.astype(np.float64), asked.params
    for token in range(len(x)):
        count = asked.output.count(token)
        if count or token in asked.prompt:
            x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
        x[token] -= p.frequency_penalty * count + p.presence_penalty * (count > 0)
        if token in asked.stops and len(asked.output) < p.min_new_tokens:
            x[token] = -3e38
        if asked.allowed is not None and token not in asked.allowed:
            x[token] = -np.inf
        x[token] += p.logit_bias.get(token, 0.0)
    return x


def distribution(params: SamplingParams, x: Floats) -> Floats:
    """Step 5: probabilities [vocab] that a token is drawn with."""
    scaled = x / params.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    kept, before = np.zeros(len(p), dtype=bool), 0.0
    for rank, token in enumerate(np.argsort(-p, kind="stable")):
        within_k = params.top_k <= 0 or rank < params.top_k
        kept[token] = rank == 0 or (within_k and before <= params.top_p and p[token] >= params.min_p * p.max())
        before += p[token]
    return np.where(kept, p, 0.0) / p[kept].sum()


def chi_square_is_plausible(observed: Floats, expected: Floats) -> bool:
    """Pearson's statistic within 5 standard deviations of its mean; tokens expected fewer than 5 times are pooled."""
    rare = expected < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    used = expected > 0
    freedom = used.sum() - 1
    statistic = ((observed[used] - expected[used]) ** 2 / expected[used]).sum()
    return bool(observed[~used].sum() == 0 and abs(statistic - freedom) < 5 * np.sqrt(2 * max(freedom, 1)))


params_strategy = st.builds(
    SamplingParams,
    temperature=st.just(0.0),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7, -1.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.6, 0.5]),
    min_new_tokens=st.integers(0, 4),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-9, 9), max_size=3),
)
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=6).map(tuple)
asked_strategy = st.builds(
    Asked,
    params=params_strategy,
    prompt=tokens.filter(bool),
    output=tokens,
    stops=tokens,
    allowed=st.none() | tokens.filter(bool),
)


@by_every_choice
@given(asked=st.lists(asked_strategy, min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_greedy_tokens_after_every_change_of_the_logits_equal_the_twin(choice: Choice, asked: list[Asked], seed: int) -> None:
    logits = torch.randn(len(asked), VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    expected = [int(changed_logits(a, logits[i].numpy().astype(np.float64)).argmax()) for i, a in enumerate(asked)]
    assert sample(asked, logits, choice) == expected


FILTERS = {
    "plain": SamplingParams(temperature=1.0),
    "hot": SamplingParams(temperature=1.7),
    "cold": SamplingParams(temperature=0.3),
    "top_k": SamplingParams(temperature=1.2, top_k=5),
    "top_p": SamplingParams(temperature=1.2, top_p=0.8),
    "min_p": SamplingParams(temperature=1.2, min_p=0.1),
    "all": SamplingParams(temperature=1.4, top_k=20, top_p=0.9, min_p=0.02),
    "narrow_p": SamplingParams(temperature=1.0, top_p=0.01),
}


@by_every_choice
@pytest.mark.parametrize(("name", "vocab"), [*((name, VOCAB) for name in FILTERS), ("plain", 700), ("top_p", 700), ("min_p", 700)])
def test_draws_follow_the_exact_distribution(choice: Choice, name: str, vocab: int) -> None:
    """700 tokens: more than the first width of sorted candidates, so that flat distributions draw again from wider ones."""
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * (2.0 if vocab == VOCAB else 0.6)
    num = 1500
    numbers = uniforms([11] * num, range(num))
    drawn = choice.draw(logits.repeat(num, 1), range(num), [Draw(FILTERS[name], float(u)) for u in numbers])
    observed = np.bincount(drawn.numpy(), minlength=vocab).astype(np.float64)
    assert chi_square_is_plausible(observed, distribution(FILTERS[name], logits.double().numpy()) * num)


def test_chi_square_check_can_fail() -> None:
    expected = np.array([500.0, 300.0, 200.0])
    assert chi_square_is_plausible(np.array([510.0, 285.0, 205.0]), expected)
    assert not chi_square_is_plausible(np.array([400.0, 400.0, 200.0]), expected)


@by_every_choice
@pytest.mark.parametrize("name", FILTERS)
def test_a_draw_equals_the_inverse_cdf_of_the_twin(choice: Choice, name: str) -> None:
    """Unfiltered rows run through the vocabulary, filtered ones through the tokens by descending probability."""
    params, vocab = FILTERS[name], 700
    logits = torch.randn(40, vocab, generator=torch.Generator().manual_seed(5))
    numbers = uniforms(range(40), [3] * 40)
    drawn = choice.draw(logits.clone(), range(40), [Draw(params, float(u)) for u in numbers]).tolist()
    for row, (token, u) in enumerate(zip(drawn, numbers, strict=True)):
        p = distribution(params, logits[row].double().numpy())
        order = np.arange(vocab) if name in ("plain", "hot", "cold") else np.argsort(-p, kind="stable")
        cumulative = np.cumsum(p[order])
        exact = order[np.searchsorted(cumulative, u, side="right")]
        near_a_border = np.abs(cumulative - u).min() < 1e-6
        assert token == exact or near_a_border


mixed = [
    Asked(SamplingParams(temperature=0.0), seed=1),
    Asked(SamplingParams(temperature=1.0), seed=2),
    Asked(SamplingParams(temperature=0.8, top_k=3), seed=3),
    Asked(SamplingParams(temperature=1.5, top_p=0.7, repetition_penalty=1.3), seed=4, output=(5, 6, 5)),
    Asked(SamplingParams(temperature=1.1, min_p=0.05), seed=5, allowed=(4, 9, 33, 64)),
    Asked(SamplingParams(temperature=1.0, frequency_penalty=1.0), seed=6, output=(8,)),
    Asked(SamplingParams(temperature=2.0, top_p=0.999), seed=7),
]


@by_every_choice
@given(order=st.permutations(range(len(mixed))), size=st.integers(1, len(mixed)), seed=st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_a_row_draws_the_same_in_every_company(choice: Choice, order: list[int], size: int, seed: int) -> None:
    logits = torch.randn(len(mixed), 3000, generator=torch.Generator().manual_seed(seed))
    alone = [sample([asked], logits[i : i + 1], choice)[0] for i, asked in enumerate(mixed)]
    some = order[:size]
    assert sample([mixed[i] for i in some], logits[some], choice) == [alone[i] for i in some]


def test_seed_and_position_decide() -> None:
    logits = torch.zeros(1, VOCAB)

    def draws(seed: int) -> list[int]:
        return [sample([Asked(SamplingParams(), seed=seed, output=(1,) * n)], logits)[0] for n in range(30)]

    assert draws(1) == draws(1) != draws(2)
    assert len(set(draws(1))) > 15
    assert draws(-(2**63)) == draws(2**63)  # seeds count modulo 2**64


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    by_position, by_seed = uniforms([5] * 20000, range(20000)), uniforms(range(20000), [5] * 20000)
    for numbers in (by_position, by_seed):
        assert numbers.min() >= 0 and numbers.max() < 1
        counts = np.histogram(numbers, bins=50, range=(0, 1))[0].astype(np.float64)
        assert chi_square_is_plausible(counts, np.full(50, 400.0))
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(by_position, by_seed)[0, 1]) < 0.03


@by_every_choice
def test_penalties_count_tokens_as_they_come(choice: Choice) -> None:
    """Over steps: a sampled token (pending or named in the next plan, never twice), forced tokens, another request in the slot."""
    sampler = sampler_of(VOCAB, choice)
    asked = Asked(SamplingParams(temperature=0.0, frequency_penalty=1.0), prompt=(1, 2))
    logits = torch.zeros(1, VOCAB)
    logits[0, [10, 20]] = torch.tensor([2.5, 1.0])
    assert sample([asked], logits, choice, sampler) == [10]

    def step(tokens: tuple[int, ...], start: int) -> list[int]:
        row = PlanRow("r0", 0, tokens, start, 0, (), True)
        sampler.begin([row])
        return list(sampler.sample([row], own_logits(choice, logits), None).tolist())

    assert step((PENDING_TOKEN,), 2) == [10]  # 2.5 - 1 against 1
    assert step((10,), 3) == [20]  # 2.5 - 2 against 1
    assert step((20, 10, 10), 4) == [0]  # two forced tokens: 10 has 2.5 - 4, 20 has 1 - 1, no better than the first of all
    assert sample([asked], logits, choice, sampler) == [10]  # a new request starts from nothing


@by_every_choice
def test_state_of_many_penalised_slots_stays_apart(choice: Choice) -> None:
    asked = [
        Asked(SamplingParams(temperature=0.0, presence_penalty=2.0, repetition_penalty=2.0), prompt=(slot,), output=(slot + 20,))
        for slot in range(11)
    ]
    logits = torch.ones(11, VOCAB)
    expected = [int(changed_logits(a, np.ones(VOCAB)).argmax()) for a in asked]
    assert sample(asked, logits, choice) == expected


@by_every_choice
def test_stop_ids_come_back_where_the_grammar_allows_nothing_else(choice: Choice) -> None:
    params = SamplingParams(temperature=1.0, min_new_tokens=5)
    assert sample([Asked(params, stops=(3,), allowed=(3,))], torch.zeros(1, VOCAB), choice) == [3]
    assert sample([Asked(params, stops=(3,), allowed=(3, 4))], torch.zeros(1, VOCAB), choice) == [4]


@by_every_choice
def test_a_bias_cannot_revive_a_forbidden_token(choice: Choice) -> None:
    params = SamplingParams(temperature=1.0, logit_bias={5: 100.0})
    assert sample([Asked(params, allowed=(6,))], torch.zeros(1, VOCAB), choice) == [6]


@by_every_choice
def test_ids_beyond_the_vocabulary_are_harmless(choice: Choice) -> None:
    params = SamplingParams(temperature=0.0, min_new_tokens=5, logit_bias={VOCAB + 4: 100.0})
    assert sample([Asked(params, stops=(VOCAB + 9,))], torch.zeros(1, VOCAB), choice) == [0]


@given(st.lists(st.lists(st.booleans(), min_size=VOCAB, max_size=VOCAB), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_mask_bits_are_little_endian(wanted: list[list[bool]]) -> None:
    masks = masks_of([[i for i, allowed in enumerate(row) if allowed] for row in wanted], VOCAB)
    assert unpack_masks(masks.bits, VOCAB, CPU).tolist() == wanted


@by_every_choice
@pytest.mark.parametrize("vocab", [64, 71, 300])
def test_masks_and_the_first_of_equals(choice: Choice, vocab: int) -> None:
    allowed = [[vocab - 1, 3, 40], [], list(range(vocab))]
    logits = torch.zeros(4, vocab)
    logits[2, [9, vocab - 1]] = 1.0
    choice.forbid(logits, [0, 3, 2], [0, 1, 2], masks_of(allowed, vocab).bits)
    assert logits[0].isfinite().nonzero()[:, 0].tolist() == [3, 40, vocab - 1]
    assert not logits[3].isfinite().any() and logits[1:3].isfinite().all()
    assert choice.likeliest(logits, [0, 2, 1]).tolist() == [3, 9, 0]


@pytest.mark.parametrize("params", [*FILTERS.values(), SamplingParams(temperature=0.6, top_k=300), SamplingParams(top_p=0.9999)], ids=str)
def test_both_choices_draw_the_same_from_logits_like_a_models(params: SamplingParams) -> None:
    """Sharp and flat rows over a large vocabulary; two of two hundred may lie at a border of the sum."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(200, 5000, generator=generator) * torch.linspace(0.3, 4, 200)[:, None]
    logits[::7, 100:] = float("-inf")
    draws = [Draw(params, float(u)) for u in uniforms(range(200), [5] * 200)]
    drawn = [choice.draw(logits.clone(), range(200), draws) for choice in CHOICES]
    assert (drawn[0] != drawn[-1]).sum() <= 2
