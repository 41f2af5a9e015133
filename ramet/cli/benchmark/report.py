"""Numbers out of outcomes, printed under the labels that scripts which parse SGLang's benchmark look for."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ramet.cli.benchmark.targets import Outcome

WIDTH = 50
LABEL_WIDTH = 40
PERCENTILES = (90, 95, 99)
LATENCIES = {
    "e2e_latency": ("End-to-End Latency", "E2E Latency"),
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-Token Latency", "ITL"),
}


def summarize(outcomes: Sequence[Outcome], duration: float) -> dict[str, Any]:
    """Everything that can be said about a run; latencies in milliseconds, rates per second."""
    good = [outcome for outcome in outcomes if not outcome.error]
    inputs = sum(outcome.prompt_len for outcome in good)
    outputs = sum(outcome.output_len for outcome in good)
    cached = sum(outcome.cached_tokens for outcome in good)
    return {
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "duration": duration,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(good) / duration,
        "input_throughput": inputs / duration,
        "output_throughput": outputs / duration,
        "total_throughput": (inputs + outputs) / duration,
        "max_output_tokens_per_s": peak_tokens_per_second(good),
        "max_concurrent_requests": peak_concurrency(good),
        "concurrency": sum(outcome.latency for outcome in good) / duration,
        "cached_tokens": cached,
        "cache_hit_rate": cached / inputs if inputs else 0.0,
        **_latencies(good),
    }


def _latencies(good: Sequence[Outcome]) -> dict[str, float]:
    samples = {
        "e2e_latency": [o.latency for o in good],
        "ttft": [o.first_token_latency for o in good],
        "tpot": [(o.latency - o.first_token_latency) / (o.output_len - 1) for o in good if o.output_len > 1],
        "itl": [b - a for o in good for a, b in zip(o.token_times, o.token_times[1:], strict=False)],
    }
    return {f"{kind}_{name}_ms": value for name, values in samples.items() for kind, value in describe(values).items()}


def describe(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, median, spread and percentiles, in milliseconds."""
    values = sorted(second * 1000 for second in seconds) or [0.0]
    found = {"mean": statistics.fmean(values), "median": percentile(values, 50), "std": statistics.pstdev(values), "max": values[-1]}
    return found | {f"p{p}": percentile(values, p) for p in PERCENTILES}


def percentile(ordered: Sequence[float], p: float) -> float:
    """Linear interpolation between the two nearest of sorted values."""
    position = (len(ordered) - 1) * p / 100
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def peak_tokens_per_second(outcomes: Iterable[Outcome]) -> int:
    """The most output tokens of any whole second of the clock."""
    return max(Counter(int(at) for outcome in outcomes for at in outcome.token_times).values(), default=0)


def peak_concurrency(outcomes: Iterable[Outcome]) -> int:
    """The most requests that were under way at one instant; one that ends as another starts does not overlap it."""
    changes = sorted(change for o in outcomes for change in ((o.started, 1), (o.ended, -1)))
    running = peak = 0
    for _, change in changes:
        running += change
        peak = max(peak, running)
    return peak


def print_serving(summary: Mapping[str, Any], *, backend: str, request_rate: float, max_concurrency: int | None) -> None:
    _title("Serving Benchmark Result", "=")
    _line("Backend:", backend)
    _line("Traffic request rate:", request_rate)
    _line("Max request concurrency:", max_concurrency or "not set")
    _print_totals(summary)
    _line("Peak output token throughput (tok/s):", summary["max_output_tokens_per_s"])
    _line("Peak concurrent requests:", summary["max_concurrent_requests"])
    _line("Concurrency:", summary["concurrency"])
    _line("Total cached tokens:", summary["cached_tokens"])
    _line("Cache hit rate:", f"{summary['cache_hit_rate']:.2%}")
    for name, (title, label) in LATENCIES.items():
        _title(title, "-")
        for kind in ("mean", "median", *(f"p{p}" for p in PERCENTILES), *(("max",) if name == "itl" else ())):
            _line(f"{kind.capitalize()} {label} (ms):", summary[f"{kind}_{name}_ms"])
    print("=" * WIDTH)


def print_offline(summary: Mapping[str, Any]) -> None:
    _title("Offline Throughput Benchmark Result", "=")
    _line("Backend:", "engine")
    _print_totals(summary)
    _line("Last generation throughput (tok/s):", summary["last_gen_throughput"])
    _line("Cache hit rate:", f"{summary['cache_hit_rate']:.2%}")
    print("=" * WIDTH)


def _print_totals(summary: Mapping[str, Any]) -> None:
    _line("Successful requests:", summary["completed"])
    if summary["failed"]:
        _line("Failed requests:", summary["failed"])
    _line("Benchmark duration (s):", summary["duration"])
    _line("Total input tokens:", summary["total_input_tokens"])
    _line("Total generated tokens:", summary["total_output_tokens"])
    _line("Request throughput (req/s):", summary["request_throughput"])
    _line("Input token throughput (tok/s):", summary["input_throughput"])
    _line("Output token throughput (tok/s):", summary["output_throughput"])
    _line("Total token throughput (tok/s):", summary["total_throughput"])


def append_jsonl(path: Path, entry: Mapping[str, Any]) -> None:
    """One line per run, so that runs collect in a file."""
    with path.open("a") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | dict(entry), default=str) + "\n")


def details_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What `--output-details` adds: one list entry per request."""
    return {
        "input_lens": [o.prompt_len for o in outcomes],
        "output_lens": [o.output_len for o in outcomes],
        "ttfts": [o.first_token_latency for o in outcomes],
        "itls": [[b - a for a, b in zip(o.token_times, o.token_times[1:], strict=False)] for o in outcomes],
        "generated_texts": [o.text for o in outcomes],
        "errors": [o.error for o in outcomes],
    }


def _title(text: str, mark: str) -> None:
    print(("\n" if mark == "=" else "") + f" {text} ".center(WIDTH, mark) if mark == "=" else text.center(WIDTH, mark))


def _line(label: str, value: object) -> None:
    shown = f"{value:<10.2f}" if isinstance(value, float) and math.isfinite(value) else f"{value!s:<10}"
    print(f"{label:<{LABEL_WIDTH}} {shown}")
