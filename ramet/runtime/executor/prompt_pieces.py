"""A plan row as the pieces that are computed one by one, where the log-probabilities of its prompt are wanted or output was
forced. No torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ramet.runtime.attention.row_groups import MAX_SHORT_QUERY
from ramet.runtime.plan import PlanRow
from ramet.runtime.request import TokenLogprob

MAX_PROMPT_LOGITS = 256
"""Positions whose logits exist at one time for prompt logprobs: 256 x 128k x 4 bytes = 131 MB."""


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """A part of plan row `row_index` to compute in one pass. Its token `first_wanted + i` predicts `targets[i]`."""

    row_index: int
    row: PlanRow
    first_wanted: int = 0
    targets: tuple[int, ...] = ()


def split_prompt(row_index: int, row: PlanRow, limit: int = MAX_PROMPT_LOGITS) -> list[PromptPiece]:
    """The row as pieces of at most `limit` wanted logits; one piece, the row itself, where that suffices. The last piece samples
    if the row does; the first brings the row's pages."""
    first = first_predicting(row)
    if first is None:
        return [PromptPiece(row_index, row)]
    num_wanted = len(row.token_ids) - 1 - first
    cuts = [first + done for done in range(limit, num_wanted, limit)]
    if cuts and first:
        cuts.insert(0, first)  # the part that nobody asks about, in one pass
    bounds = [0, *cuts, len(row.token_ids)]
    return [_piece(row_index, row, first, low, high) for low, high in itertools.pairwise(bounds)]


def split_output(piece: PromptPiece, prompt_len: int, limit: int = MAX_SHORT_QUERY) -> list[PromptPiece]:
    """The piece as rows of one pass: the prompt, and output tokens in rows so short that attention treats each token as in a decode
    row. Then what a model says behind forced tokens does not depend on whether they were forced."""
    row = piece.row
    first = max(prompt_len - row.start, 0)
    if len(row.token_ids) <= (limit if first == 0 else first):
        return [piece]
    cuts = [0, *([first] if first else []), *range(first + limit, len(row.token_ids), limit), len(row.token_ids)]
    wanted_from = piece.first_wanted if piece.targets else len(row.token_ids)
    return [_part(piece, wanted_from, low, high) for low, high in itertools.pairwise(cuts)]


def without_context(row: PlanRow) -> list[TokenLogprob]:
    """The first token of a prompt has no logprob, but a place in the list."""
    wanted_from = row.prompt_logprobs_from
    return [TokenLogprob(row.token_ids[0], None)] if row.start == 0 and wanted_from is not None and wanted_from <= 0 else []


def _part(piece: PromptPiece, wanted_from: int, low: int, high: int) -> PromptPiece:
    first = max(wanted_from, low)
    targets = piece.targets[max(low - wanted_from, 0) : max(high - wanted_from, 0)]
    return PromptPiece(piece.row_index, _cut(piece.row, low, high), max(first - low, 0), targets)


def first_predicting(row: PlanRow) -> int | None:
    """Index of the row's first token whose logits say the logprob of the next one; None: no prompt logprobs in this row."""
    if row.prompt_logprobs_from is None:
        return None
    first = max(row.prompt_logprobs_from - 1 - row.start, 0)
    return first if first < len(row.token_ids) - 1 else None


def _piece(row_index: int, row: PlanRow, first: int, low: int, high: int) -> PromptPiece:
    wanted_from = max(first, low)
    targets = row.token_ids[wanted_from + 1 : high + 1] if wanted_from < high else ()
    return PromptPiece(row_index, _cut(row, low, high), max(first - low, 0), targets)


def _cut(row: PlanRow, low: int, high: int) -> PlanRow:
    return row._replace(
        token_ids=row.token_ids[low:high],
        start=row.start + low,
        new_pages=row.new_pages if low == 0 else (),
        samples=row.samples and high == len(row.token_ids),
        reset=row.reset if low == 0 else None,
    )
