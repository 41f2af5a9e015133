"""Which rows of a step share one batched matrix product. Plain Python: it runs once per step, not per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SHORT_QUERY = 16
"""Rows with at most this many new tokens (decode, forced tokens) are batched; longer ones (prompt chunks) run one by one."""

_FREE_PADDING = 256  # padded tokens that cost less than the dozen calls of one more group
_PADDING_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows, in ascending order, that all bring `query_len` tokens; `kv_len` is the longest of their lengths."""

    rows: tuple[int, ...]
    query_len: int
    kv_len: int


def group_short_rows(query_lens: Sequence[int], kv_lens: Sequence[int], *, max_tokens: int) -> list[RowGroup]:
    """Partition the rows with 1 … MAX_SHORT_QUERY new tokens so that each group pads little and gathers at most `max_tokens`
    tokens (one row may exceed that alone)."""
    by_query_len: dict[int, list[int]] = {}
    for row, query_len in enumerate(query_lens):
        if 0 < query_len <= MAX_SHORT_QUERY:
            by_query_len.setdefault(query_len, []).append(row)
    groups: list[RowGroup] = []
    for query_len, rows in by_query_len.items():
        longest_first = sorted(rows, key=lambda row: -kv_lens[row])
        groups += [RowGroup(tuple(sorted(part)), query_len, kv_lens[part[0]]) for part in _split(longest_first, kv_lens, max_tokens)]
    return groups


def _split(longest_first: list[int], kv_lens: Sequence[int], max_tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    padding = useful = 0
    for row in longest_first:
        longest = kv_lens[parts[-1][0]] if parts else 0
        padding += longest - kv_lens[row]
        useful += kv_lens[row]
        if not parts or padding > _FREE_PADDING + _PADDING_SHARE * useful or longest * (len(parts[-1]) + 1) > max_tokens:
            parts.append([])
            padding, useful = 0, kv_lens[row]
        parts[-1].append(row)
    return parts
