"""Prometheus metrics: totals and gauges read from the engine when scraped, latencies observed on the streams.

The cache hit rate is `rate(ramet:cached_tokens_total) / rate(ramet:prompt_tokens_total)`: two counters, not a gauge of the last batch.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from ramet.errors import RametError
from ramet.runtime.request import Delta, EngineStats, FinishKind
from ramet.server.streams import as_generator

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
TOKEN_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2)
CANCELLED = 499

COUNTERS = {
    "prompt_tokens": ("prompt_tokens_total", "Prompt tokens of scheduled requests."),
    "generation_tokens": ("generation_tokens_total", "Generated tokens."),
    "cached_tokens": ("cached_tokens_total", "Prompt tokens found in the prefix cache."),
    "forced_tokens": ("forced_tokens_total", "Output tokens written by a grammar instead of the model."),
    "prefill_tokens": ("prefill_tokens_total", "Prompt tokens computed."),
    "possible_cached_tokens": ("possible_cached_tokens_total", "Prompt tokens that a cache which forgets nothing would have found."),
    "evicted_tokens": ("evicted_tokens_total", "Cached tokens evicted."),
    "load_back_tokens": ("loaded_tokens_total", "Prompt tokens that the second tier brought back."),
    "prefetched_tokens": ("disk_loaded_tokens_total", "Of these, tokens that came from files."),
    "backuped_tokens": ("saved_tokens_total", "Tokens saved in the second tier."),
    "result_hits": ("result_hits_total", "Requests answered with a generation that was remembered whole."),
    "num_retractions": ("num_retractions_total", "Requests sent back to the queue because pages ran out."),
    "num_steps": ("num_steps_total", "Model steps."),
    "guessed_tokens": ("guessed_tokens_total", "Tokens that speculation guessed and the model verified."),
    "right_guesses": ("right_guesses_total", "Guessed tokens that were right."),
}
GAUGES = {
    "num_running_reqs": ("num_running", "Requests that run."),
    "num_queue_reqs": ("num_waiting", "Requests that wait."),
    "num_grammar_queue_reqs": ("num_waiting_grammar", "Requests whose grammar is being compiled."),
    "max_total_num_tokens": ("total_tokens", "Tokens that the KV pool can hold."),
    "num_used_tokens": ("used_tokens", "Tokens held by running requests."),
    "kv_used_tokens": ("used_tokens", "Tokens held by running requests."),
    "kv_evictable_tokens": ("evictable_tokens", "Cached tokens that nobody uses."),
    "kv_pinned_tokens": ("pinned_tokens", "Cached tokens that paused programs go on from; evicted last."),
    "kv_available_tokens": ("available_tokens", "Free tokens."),
    "hicache_host_used_tokens": ("host_tokens", "Tokens in the second tier's host memory."),
    "hicache_host_total_tokens": ("host_total_tokens", "Tokens that it can hold."),
    "hicache_disk_tokens": ("disk_tokens", "Tokens in the second tier's files."),
    "gen_throughput": ("gen_throughput", "Generated tokens per second over the last log interval."),
    "weight_memory_bytes": ("weight_bytes", "Memory of the weights."),
    "kv_cache_memory_bytes": ("kv_pool_bytes", "Memory of the KV pool."),
    "resident_memory_bytes": ("resident_bytes", "Memory that the worker process occupies now."),
}
SUMMARIES = {
    "grammar_compile_seconds": ("grammars_total", "grammar_seconds_total", "Arrival of a new grammar to its compiled form."),
    "grammar_mask_seconds": ("masked_rows_total", "mask_seconds_total", "The mask of one constrained row of a step."),
}


class Metrics:
    """One registry per app, so that two servers live in one process."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._collector = _EngineCollector(model_name)
        self.registry.register(self._collector)
        self._requests = Counter("ramet:num_requests", "Ended requests by HTTP status.", ["model_name", "status"], registry=self.registry)
        self._first_token = self._histogram("time_to_first_token_seconds", "Arrival to first token.", LATENCY_BUCKETS)
        self._inter_token = self._histogram("inter_token_latency_seconds", "Time between two output tokens.", TOKEN_BUCKETS)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token.", LATENCY_BUCKETS)
        self._queue = self._histogram("queue_time_seconds", "Arrival to first step.", LATENCY_BUCKETS)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(f"ramet:{name}", documentation, ["model_name"], buckets=buckets, registry=self.registry)
        return metric.labels(self._model_name)

    @property
    def stats(self) -> EngineStats:
        """The engine's counters as last heard of."""
        return self._collector.stats

    @stats.setter
    def stats(self, stats: EngineStats) -> None:
        self._collector.stats = stats

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def count(self, status: int) -> None:
        self._requests.labels(self._model_name, str(status)).inc()

    async def observe(self, deltas: AsyncIterator[Delta]) -> AsyncGenerator[Delta, None]:
        """Pass a generation's deltas on, and record its latencies and how it ended; an abandoned one counts as cancelled."""
        status, last = CANCELLED, 0.0
        try:
            async with aclosing(as_generator(deltas)) as stream:
                async for delta in stream:
                    last = self._record_tokens(delta, last)
                    if delta.finish is not None:
                        status = status_of(delta)
                        self._record_end(delta)
                    yield delta
        except RametError as error:
            status = error.status
            raise
        except Exception:
            status = 500
            raise
        finally:
            self.count(status)

    async def observe_whole(self, whole: Awaitable[Delta]) -> Delta:
        """`observe` for a generation that comes in one piece; its tokens are spread evenly over its time."""
        status = CANCELLED
        try:
            delta = await whole
            status = status_of(delta)
            self._record_whole(delta)
            return delta
        except RametError as error:
            status = error.status
            raise
        except Exception:
            status = 500
            raise
        finally:
            self.count(status)

    def _record_whole(self, delta: Delta) -> None:
        self._record_end(delta)
        num_tokens = len(delta.token_ids)
        if not num_tokens:
            return
        self._first_token.observe(delta.first_token_latency)
        for _ in range(num_tokens - 1):
            self._inter_token.observe((delta.e2e_latency - delta.first_token_latency) / (num_tokens - 1))

    def _record_tokens(self, delta: Delta, last: float) -> float:
        num_new = len(delta.token_ids)
        if not num_new:
            return last
        now = time.monotonic()
        if not last:
            self._first_token.observe(delta.first_token_latency)
            return now
        for _ in range(num_new):
            self._inter_token.observe((now - last) / num_new)
        return now

    def _record_end(self, delta: Delta) -> None:
        self._e2e.observe(delta.e2e_latency)
        self._queue.observe(delta.queue_time)


def status_of(last: Delta) -> int:
    """The HTTP status that a generation's last delta stands for."""
    finish = last.finish
    ended_well = finish is not None and finish.kind in (FinishKind.STOP, FinishKind.LENGTH)
    return 200 if ended_well or finish is None else finish.status


class _EngineCollector:
    """Turns the last `EngineStats` into samples."""

    def __init__(self, model_name: str) -> None:
        self.stats = EngineStats()
        self._labels = [model_name]

    def collect(self) -> Iterable[Metric]:
        for name, (attribute, documentation) in COUNTERS.items():
            counter = CounterMetricFamily(f"ramet:{name}", documentation, labels=["model_name"])
            counter.add_metric(self._labels, getattr(self.stats, attribute))
            yield counter
        for name, (attribute, documentation) in GAUGES.items():
            yield self._gauge(name, documentation, getattr(self.stats, attribute))
        for name, (count, total, documentation) in SUMMARIES.items():
            summary = SummaryMetricFamily(f"ramet:{name}", documentation, labels=["model_name"])
            summary.add_metric(self._labels, getattr(self.stats, count), getattr(self.stats, total))
            yield summary
        usage = self.stats.used_tokens / self.stats.total_tokens if self.stats.total_tokens else 0.0
        yield self._gauge("token_usage", "Share of the KV pool held by running requests.", usage)

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"ramet:{name}", documentation, labels=["model_name"])
        gauge.add_metric(self._labels, value)
        return gauge
