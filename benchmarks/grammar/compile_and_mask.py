"""What a grammar costs: compiling it, filling a mask, and closing in time, in percentiles over generated function-calling schemas.

    python benchmarks/grammar/compile_and_mask.py [--schemas 100] [--engine ramet|xgrammar]

Both engines follow the same texts, written from the schemas by this program, in the tokens of the embedded model. xgrammar is no dependency
of Ramet: install it beside. `closing` is the mask of a request whose budget is so low that every token is looked at, `place seen` that of
a place in the grammar where another request has been.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ramet.grammar.matcher import Vocabulary
from ramet.runtime.model_files import locate_model
from ramet.runtime.text.tokenizer import load_tokenizer

WORDS = (
    *("city", "unit", "date", "amount", "recipient", "currency", "query", "limit"),
    *("language", "topic", "start", "end", "priority", "tags", "address", "enabled"),
)
VOCAB_SIZE = 49152
ROOMY = 100_000
"""Tokens of a budget that never runs low."""
Times = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=100)
    parser.add_argument("--engine", choices=("ramet", "xgrammar"), default="ramet")
    options = parser.parse_args()
    rng = random.Random(0)
    corpus = [(schema, example(schema, rng)) for schema in (function_schema(rng) for _ in range(options.schemas))]
    tokenizer = load_tokenizer(locate_model(None), cache_dir=Path(tempfile.mkdtemp()))
    measure = {"ramet": measure_ramet, "xgrammar": measure_xgrammar}[options.engine]
    for name, seconds in measure(corpus, tokenizer).items():
        p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1e6
        print(f"{options.engine:9} {name:22} n={len(seconds):6}  p50 {p50:9.0f} µs  p90 {p90:9.0f} µs  p99 {p99:9.0f} µs")


def function_schema(rng: random.Random) -> dict[str, Any]:
    """Arguments of a function: two to six of them, some nested."""
    names = rng.sample(WORDS, rng.randint(2, 6))
    properties = {name: value_schema(rng, 1) for name in names}
    return {"type": "object", "properties": properties, "required": names[: rng.randint(1, len(names))], "additionalProperties": False}


def value_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"type": "string", "description": "free text"},
        lambda: {"type": "string", "enum": rng.sample(WORDS, 3)},
        lambda: {"type": "integer", "minimum": 0, "maximum": rng.choice([10, 100, 5000])},
        lambda: {"type": "number"},
        lambda: {"type": "boolean"},
        lambda: {"type": "string", "format": "date"},
        lambda: {"type": "array", "items": value_schema(rng, depth + 1), "maxItems": 5},
        lambda: {"anyOf": [{"type": "string", "maxLength": 20}, {"type": "null"}]},
        lambda: function_schema(rng) if depth < 3 else {"type": "boolean"},
    ]
    return rng.choice(kinds)()


def example(schema: dict[str, Any], rng: random.Random) -> Any:
    if "anyOf" in schema:
        return rng.choice([None, "some words"])
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema["type"]:
        case "object":
            return {name: example(child, rng) for name, child in schema["properties"].items()}
        case "array":
            return [example(schema["items"], rng) for _ in range(rng.randint(0, 3))]
        case "integer":
            return rng.randint(0, schema["maximum"])
        case "number":
            return round(rng.uniform(-100, 100), 2)
        case "boolean":
            return rng.random() < 0.5
    return "2024-02-29" if "format" in schema else " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))


def measure_ramet(corpus: list[tuple[dict[str, Any], Any]], tokenizer: Any) -> Times:
    from ramet.grammar.llguidance_compiler import LlguidanceCompiler

    vocabulary = Vocabulary(tokenizer.token_bytes(), tokenizer.special_ids, tokenizer.eos_token_ids, VOCAB_SIZE)
    compiler = LlguidanceCompiler(vocabulary, tokenizer.encode_continuation)
    times: Times = {"compile": [], "matcher": [], "mask": [], "accept": []}
    times |= {"mask, place seen": [], "mask, closing": [], "mask, batch of 64/row": []}
    row = np.zeros(VOCAB_SIZE // 32, np.uint32)
    for schema, value in corpus:
        tokens = tokenizer.encode_continuation(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
        grammar = timed(times["compile"], lambda schema=schema: compiler.compile("json_schema", json.dumps(schema)))
        matcher = timed(times["matcher"], grammar.matcher)
        closing, first, second = (grammar.matcher(budget) for budget in (len(tokens) + 1, ROOMY, ROOMY))
        for token in tokens:
            timed(times["mask"], lambda matcher=matcher: matcher.fill_mask(row))
            timed(times["mask, closing"], lambda closing=closing: closing.fill_mask(row))
            timed(times["accept"], lambda matcher=matcher, token=token: require(matcher.accept([token]) == 1))
            first.fill_mask(row)
            timed(times["mask, place seen"], lambda second=second: second.fill_mask(row))
            require(all(matcher.accept([token]) == 1 for matcher in (closing, first, second)))
        batch = [grammar.matcher() for _ in range(64)]
        start = time.perf_counter()
        for one in batch:
            one.fill_mask(row)
        times["mask, batch of 64/row"].append((time.perf_counter() - start) / 64)
    return times


def measure_xgrammar(corpus: list[tuple[dict[str, Any], Any]], tokenizer: Any) -> Times:
    import xgrammar

    info = xgrammar.TokenizerInfo(list(tokenizer.token_bytes()), vocab_size=VOCAB_SIZE, stop_token_ids=list(tokenizer.eos_token_ids))
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    times: Times = {"compile": [], "matcher": [], "mask": [], "accept": []}
    mask = xgrammar.allocate_token_bitmask(1, VOCAB_SIZE)
    for schema, value in corpus:
        tokens = tokenizer.encode_continuation(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
        text = json.dumps(schema)
        grammar = timed(times["compile"], lambda text=text: compiler.compile_json_schema(text, any_whitespace=False, separators=(",", ":")))
        matcher = timed(times["matcher"], lambda grammar=grammar: xgrammar.GrammarMatcher(grammar))
        for token in tokens:
            timed(times["mask"], lambda matcher=matcher: matcher.fill_next_token_bitmask(mask))
            timed(times["accept"], lambda matcher=matcher, token=token: require(matcher.accept_token(token)))
    return times


def timed(seconds: list[float], call: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - start)
    return result


def require(accepted: bool) -> None:
    if not accepted:
        sys.exit("a text that was written from its schema was not accepted")


if __name__ == "__main__":
    main()
