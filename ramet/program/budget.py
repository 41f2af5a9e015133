"""What one run may use. The interpreter counts; who goes over is told which limit it was, at the op that went over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ramet.errors import QuotaExceeded


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one run: ops executed, tokens generated, forks alive at once, calls inside calls, seconds, bytes of values made."""

    steps: int = 200_000
    tokens: int = 1_000_000
    forks: int = 1024
    nesting: int = 32
    seconds: float = 600.0
    bytes: int = 256 << 20
    generations: int = 10_000


class BudgetExceeded(QuotaExceeded):
    code = "budget_exceeded"


@dataclass(slots=True)
class Spent:
    """Counts against a budget; every method raises BudgetExceeded."""

    budget: Budget
    steps: int = 0
    tokens: int = 0
    forks: int = 0
    bytes: int = 0
    generations: int = 0
    began: float = field(default_factory=time.monotonic)

    def step(self) -> None:
        self.steps += 1
        if self.steps > self.budget.steps:
            raise self._over("steps", self.budget.steps)
        if not self.steps & 63:
            self.time()

    def time(self) -> None:
        if time.monotonic() - self.began > self.budget.seconds:
            raise self._over("seconds", self.budget.seconds)

    def remaining_seconds(self) -> float:
        return max(0.0, self.budget.seconds - (time.monotonic() - self.began))

    def made(self, value: object) -> None:
        self.bytes += len(value) if isinstance(value, str) else 64 + 8 * len(value) if isinstance(value, list | tuple | dict) else 0
        if self.bytes > self.budget.bytes:
            raise self._over("bytes of text and lists", self.budget.bytes)

    def generated(self, tokens: int) -> None:
        self.tokens += tokens
        if self.tokens > self.budget.tokens:
            raise self._over("generated tokens", self.budget.tokens)

    def generation(self) -> None:
        self.generations += 1
        if self.generations > self.budget.generations:
            raise self._over("generations", self.budget.generations)

    def forked(self, branches: int) -> None:
        self.forks += branches
        if self.forks > self.budget.forks:
            raise self._over("forks alive", self.budget.forks)

    def joined(self, branches: int) -> None:
        self.forks -= branches

    def nested(self, depth: int) -> None:
        if depth > self.budget.nesting:
            raise self._over("programs inside programs", self.budget.nesting)

    def _over(self, what: str, limit: float) -> BudgetExceeded:
        most = f"{limit:g}" if limit < 100_000 else f"{limit:.0f}"
        return BudgetExceeded(f"the run needs more than {most} {what}; raise the budget or let the program do less")
