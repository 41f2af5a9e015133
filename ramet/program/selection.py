"""How `select` ranks its choices. A method turns each choice's token log-probabilities into a score and names the best.

The probabilities reported with the decision do not depend on the method: softmax over the choices of the summed log-probabilities,
which is the model's own distribution given that one of the choices comes next.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from ramet.program.backend import ChoiceScore


@dataclass(frozen=True, slots=True)
class Ranking:
    """`scores` are log-weights, one per choice (sampling draws from softmax(score / temperature)); `best` is the greedy decision."""

    scores: tuple[float, ...]
    best: int


@dataclass(frozen=True, slots=True)
class ChoicesDecision:
    decision: str
    meta_info: dict[str, Any]


class ChoicesMethod(Protocol):
    @property
    def requires_unconditional_logprobs(self) -> bool: ...

    def __call__(self, scores: Sequence[ChoiceScore]) -> Ranking: ...


@dataclass(frozen=True, slots=True)
class TokenLengthNormalized:
    """Mean log-probability per token, so that long choices are not punished for their length."""

    requires_unconditional_logprobs: bool = False

    def __call__(self, scores: Sequence[ChoiceScore]) -> Ranking:
        return _ranked([_mean(score.logprobs) for score in scores])


@dataclass(frozen=True, slots=True)
class UnconditionalLikelihoodNormalized:
    """Mean of log p(token | prompt) − log p(token): what the prompt adds, so that common phrases are not preferred."""

    requires_unconditional_logprobs: bool = True

    def __call__(self, scores: Sequence[ChoiceScore]) -> Ranking:
        return _ranked([_mean([c - u for c, u in zip(s.logprobs, s.unconditional, strict=True)]) for s in scores])


@dataclass(frozen=True, slots=True)
class GreedyTokenSelection:
    """Token by token, keep the choices whose next token is the most probable; a choice that has ended counts with its mean. For
    sampling, ancestral sampling over the choices: weights are the summed log-probabilities."""

    requires_unconditional_logprobs: bool = False

    def __call__(self, scores: Sequence[ChoiceScore]) -> Ranking:
        longest = max(len(score.logprobs) for score in scores)
        rows = [[*s.logprobs, *[_mean(s.logprobs)] * (longest - len(s.logprobs))] for s in scores]
        alive = list(range(len(rows)))
        for position in range(longest):
            top = max(rows[i][position] for i in alive)
            alive = [i for i in alive if rows[i][position] == top]
        return Ranking(tuple(math.fsum(score.logprobs) for score in scores), alive[0])


token_length_normalized = TokenLengthNormalized()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()
greedy_token_selection = GreedyTokenSelection()

METHODS: Mapping[str, ChoicesMethod] = MappingProxyType(
    {
        "token_length_normalized": token_length_normalized,
        "greedy_token_selection": greedy_token_selection,
        "unconditional_likelihood_normalized": unconditional_likelihood_normalized,
    }
)
"""By their names in compiled programs."""


def decide(
    choices: Sequence[str], scores: Sequence[ChoiceScore], method: ChoicesMethod, temperature: float, draw: random.Random
) -> ChoicesDecision:
    """Pick the best choice at temperature 0, else draw from softmax(score / temperature)."""
    ranking = method(scores)
    index = ranking.best
    if temperature > 0:
        index = draw.choices(range(len(choices)), softmax([score / temperature for score in ranking.scores]))[0]
    meta = {
        "decision": choices[index],
        "method": type(method).__name__,
        "scores": list(ranking.scores),
        "probabilities": softmax([math.fsum(score.logprobs) for score in scores]),
        "normalized_prompt_logprobs": [_mean(score.logprobs) for score in scores],
        "input_token_logprobs": [[list(pair) for pair in zip(score.logprobs, score.token_ids, strict=True)] for score in scores],
    }
    return ChoicesDecision(choices[index], meta)


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _ranked(scores: list[float]) -> Ranking:
    return Ranking(tuple(scores), max(range(len(scores)), key=scores.__getitem__))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
