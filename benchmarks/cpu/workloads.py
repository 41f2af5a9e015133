"""What is measured. Prompts are token ids, the same for every engine, random and new in every round, so that no cache knows them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

from benchmarks.cpu.documents import SCHEMA, is_valid, question
from benchmarks.cpu.floors import Floor, Work, total
from benchmarks.shared_prefix import make_prompts
from ramet.runtime.text.tokenizer import HfTokenizer

Prompt = list[int]


@dataclass(frozen=True, slots=True)
class Answer:
    seconds: float
    output_ids: list[list[int]]


class Ask(Protocol):
    """All prompts at once; without a schema exactly `limit` tokens each."""

    def __call__(self, prompts: Sequence[Prompt], limit: int, schema: Mapping[str, Any] | None = None) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Sizes:
    decode_len: int = 128
    streams: tuple[int, ...] = (8, 32)
    stream_len: int = 64
    prefills: tuple[int, ...] = (512, 2000)
    groups: int = 8
    per_group: int = 8
    prefix_len: int = 512
    suffix_len: int = 16
    shared_len: int = 32
    turns: int = 8
    system_len: int = 128
    turn_len: int = 32
    documents: int = 8
    document_limit: int = 160


QUICK = Sizes(
    decode_len=16,
    stream_len=4,
    prefills=(64, 256),
    groups=2,
    per_group=4,
    prefix_len=64,
    shared_len=4,
    turns=3,
    system_len=32,
    turn_len=8,
    documents=1,
    document_limit=96,
)
"""Does everything run; the figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """`better` is None for what is only told. `floor`: the value that cannot be beaten, and what bounds it."""

    name: str
    unit: str
    better: Literal["higher", "lower"] | None = "higher"
    floor: Callable[[Floor], tuple[float, str]] | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """`run` gives one value per figure. `widths`: how many prompts it sends at once, for the warm-up."""

    name: str
    figures: tuple[Figure, ...]
    widths: tuple[int, ...]
    run: Callable[[Ask, Random], list[float]]


def workloads(sizes: Sizes, tokenizer: HfTokenizer) -> tuple[Workload, ...]:
    return (_streams("single stream", (1,), sizes.decode_len), _streams("concurrent streams", sizes.streams, sizes.stream_len),
            _prefill(sizes.prefills), _shared_prefix(sizes), _multi_turn(sizes), _json(sizes, tokenizer))  # fmt: skip


_SHORT = 8
"""Tokens of a prompt where only the output counts."""


def _streams(name: str, counts: Sequence[int], length: int) -> Workload:
    def run(ask: Ask, generator: Random) -> list[float]:
        return [count * length / ask([_random(generator, _SHORT) for _ in range(count)], length).seconds for count in counts]

    def figure(count: int) -> Figure:
        label = f"{count} stream{'s' * (count > 1)}, {length} tokens each"
        return Figure(label, "tok/s", "higher", lambda floor: _rate(count * length, _generation(floor, count, _SHORT, length)))

    return Workload(name, tuple(map(figure, counts)), tuple(counts), run)


def _prefill(lengths: Sequence[int]) -> Workload:
    """Time to the first token of a new prompt, and of the same one again with a token more."""

    def run(ask: Ask, generator: Random) -> list[float]:
        found = []
        for prompt in [_random(generator, length) for length in lengths]:
            found.append(len(prompt) / ask([prompt], 1).seconds)
            found.append(1000 * ask([[*prompt, *_random(generator, 1)]], 1).seconds)
        return found

    def figures(length: int) -> list[Figure]:
        return [
            Figure(f"prefill of {length} tokens", "tok/s", "higher", lambda floor: _rate(length, floor.prefill(length))),
            Figure(f"first token, {length} cached", "ms", "lower", lambda floor: _milliseconds(floor.prefill(1, cached=length))),
        ]

    return Workload("prefill", tuple(figure for length in lengths for figure in figures(length)), (1,), run)


def _shared_prefix(sizes: Sizes) -> Workload:
    count = sizes.groups * sizes.per_group

    def run(ask: Ask, generator: Random) -> list[float]:
        prompts = make_prompts(sizes.groups, sizes.per_group, sizes.prefix_len, sizes.suffix_len, seed=generator.randrange(1 << 30))
        return [count * sizes.shared_len / ask(prompts, sizes.shared_len).seconds]

    def least(floor: Floor) -> tuple[float, str]:
        """Every prefix is computed once, and read once a step for all of its group."""
        prefix, suffix = sizes.prefix_len, sizes.suffix_len
        seen = count * (suffix * prefix + suffix * (suffix + 1) // 2)
        parts = [floor.prefill(prefix, outputs=0) for _ in range(sizes.groups)]
        parts.append(floor.step(count * suffix, count, seen, sizes.groups * prefix))
        parts.append(floor.decode(count, prefix + suffix, sizes.shared_len - 1, shared=(count - sizes.groups) * prefix))
        return _rate(count * sizes.shared_len, total(parts))

    label = f"{sizes.groups} groups × {sizes.per_group}, {sizes.prefix_len} shared, {sizes.shared_len} out"
    return Workload("shared prefix", (Figure(label, "tok/s", "higher", least),), (count,), run)


def _multi_turn(sizes: Sizes) -> Workload:
    """One conversation, sent whole every turn; the model's own words come back in the next prompt."""

    def run(ask: Ask, generator: Random) -> list[float]:
        history, seconds = _random(generator, sizes.system_len), 0.0
        for _ in range(sizes.turns):
            history += _random(generator, sizes.turn_len)
            answer = ask([history], sizes.turn_len)
            history, seconds = history + answer.output_ids[0], seconds + answer.seconds
        return [1000 * seconds / sizes.turns]

    def least(floor: Floor) -> tuple[float, str]:
        turn, held, parts = sizes.turn_len, 0, list[Work]()
        for index in range(sizes.turns):
            new = turn + (sizes.system_len if index == 0 else 1)  # the last token of an answer was never computed
            parts.append(floor.prefill(new, cached=held))
            parts.append(floor.decode(1, held + new, turn - 1))
            held += new + turn - 1
        whole = total(parts)
        return _milliseconds(Work(whole.seconds / sizes.turns, whole.read_seconds / sizes.turns))

    label = f"a turn of {sizes.turns}, {sizes.turn_len} tokens in and out"
    return Workload("multi-turn chat", (Figure(label, "ms", "lower", least),), (1,), run)


def _json(sizes: Sizes, tokenizer: HfTokenizer) -> Workload:
    def run(ask: Ask, generator: Random) -> list[float]:
        prompts = [tokenizer.encode(question(generator)) for _ in range(sizes.documents)]
        ask(prompts[:1], 2, SCHEMA)  # compiles the grammar, which is done once in a schema's life
        answer = ask(prompts, sizes.document_limit, SCHEMA)
        valid = sum(is_valid(tokenizer.decode(ids)) for ids in answer.output_ids)
        return [valid / answer.seconds, 100 * valid / len(prompts), statistics.mean(map(len, answer.output_ids))]

    figures = (
        Figure(f"valid documents, {sizes.documents} at once", "1/s"),
        Figure("share of valid documents", "%", None),
        Figure("tokens of a document", "tok", None),
    )
    return Workload("JSON extraction", figures, (sizes.documents,), run)


def _random(generator: Random, length: int) -> Prompt:
    return [generator.randrange(1000, 40000) for _ in range(length)]


def _generation(floor: Floor, streams: int, prompt: int, output: int) -> Work:
    """The prompts bring the first tokens, decode steps the others."""
    first = floor.step(streams * prompt, streams, streams * prompt * (prompt + 1) // 2, 0)
    return total([first, floor.decode(streams, prompt, output - 1)])


def _rate(tokens: int, work: Work) -> tuple[float, str]:
    return tokens / work.seconds, work.bound


def _milliseconds(work: Work) -> tuple[float, str]:
    return 1000 * work.seconds, work.bound
