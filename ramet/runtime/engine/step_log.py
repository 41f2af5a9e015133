"""The worker's log lines, in the form that SGLang's users parse, and the throughput that they report."""

from __future__ import annotations

import time

from ramet.log import get_logger
from ramet.runtime.plan import BatchPlan, PlanRow
from ramet.runtime.request import EngineStats

_log = get_logger(__name__)


class StepLog:
    """One `Prefill batch` line per step that computes prompts, one `Decode batch` line every `interval` steps that decode."""

    def __init__(self, interval: int, *, cuda_graph: bool) -> None:
        self.gen_throughput = 0.0
        self._interval = interval
        self._cuda_graph = cuda_graph
        self._decode_steps = 0
        self._new_tokens = 0
        self._since = time.monotonic()
        self._cached_before = 0

    def step(self, plan: BatchPlan, stats: EngineStats, num_generated: int) -> None:
        """Note a finished step that brought `num_generated` tokens."""
        prefill = [row for row in plan.rows if not is_decode(row)]
        if prefill:
            self._prefill(prefill, stats)
        self._new_tokens += num_generated
        if len(prefill) < len(plan.rows):
            self._decode_steps += 1
            if self._decode_steps % self._interval == 0:
                self._decode(stats)

    def restart_clock(self) -> None:
        """Idle time does not count as slow generation."""
        self._since = time.monotonic()
        self._new_tokens = 0

    def _prefill(self, rows: list[PlanRow], stats: EngineStats) -> None:
        cached, self._cached_before = stats.cached_tokens_total - self._cached_before, stats.cached_tokens_total
        _log.info(
            "Prefill batch, #new-seq: %d, #new-token: %d, #cached-token: %d, token usage: %.2f, #running-req: %d, #queue-req: %d",
            sum(row.reset is not None for row in rows),
            sum(len(row.token_ids) for row in rows),
            cached,
            token_usage(stats),
            stats.num_running,
            stats.num_waiting,
        )

    def _decode(self, stats: EngineStats) -> None:
        now = time.monotonic()
        self.gen_throughput = self._new_tokens / max(now - self._since, 1e-9)
        self._since, self._new_tokens = now, 0
        _log.info(
            "Decode batch, #running-req: %d, #token: %d, token usage: %.2f, cuda graph: %s, gen throughput (token/s): %.2f, #queue-req: %d",
            stats.num_running,
            stats.used_tokens,
            token_usage(stats),
            self._cuda_graph,
            self.gen_throughput,
            stats.num_waiting,
        )


def is_decode(row: PlanRow) -> bool:
    """One token that goes on where the slot stood (a prompt's last piece of one token looks the same; for a log line that will do)."""
    return row.samples and row.reset is None and len(row.token_ids) == 1


def token_usage(stats: EngineStats) -> float:
    return stats.used_tokens / stats.total_tokens if stats.total_tokens else 0.0
