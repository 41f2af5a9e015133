"""What /metrics says about programs."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

RUN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class ProgramMetrics:
    def __init__(self, registry: CollectorRegistry, num_live: Callable[[], int], num_programs: Callable[[], int]) -> None:
        self._runs = Counter("ramet:program_runs", "Ended program runs by outcome.", ["outcome"], registry=registry)
        self._seconds = Histogram("ramet:program_run_seconds", "Time of a program run.", buckets=RUN_BUCKETS, registry=registry)
        self._generations = Counter("ramet:program_generations", "Generations and selects of program runs.", registry=registry)
        self._host_calls = Counter("ramet:program_host_calls", "Host calls of program runs.", registry=registry)
        Gauge("ramet:program_live_runs", "Program runs alive.", registry=registry).set_function(num_live)
        Gauge("ramet:programs_registered", "Programs registered.", registry=registry).set_function(num_programs)

    def ended(self, outcome: str, seconds: float, generations: int, host_calls: int) -> None:
        """`outcome`: done, failed or cancelled."""
        self._runs.labels(outcome).inc()
        self._seconds.observe(seconds)
        self._generations.inc(generations)
        self._host_calls.inc(host_calls)
