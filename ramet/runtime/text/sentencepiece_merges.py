"""SentencePiece's BPE as ranked merges: it joins, again and again, the neighbours whose union has the best score, leftmost first."""

from __future__ import annotations

from collections.abc import Mapping


def ranked_merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first. Scores are the pieces that may be built by merging.

    Splits of one piece share a rank in SentencePiece and compete only inside periodic text ("aa"+"a" against "a"+"aa"), where its
    leftmost-first order leaves the longer piece on the left; so that split comes first here.
    """
    candidates: list[tuple[float, int, int, str, str]] = []
    for order, (piece, score) in enumerate(scores.items()):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                candidates.append((-score, order, -cut, left, right))
    candidates.sort()
    return [(left, right) for *_, left, right in candidates]
