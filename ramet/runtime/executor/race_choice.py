"""Drawing a token as the winner of a race: argmax over tokens of log p(token) + Gumbel noise, the noise a hash of seed, position and token.

The winner is a sample of p like that of `random_choice`, but another one for the same seed. What it is for: two models that race with the
same noise agree with probability (1 - d) / (1 + d) at least, where d is half the sum of |p - q| (Daliri, Musco and Suresh, arXiv
2408.07978), so that a draft model's guesses are right nearly as often as rejection sampling accepts them. One uniform number that falls
into both cumulative distributions agrees far less often: it misses the whole tail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ramet.runtime.executor.draws import Draw, is_filtered
from ramet.runtime.executor.inputs import device_tensor
from ramet.runtime.executor.random_choice import kept_ranks
from ramet.runtime.executor.token_choice import TokenChoice
from ramet.runtime.executor.torch_choice import rows_of

_CANDIDATES = 512
"""Likeliest tokens that are looked at before all are sorted, on a CPU."""
_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class RaceChoice:
    """Implements `TokenChoice`: draws by races, and leaves the rest to another one."""

    def __init__(self, other: TokenChoice[torch.Tensor]) -> None:
        self._other = other

    def forbid(self, logits: torch.Tensor, rows: Sequence[int], masks: Sequence[int], bits: npt.NDArray[np.uint32]) -> None:
        self._other.forbid(logits, rows, masks, bits)

    def likeliest(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return self._other.likeliest(logits, rows)

    def draw(self, logits: torch.Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> torch.Tensor:
        device = logits.device
        scores = rows_of(logits, rows) / device_tensor([draw.params.temperature for draw in draws], np.float32, device)[:, None]
        filtered = [i for i, draw in enumerate(draws) if is_filtered(draw.params, scores.shape[1])]
        if filtered:
            index = device_tensor(filtered, np.int64, device)
            scores[index] = _without_tail(scores[index], [draws[i] for i in filtered])
        keys = device_tensor([int(draw.uniform * 2.0**52) for draw in draws], np.int64, device)
        return (scores + gumbel_noise(keys, scores.shape[1])).argmax(-1)


def gumbel_noise(keys: torch.Tensor, size: int) -> torch.Tensor:
    """[n] int64 keys → [n, size] float64, two rounds of the finaliser of SplitMix64 per number."""
    tokens = torch.arange(1, size + 1, device=keys.device)
    bits = _mixed(_mixed(keys * _GOLDEN)[:, None] + tokens * _GOLDEN)
    uniform = (((bits >> 12) & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52
    return uniform.log_().neg_().log_().neg_()


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, count: int) -> torch.Tensor:
    """To the right, zeros from the left."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _without_tail(scores: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """-inf for what top_k, top_p and min_p leave out."""
    vocab, log_total = scores.shape[1], scores.logsumexp(-1, keepdim=True)
    width = min(_CANDIDATES, vocab) if scores.device.type == "cpu" else vocab
    found, ids = scores.topk(width, -1)
    kept = kept_ranks((found - log_total).double().exp_(), draws, vocab)
    if width < vocab and bool(kept[:, -1].any()):
        found, ids = scores.sort(dim=-1, descending=True, stable=True)
        kept = kept_ranks((found - log_total).double().exp_(), draws, vocab)
    return torch.full_like(scores, float("-inf")).scatter_(1, ids, found.masked_fill(~kept, float("-inf")))
