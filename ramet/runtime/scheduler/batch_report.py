"""What a step did, for the log: the two lines that SGLang's users know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """Numbers of one log line. `num_new_tokens` > 0 makes it a prefill line."""

    num_running: int
    num_waiting: int
    used_tokens: int
    total_tokens: int
    gen_throughput: float
    num_new_requests: int = 0
    num_new_tokens: int = 0
    num_cached_tokens: int = 0

    def line(self, *, cuda_graph: bool = False) -> str:
        usage = f"token usage: {self.used_tokens / max(self.total_tokens, 1):.2f}"
        queue = f"#queue-req: {self.num_waiting}"
        if self.num_new_tokens:
            return (
                f"Prefill batch, #new-seq: {self.num_new_requests}, #new-token: {self.num_new_tokens}, "
                f"#cached-token: {self.num_cached_tokens}, {usage}, #running-req: {self.num_running}, {queue}"
            )
        return (
            f"Decode batch, #running-req: {self.num_running}, #token: {self.used_tokens}, {usage}, cuda graph: {cuda_graph}, "
            f"gen throughput (token/s): {self.gen_throughput:.2f}, {queue}"
        )


class Throughput:
    """Generated tokens per second, over the time between two readings of their count."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._tokens = 0
        self.last = 0.0

    def read(self, num_tokens: int) -> float:
        """`num_tokens`: all so far."""
        now = self._clock()
        self.last = (num_tokens - self._tokens) / max(now - self._since, 1e-9)
        self._since, self._tokens = now, num_tokens
        return self.last
