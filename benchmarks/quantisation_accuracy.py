"""What the CPU's quantised step costs in accuracy: perplexity on fixed texts, and how often the likeliest token is the same.

    python -m benchmarks.quantisation_accuracy
    python -m benchmarks.quantisation_accuracy --settings quantization=q8_0 kv_cache_dtype=bfloat16

The reference is the same checkpoint dequantised to float32 (`--quantization none`), whose logits equal those of transformers. Weights that
the file holds in 4 or 8 bits are the same numbers on both sides: the difference is the rounding of activations to 8 bits
(blocks of 32) and of keys and values to 16. Texts: the licence and the language tutorial of this repository, in windows of 1,024 tokens.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEXTS = ("LICENSE", "docs/language.md")
WINDOW = 1024
REFERENCE: dict[str, Any] = {"quantization": "none", "kv_cache_dtype": "auto"}


@dataclass(frozen=True, slots=True)
class Reading:
    """Of every token but each window's first: its log-probability, and the token that was likeliest in its place."""

    logprobs: list[float]
    likeliest: list[int]

    @property
    def perplexity(self) -> float:
        return math.exp(-sum(self.logprobs) / len(self.logprobs))

    def agreement(self, other: Reading) -> float:
        return sum(a == b for a, b in zip(self.likeliest, other.likeliest, strict=True)) / len(self.likeliest)


def read(options: dict[str, Any], windows: list[list[int]]) -> Reading:
    from ramet.runtime.engine.engine import Engine

    with Engine(log_level="error", disable_radix_cache=True, **options) as engine:
        replies = engine.generate(
            input_ids=windows,
            sampling_params={"max_new_tokens": 1, "temperature": 0.0},
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=1,
        )
    assert isinstance(replies, list)
    logprobs = [entry[0] for reply in replies for entry in reply["meta_info"]["input_token_logprobs"][1:]]
    likeliest = [entry[0][1] for reply in replies for entry in reply["meta_info"]["input_top_logprobs"][1:]]
    return Reading(logprobs, likeliest)


def windows_of(texts: tuple[str, ...]) -> list[list[int]]:
    from ramet.runtime.config import EngineConfig
    from ramet.runtime.engine.worker_parts import load_text

    tokenizer = load_text(EngineConfig()).tokenizer
    ids = [tokenizer.encode((ROOT / text).read_text(encoding="utf-8")) for text in texts]
    return [part[i : i + WINDOW] for part in ids for i in range(0, len(part) - 1, WINDOW)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="*", default=["", "quantization=q8_0", "kv_cache_dtype=bfloat16", "kv_cache_dtype=float32"])
    windows = windows_of(TEXTS)
    reference = read(REFERENCE, windows)
    print(f"{len(reference.logprobs):,} tokens in {len(windows)} windows")
    print(f"{'setting':28} {'perplexity':>10} {'change':>8} {'same likeliest token':>21}")
    print(f"{'float32 (reference)':28} {reference.perplexity:10.4f}")
    for setting in parser.parse_args().settings:
        options = dict([setting.split("=")]) if setting else {}
        found = read(options, windows)
        change = found.perplexity / reference.perplexity - 1
        print(f"{setting or 'default':28} {found.perplexity:10.4f} {change:+8.2%} {found.agreement(reference):21.2%}", flush=True)


if __name__ == "__main__":
    main()
