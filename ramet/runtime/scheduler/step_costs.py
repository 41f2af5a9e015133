"""What steps have taken, and so how many prompt tokens may ride on one without holding up those that decode."""

from __future__ import annotations

MIN_CHUNK = 16
"""Prompt tokens that a step takes whatever it costs: where the bound is too tight to be kept, prompts still go on."""
_FIRST_CHUNK = 64
_DECAY, _LATE_DECAY = 0.998, 0.9
_OUTLIER = 4.0


class StepCosts:
    """A step with prompt tokens is taken to cost `base` + `per_token` · prompt tokens. Steps without are not asked: that prompts ride along
    at all costs something by itself (1.4 ms of 7.3 on an H200), which a line through both kinds would put down to the tokens. What a
    token costs hardly changes and is learned from many steps, by least squares; the base changes with the rows that decode and is what
    the last steps took beyond their tokens. The mean error counts twice, so that nearly all steps keep the bound and not only the average
    one. A step that takes four times what was expected (something was prepared that later steps find ready) says nothing about the next,
    unless that one takes as long."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0  # sums over steps: x prompt tokens, y seconds
        self._late_weight = self._late_x = self._late_y = 0.0  # of these, the last few
        self._error = 0.0
        self._surprised = False

    def observe(self, prompt_tokens: int, seconds: float) -> None:
        """A step with rows that decode took `seconds`, from the last one's results to its own."""
        if seconds <= 0.0 or not prompt_tokens:
            return
        if self._weight:
            base, per_token = self._line()
            expected = base + per_token * prompt_tokens
            self._surprised = seconds > _OUTLIER * expected and not self._surprised
            if self._surprised:
                return
            self._error += 0.3 * (1.0 - _LATE_DECAY) * (abs(seconds - expected) - self._error)
        x, y = float(prompt_tokens), seconds
        self._weight = _DECAY * self._weight + 1.0
        self._x, self._y = _DECAY * self._x + x, _DECAY * self._y + y
        self._xx, self._xy = _DECAY * self._xx + x * x, _DECAY * self._xy + x * y
        self._late_weight = _LATE_DECAY * self._late_weight + 1.0
        self._late_x, self._late_y = _LATE_DECAY * self._late_x + x, _LATE_DECAY * self._late_y + y

    def chunk_within(self, bound: float) -> int:
        """Prompt tokens with which a step is expected to take at most `bound` seconds; at least `MIN_CHUNK`, and not far more than the
        last steps took, since what is known of them says little about much larger ones."""
        if not self._x:
            return _FIRST_CHUNK
        base, per_token = self._line()
        within = (bound - base - 2.0 * self._error) / max(per_token, 1e-9)
        return max(MIN_CHUNK, int(min(within, 2.0 * (self._late_x / self._late_weight + _FIRST_CHUNK))))

    def _line(self) -> tuple[float, float]:
        """(base, per_token). As long as all steps were alike, all of their time is put down to their prompt tokens: too much, so that the
        next ones differ."""
        x, y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - x * x
        if variance <= 1.0:
            return (0.0, y / x) if x else (y, 0.0)
        slope = max((self._xy / self._weight - x * y) / variance, 0.0)
        return max((self._late_y - slope * self._late_x) / self._late_weight, 0.0), slope
