"""How a select ranks its choices, from each choice's token log-probabilities."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ramet.program.backend import ChoiceScore

Ranking = tuple[list[float], int]  # log-weight per choice, and the best


def _ranked(scores: list[float]) -> Ranking:
    return scores, max(range(len(scores)), key=scores.__getitem__)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def by_token_length(scores: Sequence[ChoiceScore]) -> Ranking:
    return _ranked([_mean(score.logprobs) for score in scores])


def by_unconditional_likelihood(scores: Sequence[ChoiceScore]) -> Ranking:
    return _ranked([_mean([c - u for c, u in zip(s.logprobs, s.unconditional, strict=True)]) for s in scores])


def by_greedy_tokens(scores: Sequence[ChoiceScore]) -> Ranking:
    """Position by position the best tokens survive; a choice that has ended counts with its mean."""
    longest = max(len(score.logprobs) for score in scores)
    rows = [[*s.logprobs, *[_mean(s.logprobs)] * (longest - len(s.logprobs))] for s in scores]
    alive = list(range(len(rows)))
    for position in range(longest):
        top = max(rows[each][position] for each in alive)
        alive = [each for each in alive if rows[each][position] == top]
    return [math.fsum(score.logprobs) for score in scores], alive[0]


METHODS: Mapping[str, tuple[str, Callable[[Sequence[ChoiceScore]], Ranking]]] = MappingProxyType(
    {
        "token_length_normalized": ("TokenLengthNormalized", by_token_length),
        "greedy_token_selection": ("GreedyTokenSelection", by_greedy_tokens),
        "unconditional_likelihood_normalized": ("UnconditionalLikelihoodNormalized", by_unconditional_likelihood),
    }
)


def decide(
    choices: Sequence[str], scores: Sequence[ChoiceScore], method: str, temperature: float, draw: random.Random
) -> tuple[str, dict[str, Any]]:
    """The best choice at temperature 0, else one drawn from softmax(score / temperature); with its meta info."""
    name, rank = METHODS[method]
    weights, index = rank(scores)
    if temperature > 0:
        index = draw.choices(range(len(choices)), softmax([weight / temperature for weight in weights]))[0]
    return choices[index], {
        "decision": choices[index],
        "method": name,
        "scores": weights,
        "probabilities": softmax([math.fsum(score.logprobs) for score in scores]),
        "normalized_prompt_logprobs": [_mean(score.logprobs) for score in scores],
        "input_token_logprobs": [[list(pair) for pair in zip(score.logprobs, score.token_ids, strict=True)] for score in scores],
    }


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
