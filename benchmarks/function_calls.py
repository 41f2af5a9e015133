"""Arguments of functions, written by the default model at temperature 1: does every output parse and keep its schema?

    python -m benchmarks.function_calls [--count 1000] [--results FILE] [--max-new-tokens 256] [--model-path M]

Each schema is asked for twice: with `--max-new-tokens`, and with exactly as many tokens as its shortest valid instance has. Judged by the
jsonschema package, formats included. The results file gets a line per output; a run that is stopped and started again with the same file
goes on where it was. Fails if an output is not valid, or ends for want of tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonschema

from ramet.grammar.lowering import lower
from ramet.runtime.engine.engine import Engine
from ramet.runtime.model_files import locate_model
from ramet.runtime.text.tokenizer import load_tokenizer

NAMES = (
    *("city", "unit", "date", "amount", "recipient", "currency", "query", "limit", "language", "topic", "start_time", "end_time"),
    *("priority", "tags", "address", "is_enabled", "émetteur", "contact email", "file/path", "retry_count", "payload", "filters"),
)
VERBS = ("search", "create", "update", "delete", "schedule", "translate", "convert", "send", "list", "summarise")
THINGS = ("event", "invoice", "message", "flight", "hotel", "document", "order", "reminder", "user", "playlist")
JUDGE = jsonschema.Draft202012Validator
Schema = dict[str, Any]


@dataclass(frozen=True)
class Task:
    index: int
    schema: Schema
    prompt: str
    least: int
    """Tokens of the shortest valid instance."""


@dataclass(frozen=True)
class Outcome:
    index: int
    limit: int
    finish: str
    num_tokens: int
    num_forced: int
    problem: str
    """"" for a valid output."""
    text: str


# ── the corpus ──


def function_schema(index: int) -> Schema:
    """Arguments of one function; the same for the same index."""
    rng = random.Random(index)
    schema = object_schema(rng, 0)
    if rng.random() < 0.15:
        schema["$defs"] = {"item": object_schema(rng, 2)}
        schema["properties"]["items"] = {"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 3}
    if rng.random() < 0.1:
        first, second = rng.sample(sorted(schema["properties"]), 2)
        schema["dependentRequired"] = {first: [second]}
    return schema


def object_schema(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randint(2, 6 - depth))
    schema: Schema = {
        "type": "object",
        "properties": {name: value_schema(rng, depth + 1) for name in names},
        "required": sorted(rng.sample(names, rng.randint(1, len(names)))),
    }
    if rng.random() < 0.85:
        schema["additionalProperties"] = False
    return schema


def value_schema(rng: random.Random, depth: int) -> Schema:
    makers: list[Callable[[random.Random, int], Schema]] = [text_schema, number_schema, choice_schema]
    if depth < 3:
        makers += [array_schema, object_schema, union_schema]
    schema = rng.choices(makers, weights=(4, 3, 2, 2, 1, 1)[: len(makers)])[0](rng, depth)
    return {"description": rng.choice(NAMES), **schema} if rng.random() < 0.5 else schema


PATTERNS = (r"^[A-Z]{2}\d{4}$", r"^\+?[0-9 ]{6,14}$", r"^#[0-9a-f]{6}$", r"^[a-z_]+(\.[a-z_]+)*$")
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "hostname", "uri", "duration")


def text_schema(rng: random.Random, depth: int) -> Schema:
    return rng.choice(
        [
            {"type": "string"},
            {"type": "string", "maxLength": rng.choice([10, 40])},
            {"type": "string", "minLength": 1, "maxLength": 80},
            {"type": "string", "pattern": rng.choice(PATTERNS)},
            {"type": "string", "format": rng.choice(FORMATS)},
        ]
    )


def number_schema(rng: random.Random, depth: int) -> Schema:
    low = rng.choice([-90, 0, 1])
    return rng.choice(
        [
            {"type": "integer"},
            {"type": "number"},
            {"type": "integer", "minimum": low, "maximum": low + rng.choice([9, 100, 5000])},
            {"type": "number", "exclusiveMinimum": 0, "maximum": rng.choice([1, 99.5])},
            {"type": "integer", "minimum": 0, "maximum": 600, "multipleOf": rng.choice([5, 15])},
            {"type": "boolean"},
        ]
    )


def choice_schema(rng: random.Random, depth: int) -> Schema:
    return rng.choice(
        [
            {"type": "string", "enum": rng.sample(THINGS, 3)},
            {"enum": ["celsius", "fahrenheit", None]},
            {"enum": [1, 2, 10, "max"]},
            {"const": "v1"},
            {"type": ["string", "null"]},
        ]
    )


def array_schema(rng: random.Random, depth: int) -> Schema:
    size = {"minItems": rng.randint(0, 2), "maxItems": rng.randint(2, 4)}
    return rng.choice(
        [
            {"type": "array", "items": value_schema(rng, depth + 1), **size},
            {"type": "array", "items": {"type": "string", "enum": rng.sample(THINGS, 4)}, "uniqueItems": True, **size},
            {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "items": False, "minItems": 2},
        ]
    )


def union_schema(rng: random.Random, depth: int) -> Schema:
    tags = rng.sample(THINGS, 2)
    options = [
        {"type": "object", "properties": {"kind": {"const": tag}, "value": value_schema(rng, depth + 1)}, "required": ["kind", "value"]}
        for tag in tags
    ]
    return rng.choice([{"oneOf": options}, {"anyOf": [value_schema(rng, depth + 1), {"type": "null"}]}])


# ── the run ──


def tasks(indices: Sequence[int], model_path: str | None) -> list[Task]:
    with tempfile.TemporaryDirectory() as folder:
        encode = load_tokenizer(locate_model(model_path), cache_dir=Path(folder)).encode_continuation
    found = []
    for index in indices:
        schema, rng = function_schema(index), random.Random(index)
        name = f"{rng.choice(VERBS)}_{rng.choice(THINGS)}"
        prompt = f"Call the function {name} with realistic arguments.\nIts parameters: {json.dumps(schema)}\nArguments as JSON: "
        language = lower("json_schema", json.dumps(schema)).read()
        shortest = language.walker.witness(language.start).decode()
        found.append(Task(index, schema, prompt, len(encode(shortest))))
    return found


def ask(engine: Engine, batch: Sequence[tuple[Task, int]], seed: int) -> list[Outcome]:
    sampling = [
        {"temperature": 1.0, "sampling_seed": seed + task.index, "max_new_tokens": limit, "json_schema": json.dumps(task.schema)}
        for task, limit in batch
    ]
    replies = engine.generate([task.prompt for task, _ in batch], sampling)
    assert isinstance(replies, list)
    return [_outcome(task, limit, reply) for (task, limit), reply in zip(batch, replies, strict=True)]


def _outcome(task: Task, limit: int, reply: dict[str, Any]) -> Outcome:
    text, meta = reply["text"], reply["meta_info"]
    counts = meta["completion_tokens"], meta["forced_tokens"]
    return Outcome(task.index, limit, meta["finish_reason"]["type"], *counts, problem_of(text, task.schema), text)


def problem_of(text: str, schema: Schema) -> str:
    try:
        JUDGE(schema, format_checker=JUDGE.FORMAT_CHECKER).validate(json.loads(text))
    except json.JSONDecodeError as error:
        return f"not JSON: {error}" + (" (a run of whitespace)" if text[-16:].isspace() else "")
    except jsonschema.ValidationError as error:
        return f"not valid: {error.message}"
    return ""


def run(engine: Engine, waiting: Sequence[Task], max_new_tokens: int, results: Path, batch_size: int = 32) -> list[Outcome]:
    done = [Outcome(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() else []
    known = {(outcome.index, outcome.limit) for outcome in done}
    orders = [(task, limit) for task in waiting for limit in (max_new_tokens, task.least) if (task.index, limit) not in known]
    for at in range(0, len(orders), batch_size):
        begin = time.monotonic()
        found = ask(engine, orders[at : at + batch_size], seed=1)
        with results.open("a") as lines:
            lines.writelines(json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in found)
        done += found
        rate = sum(outcome.num_tokens for outcome in found) / (time.monotonic() - begin)
        print(f"{len(done)} outputs, {sum(bool(outcome.problem) for outcome in done)} wrong, {rate:.0f} tokens/s", flush=True)
    return done


def report(outcomes: Sequence[Outcome], max_new_tokens: int) -> bool:
    """Whether all is well."""
    for name, some in (
        (f"max_tokens {max_new_tokens}", [outcome for outcome in outcomes if outcome.limit == max_new_tokens]),
        ("max_tokens as the shortest instance", [outcome for outcome in outcomes if outcome.limit != max_new_tokens]),
    ):
        num_tokens = sum(outcome.num_tokens for outcome in some)
        wrong, cut = [outcome for outcome in some if outcome.problem], [outcome for outcome in some if outcome.finish != "stop"]
        print(
            f"{name}: {len(some)} outputs, {len(some) - len(wrong)} valid, {len(cut)} without an end of their own, {num_tokens} tokens, "
            f"{sum(outcome.num_forced for outcome in some) / max(num_tokens, 1):.0%} of them forced"
        )
        for outcome in wrong[:10]:
            print(f"  schema {outcome.index}, {outcome.limit} tokens: {outcome.problem}: {outcome.text[-80:]!r}")
    return not any(outcome.problem for outcome in outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="schemas")
    parser.add_argument("--results", type=Path, default=Path("function_calls.jsonl"))
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--model-path")
    args = parser.parse_args()
    with Engine(args.model_path, max_total_tokens=32768, context_length=4096, log_level="warning") as engine:
        outcomes = run(engine, tasks(range(args.count), args.model_path), args.max_new_tokens, args.results)
    if not report(outcomes, args.max_new_tokens):
        sys.exit("not all outputs are valid")


if __name__ == "__main__":
    main()
