"""Races: a sample of the distribution, filtered as elsewhere, the same for one seed and position, and nearly the same for two models."""

from __future__ import annotations

import pytest
import torch

from ramet.runtime.executor.draws import Draw, uniforms
from ramet.runtime.executor.race_choice import RaceChoice
from ramet.runtime.executor.random_choice import draw_tokens, kept_ranks
from ramet.runtime.executor.torch_choice import TorchChoice
from ramet.runtime.request import SamplingParams

CHOICE = RaceChoice(TorchChoice(torch.device("cpu")))


def drawn(logits: torch.Tensor, params: SamplingParams, count: int, first: int = 0) -> torch.Tensor:
    numbers = uniforms(range(first, first + count), [3] * count)
    return CHOICE.draw(logits.repeat(count, 1), range(count), [Draw(params, float(number)) for number in numbers])


def chi_squared(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * len(tokens)
    likely = expected > 5
    found = torch.bincount(tokens, minlength=len(probabilities)).double()
    rest = float(expected[~likely].sum()), float(found[~likely].sum())
    tail = (rest[1] - rest[0]) ** 2 / rest[0] if rest[0] > 1 else 0.0
    return float(((found - expected)[likely] ** 2 / expected[likely]).sum()) + tail


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_winner_is_a_sample(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(40) * 2
    logits[7] = float("-inf")
    tokens = drawn(logits, SamplingParams(temperature=temperature), 10000)
    assert chi_squared(tokens, (logits / temperature).double().softmax(-1)) < 39 + 5 * 8.8
    assert 7 not in tokens


FILTERS = [{"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 9, "top_p": 0.9}]


@pytest.mark.parametrize("limits", FILTERS, ids=str)
@pytest.mark.parametrize("vocab", [30, 700])
def test_filters_leave_what_they_leave_elsewhere(limits: dict[str, float], vocab: int) -> None:
    torch.manual_seed(1)
    logits, params = torch.randn(vocab) * 3, SamplingParams(temperature=1.3, **limits)
    numbers = uniforms(range(2500), [0] * 2500)
    expected = draw_tokens(logits.repeat(2500, 1), [Draw(params, float(number)) for number in numbers])
    found = drawn(logits, params, 2500)
    likely, ids = (logits / 1.3).double().softmax(-1).sort(descending=True, stable=True)
    kept = kept_ranks(likely[None], [Draw(params, 0.0)], vocab)[0]
    assert set(found.tolist()) <= set(ids[kept].tolist())
    shares = torch.bincount(expected, minlength=vocab).double() / 2500
    assert (torch.bincount(found, minlength=vocab).double() / 2500 - shares).abs().max() < 0.05


def test_filters_that_keep_more_than_the_candidates() -> None:
    tokens = drawn(torch.zeros(1500), SamplingParams(temperature=1.0, top_p=0.9), 1000)
    assert len(tokens.unique()) > 600 and tokens.max() < 1400


def test_a_row_depends_on_itself_alone() -> None:
    torch.manual_seed(2)
    logits, params = torch.randn(6, 500), SamplingParams(temperature=1.0, top_p=0.95)
    draws = [Draw(SamplingParams(temperature=0.9) if i % 2 else params, float(u)) for i, u in enumerate(uniforms(range(6), range(6)))]
    together = CHOICE.draw(logits.clone(), range(6), draws)
    alone = [int(CHOICE.draw(logits.clone(), [i], [draws[i]])) for i in range(6)]
    assert together.tolist() == alone


def test_two_models_agree_as_often_as_promised() -> None:
    torch.manual_seed(3)
    logits = torch.randn(800) * 2
    for noise in (0.05, 0.3):
        other = logits + noise * torch.randn(800)
        p, q = logits.double().softmax(-1), other.double().softmax(-1)
        distance = float((p - q).abs().sum() / 2)
        params = SamplingParams(temperature=1.0)
        agreed = float((drawn(logits, params, 2000) == drawn(other, params, 2000)).float().mean())
        assert (1 - distance) / (1 + distance) - 0.03 < agreed <= 1 - distance + 0.03
