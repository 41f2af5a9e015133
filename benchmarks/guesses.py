"""What looking back wins and costs: output tokens per second without guesses, with NGRAM in every step, and with NGRAM where it is measured
to win, on text that repeats its prompt and on text that does not. Medians of alternating rounds; only ratios within a run mean anything.

    python -m benchmarks.guesses
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from ramet.runtime.engine.engine import Engine

TEXT = (
    "def total(items):\n    result = 0\n    for item in items:\n        result = result + item.price * item.count\n    return result\n\n"
    "def mean(items):\n    result = 0\n    for item in items:\n        result = result + item.price\n    return result / len(items)\n"
)
TASKS = {
    "repeats": f"Here is a Python file:\n\n{TEXT}\n\nHere is the same Python file once more:\n\n{TEXT[:60]}",
    "free": "Once upon a time, in a village by the sea, there lived",
}
WAYS = {"none": {}, "always": {"speculative_always": True}, "measured": {"speculative_always": False}}


def rate(engine: Engine, prompt: str, streams: int, num_tokens: int, number: int) -> float:
    """Output tokens per second of `streams` requests that begin differently."""
    prompts = [f"{number}.{i} {prompt}" for i in range(streams)]
    begin = time.perf_counter()
    replies = engine.generate(prompts, {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True})
    seconds = time.perf_counter() - begin
    assert isinstance(replies, list)
    return sum(reply["meta_info"]["completion_tokens"] for reply in replies) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    guessing = {"speculative_algorithm": "NGRAM"}
    engines = {way: Engine(log_level="error", **(guessing | options if options else {})) for way, options in WAYS.items()}
    for task, prompt in TASKS.items():
        for streams in args.streams:
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for number in range(args.rounds):
                for way, engine in engines.items():
                    found[way].append(rate(engine, prompt, streams, args.tokens, number))
            medians = {way: round(statistics.median(rates), 1) for way, rates in found.items()}
            print(json.dumps({"text": task, "streams": streams, **medians}), flush=True)
    for engine in engines.values():
        engine.shutdown()


if __name__ == "__main__":
    main()
