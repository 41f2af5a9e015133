"""The masks of one step: one row after the other, and side by side.

    python -m benchmarks.grammar.mask_filling [--threads 2 4 8] [--vocabulary 128000]

Every row has a schema of its own and a place where nobody has been; the time is that of a whole step. The vocabulary is made of words at
random, so that no model is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time

import numpy as np

from benchmarks.function_calls import function_schema
from ramet.grammar.compiler import create_grammar_compiler
from ramet.grammar.matcher import CompiledGrammar, MaskFiller, SerialMasks, Vocabulary
from ramet.grammar.parallel_masks import ParallelMasks

LETTERS = b"etaoinshrdlucmfwypvbgkjqxz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 64])
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    vocabulary = made_of_words(args.vocabulary)
    compiler = create_grammar_compiler("llguidance", vocabulary)
    grammars = [compiler.compile("json_schema", json.dumps(function_schema(index))) for index in range(max(args.rows))]
    fillers: dict[str, MaskFiller] = {"serial": SerialMasks()} | {f"{number} threads": ParallelMasks(number) for number in args.threads}
    print(f"{os.cpu_count()} cores, {vocabulary.size} tokens; microseconds per step, median of {args.rounds}")
    for rows in args.rows:
        found: dict[str, list[float]] = {name: [] for name in fillers}
        for _ in range(args.rounds):  # the fillers take turns
            for name, filler in fillers.items():
                found[name].append(step_time(filler, grammars[:rows], vocabulary.size))
        print(f"{rows:3} rows  " + "  ".join(f"{name} {statistics.median(times) * 1e6:6.0f}" for name, times in found.items()), flush=True)


def made_of_words(size: int) -> Vocabulary:
    rng, pieces = random.Random(0), [bytes([byte]) for byte in range(256)] + [b'{"', b'":', b'","', b'":"', b'"}', b": ", b", "]
    known = set(pieces)
    while len(pieces) < size - 1:
        word = rng.choice([b"", b" "]) + bytes(rng.choices(LETTERS, k=rng.randint(2, 9)))
        if word not in known:
            known.add(word)
            pieces.append(word)
    return Vocabulary((*pieces, b""), frozenset({size - 1}), (size - 1,), size)


def step_time(filler: MaskFiller, grammars: list[CompiledGrammar], vocabulary: int) -> float:
    """Matchers without a budget remember no places."""
    matchers = [grammar.matcher() for grammar in grammars]
    for matcher in matchers:
        matcher.accept(matcher.forced_tokens() or [ord("{")])
    bits = np.zeros((len(matchers), -(-vocabulary // 32)), dtype=np.uint32)
    begin = time.perf_counter()
    filler.fill(matchers, bits)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
