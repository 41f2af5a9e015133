"""Fairness between program runs: who had much of the machine lately stands behind who had little."""

from __future__ import annotations

QUANTUM_TOKENS = 1024
"""Up to about this much is nothing: the order of the policy holds between runs that differ by less."""
_HALF_LIFE_TOKENS = 64 * QUANTUM_TOKENS
_MAX_RUNS = 4096


class FairShares:
    """Tokens granted to each run; what was granted counts half when 64 quanta more were granted to anybody.

    Ranks are logarithmic: a run goes behind another one when it had about twice as much. A run that comes new has rank 0, so a run with a
    thousand forks delays it by one admission, not by a thousand. What waits in a low rank is bounded by the decay of the high ones.
    """

    def __init__(self) -> None:
        self._granted: dict[str, tuple[float, float]] = {}  # (tokens, total when they were counted)
        self._total = 0.0

    def charge(self, run_id: str, tokens: int) -> None:
        self._total += tokens
        if not run_id:
            return
        self._granted[run_id] = (self._now(run_id) + tokens, self._total)
        if len(self._granted) > _MAX_RUNS:
            self._granted = {each: found for each, found in self._granted.items() if self._now(each) >= QUANTUM_TOKENS}

    def rank(self, run_id: str) -> int:
        """0 is served first. Requests without a run are runs of their own, always new."""
        return int(self._now(run_id) / QUANTUM_TOKENS).bit_length() if run_id in self._granted else 0

    def forget(self, run_id: str) -> None:
        self._granted.pop(run_id, None)

    def _now(self, run_id: str) -> float:
        tokens, at = self._granted.get(run_id, (0.0, self._total))
        return float(tokens * 0.5 ** ((self._total - at) / _HALF_LIFE_TOKENS))
