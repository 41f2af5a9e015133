"""Whether guessing pays: as it was measured, for about as many requests as run just now.

Verifying takes longer than a step without guesses, guessing takes time of its own, and results must come before the next step is planned;
what is won depends on the device, on how many requests there are and on what they say. So both ways are timed as they go: output tokens per
second of steps that only decode, by the number of requests (powers of two). The better way runs, and now and then the other one for a few
steps, since texts change. What is said is the same on both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST, TRIAL, RUN = 16, 8, 256
"""Steps: to begin with, of a trial of the other way, and between two trials."""
FEW = 16
"""Up to here guessing is what is begun with: steps of few requests wait for memory. More begin without, also where prompts come all the
time, so that no step only decodes and nothing is ever measured."""
_DECAY = 0.95
_OUTLIER = 4.0


@dataclass(slots=True)
class _Rate:
    """Tokens and seconds of the last steps. One step that takes four times as long as these says nothing, unless the next does so too."""

    tokens: float = 0.0
    seconds: float = 0.0
    weight: float = 0.0
    surprised: bool = False

    @property
    def per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.surprised = not self.surprised and seconds * self.weight > _OUTLIER * self.seconds > 0.0
        if not self.surprised:
            self.tokens = _DECAY * self.tokens + tokens
            self.seconds = _DECAY * self.seconds + seconds
            self.weight = _DECAY * self.weight + 1.0


@dataclass(slots=True)
class _Crowd:
    """So many requests. `left`: steps until the way is judged; the first of a way still has something of the other's in it."""

    guesses: bool
    is_trial: bool = True
    left: int = FIRST
    is_first: bool = True
    rates: dict[bool, _Rate] = field(default_factory=lambda: {True: _Rate(), False: _Rate()})

    def judge(self) -> None:
        """Go on with the better way after a trial, and with a trial of the other way after a run."""
        if self.is_trial and self.rates[not self.guesses].weight:
            best = self.rates[True].per_second > self.rates[False].per_second
            self.is_first, self.guesses, self.is_trial, self.left = best != self.guesses, best, False, RUN
        else:
            self.is_first, self.guesses, self.is_trial, self.left = True, not self.guesses, True, TRIAL
            self.rates[self.guesses] = _Rate()  # what it brought in the last trial was brought of other texts


class GuessPolicy:
    """`always`: guess in every step, whatever is measured."""

    def __init__(self, *, always: bool = False) -> None:
        self._always = always
        self._crowds: dict[int, _Crowd] = {}

    def guesses(self, num_requests: int) -> bool:
        """Whether the next step shall guess."""
        return self._always or self._crowd(num_requests).guesses

    def observe(self, num_requests: int, *, guesses: bool, tokens: int, seconds: float) -> None:
        """A step that only decoded brought `tokens`, `seconds` after the results before it, or after its planning began where that was
        later. `guesses`: which way it was planned."""
        crowd = self._crowd(num_requests)
        if guesses is not crowd.guesses or seconds <= 0.0:
            return
        if crowd.is_first:
            crowd.is_first = False
            return
        crowd.rates[guesses].add(tokens, seconds)
        crowd.left -= 1
        if crowd.left <= 0:
            crowd.judge()

    def _crowd(self, num_requests: int) -> _Crowd:
        return self._crowds.setdefault(num_requests.bit_length(), _Crowd(guesses=num_requests < FEW))
