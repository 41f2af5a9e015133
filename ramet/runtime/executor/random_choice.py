"""Drawing one token per row: a counter-based uniform number, a filtered distribution, an inverse CDF.

A row's token depends on its seed, its position and its logits, and on nothing else: the uniform number is a hash, not the
state of a generator, and which code path a row takes depends on its own parameters alone, never on its neighbours in the batch.

top_k, top_p and min_p are judged together on the distribution after temperature, tokens sorted by descending probability p:
rank r is kept iff r < top_k, and the ranks before it hold at most top_p, and p >= min_p * p(rank 0). Each condition keeps a
prefix of the ranks, so that their meeting is a prefix too, whatever the order they are named in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ramet.runtime.executor.draws import Draw, is_filtered
from ramet.runtime.executor.inputs import device_tensor
from ramet.runtime.request import SamplingParams

_WIDTHS = (256, 4096)
"""How many of the likeliest tokens are sorted before all of them are: on CPU a full sort costs more than ten times the model's head."""

_CPU_ROWS_AT_ONCE = 8  # keeps the float64 sums in cache


def draw_tokens(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Token ids [n] from logits [n, vocab] (temperature not yet applied; -inf: forbidden). `logits` is overwritten."""
    device, vocab = logits.device, logits.shape[1]
    logits.div_(_column([draw.params.temperature for draw in draws], device))
    tokens = torch.empty(len(draws), dtype=torch.int64, device=device)
    classes: dict[int, list[int]] = {}
    for row, draw in enumerate(draws):
        classes.setdefault(_first_width(draw.params, vocab, device), []).append(row)
    at_once = _CPU_ROWS_AT_ONCE if device.type == "cpu" else len(draws)
    for width, rows in classes.items():
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            index = device_tensor(part, np.int64, device)
            chosen = [draws[row] for row in part]
            here = logits if len(part) == len(draws) else logits[index]
            tokens[index] = _draw_unfiltered(here, chosen) if width == 0 else _draw_filtered(here, chosen, width)
    return tokens


def _first_width(params: SamplingParams, vocab: int, device: torch.device) -> int:
    """How many candidates to sort at first; 0: none, the row is not filtered."""
    if not is_filtered(params, vocab):
        return 0
    need = params.top_k if 0 < params.top_k < vocab else 1
    if device.type != "cpu":
        return vocab  # sorting is cheap there, asking whether the candidates sufficed is not
    return next((width for width in _WIDTHS if need <= width < vocab), vocab)


def _draw_unfiltered(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    cumulative = torch.softmax(logits, -1).cumsum(-1, dtype=torch.float64)
    return _invert(cumulative, draws)


def _draw_filtered(logits: torch.Tensor, draws: Sequence[Draw], width: int) -> torch.Tensor:
    device, vocab = logits.device, logits.shape[1]
    if width >= vocab:
        candidates, ids = logits.sort(dim=-1, descending=True, stable=True)
    else:
        candidates, ids = logits.topk(width, -1)
    probabilities = (candidates - logits.logsumexp(-1, keepdim=True)).double().exp_()
    kept = kept_ranks(probabilities, draws, vocab)
    tokens: torch.Tensor = ids.gather(1, _invert((probabilities * kept).cumsum(-1), draws)[:, None])[:, 0]
    if width < vocab:
        _redraw_where_too_narrow(tokens, kept, logits, draws, width, device)
    return tokens


def kept_ranks(probabilities: torch.Tensor, draws: Sequence[Draw], vocab: int) -> torch.Tensor:
    """Which candidates (sorted) survive; always the first."""
    device = probabilities.device
    top_k = _column([float(d.params.top_k if d.params.top_k > 0 else vocab) for d in draws], device)
    before = probabilities.cumsum(-1) - probabilities
    kept = torch.arange(probabilities.shape[1], device=device) < top_k
    # top_p = 1 keeps all: rounding may carry a sum past 1.
    kept &= before <= _column([d.params.top_p if d.params.top_p < 1.0 else 2.0 for d in draws], device)
    kept &= probabilities >= probabilities[:, :1] * _column([d.params.min_p for d in draws], device)
    kept[:, 0] = True
    return kept


def _redraw_where_too_narrow(
    tokens: torch.Tensor, kept: torch.Tensor, logits: torch.Tensor, draws: Sequence[Draw], width: int, device: torch.device
) -> None:
    """Rows that kept every candidate may have lost some; they draw again from more."""
    full = kept[:, -1].tolist()
    narrow = [row for row, draw in enumerate(draws) if full[row] and not 0 < draw.params.top_k <= width]
    if narrow:
        wider = next((w for w in _WIDTHS if width < w < logits.shape[1]), logits.shape[1])
        index = device_tensor(narrow, np.int64, device)
        tokens[index] = _draw_filtered(logits[index], [draws[row] for row in narrow], wider)


def _invert(cumulative: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """First index whose cumulative weight exceeds u * total: never one of weight zero."""
    target = cumulative[:, -1:] * _column([draw.uniform for draw in draws], cumulative.device)
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=cumulative.shape[1] - 1)


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return device_tensor(values, np.float64, device)[:, None]
