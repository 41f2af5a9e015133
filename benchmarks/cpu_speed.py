"""Speed of the CPU path on the embedded model: decode at several batch sizes, prefill, TTFT with a cached prefix.

    python -m benchmarks.cpu_speed                         # the quantised step and, for comparison, float32 torch
    python -m benchmarks.cpu_speed --quantization q8_0

The engine runs in its own process, as it does behind the server. Medians of `--repeats` runs; the float32 twin alternates with
the quantised step in the same run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

BATCHES = (1, 8, 32)
PREFILLS = (512, 2000)
OUTPUT_LEN = 64


def measure(engine: Any, generator: random.Random) -> dict[str, float]:
    """One round of all workloads; tokens per second, and milliseconds for TTFT."""
    found = {}
    for batch in BATCHES:
        seconds = _seconds(engine, [_prompt(generator, 32) for _ in range(batch)], OUTPUT_LEN)
        found[f"decode, {batch} streams (tok/s)"] = batch * OUTPUT_LEN / seconds
    for length in PREFILLS:
        prompt = _prompt(generator, length)
        found[f"prefill {length} (tok/s)"] = length / _seconds(engine, [prompt], 1)
        found[f"TTFT, {length} cached (ms)"] = 1000 * _seconds(engine, [[*prompt, 7]], 1)
    return found


def _prompt(generator: random.Random, length: int) -> list[int]:
    return [generator.randrange(1000, 40000) for _ in range(length)]


def _seconds(engine: Any, prompts: list[list[int]], output_len: int) -> float:
    began = time.perf_counter()
    engine.generate(input_ids=prompts, sampling_params={"temperature": 0, "max_new_tokens": output_len, "ignore_eos": True})
    return time.perf_counter() - began


def main() -> None:
    from ramet import Engine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", default=None, help="of the measured engine; default: the file's own")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    engines = {"ramet": {"quantization": arguments.quantization}, "float32 twin": {"quantization": "none"}}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for repeat in range(arguments.repeats):
        for name, options in engines.items():
            with Engine(log_level="warning", **options) as engine:
                engine.generate("warm up", {"max_new_tokens": 8})
                rounds[name].append(measure(engine, random.Random(repeat)))
    print(f"{'':30}" + "".join(f"{name:>16}" for name in engines))
    for row in rounds["ramet"][0]:
        print(f"{row:30}" + "".join(f"{statistics.median(r[row] for r in rounds[name]):16.1f}" for name in engines))


if __name__ == "__main__":
    main()
