"""What is asked: SGLang's synthetic workloads under their names, flags and defaults, and prompts from a file.

Synthetic prompts are token ids. A run is repeatable: the same seed gives the same requests.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramet.errors import ConfigError

DATASETS = ("random-ids", "generated-shared-prefix", "custom")
ELSEWHERE = ("sharegpt", "random", "mmmu", "image", "mooncake")
DEFAULT_CUSTOM_OUTPUT_LEN = 256


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request: a prompt as text or token ids, and how many tokens are wanted."""

    prompt: str | tuple[int, ...]
    output_len: int

    @property
    def prompt_len(self) -> int | None:
        """Tokens; None while only a tokenizer would know."""
        return None if isinstance(self.prompt, str) else len(self.prompt)


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("workload")
    own.add_argument("--dataset-name", default="random-ids", help=f"one of {', '.join(DATASETS)} (default: %(default)s)")
    own.add_argument("--dataset-path", default="", help="custom: JSON lines with 'prompt' (text or ids), optionally 'output_len'")
    own.add_argument("--num-prompts", type=int, default=1000, help="requests (default: %(default)s)")
    own.add_argument("--random-input-len", type=int, default=1024, help="random-ids: prompt tokens (default: %(default)s)")
    own.add_argument("--random-output-len", type=int, default=1024, help="random-ids: output tokens (default: %(default)s)")
    own.add_argument(
        "--random-range-ratio", type=float, default=0.0, help="random-ids: shortest length as a share of the longest (default: %(default)s)"
    )
    own.add_argument("--gsp-num-groups", type=int, default=64, help="generated-shared-prefix: groups (default: %(default)s)")
    own.add_argument("--gsp-prompts-per-group", type=int, default=16, help="requests of a group (default: %(default)s)")
    own.add_argument("--gsp-system-prompt-len", type=int, default=2048, help="tokens that a group shares (default: %(default)s)")
    own.add_argument("--gsp-question-len", type=int, default=128, help="tokens of a request's own (default: %(default)s)")
    own.add_argument("--gsp-output-len", type=int, default=256, help="output tokens (default: %(default)s)")
    own.add_argument("--gsp-ordered", action="store_true", default=False, help="send group after group instead of shuffled")
    own.add_argument("--seed", type=int, default=1, help="seed of prompts and arrivals (default: %(default)s)")


def build_workload(args: argparse.Namespace, vocab_size: int) -> list[BenchRequest]:
    rng = random.Random(args.seed)
    if args.dataset_name == "random-ids":
        return random_ids(rng, vocab_size, args.num_prompts, args.random_input_len, args.random_output_len, args.random_range_ratio)
    if args.dataset_name == "generated-shared-prefix":
        return shared_prefix(rng, vocab_size, args)
    if args.dataset_name == "custom":
        return custom(Path(args.dataset_path), args.num_prompts)
    if args.dataset_name in ELSEWHERE:
        raise ConfigError(
            f"--dataset-name {args.dataset_name} needs data that is not here: use random-ids, which needs none, or custom with "
            "--dataset-path FILE, JSON lines with 'prompt', or with 'conversations' as ShareGPT has them"
        )
    raise ConfigError(f"--dataset-name '{args.dataset_name}' is none of {', '.join(DATASETS)}")


def random_ids(
    rng: random.Random, vocab_size: int, num_prompts: int, input_len: int, output_len: int, range_ratio: float
) -> list[BenchRequest]:
    """Lengths uniform between range_ratio × longest and longest; each prompt a run of consecutive ids from a random start."""
    if not 0.0 <= range_ratio <= 1.0:
        raise ConfigError(f"--random-range-ratio {range_ratio} is outside 0 … 1")

    def length(longest: int) -> int:
        return rng.randint(max(int(longest * range_ratio), 1), longest)

    requests = []
    for index in range(num_prompts):
        prompt_len, start = length(input_len), rng.randrange(vocab_size)
        prompt = tuple((start + index + i) % vocab_size for i in range(prompt_len))
        requests.append(BenchRequest(prompt, length(output_len)))
    return requests


def shared_prefix(rng: random.Random, vocab_size: int, args: argparse.Namespace) -> list[BenchRequest]:
    """Groups of requests that share a long beginning and differ in a short end."""

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(vocab_size), k=count))

    requests: list[BenchRequest] = []
    for _ in range(args.gsp_num_groups):
        prefix = tokens(args.gsp_system_prompt_len)
        questions = [tokens(args.gsp_question_len) for _ in range(args.gsp_prompts_per_group)]
        requests += [BenchRequest(prefix + question, args.gsp_output_len) for question in questions]
    if not args.gsp_ordered:
        rng.shuffle(requests)
    return requests


def custom(path: Path, num_prompts: int) -> list[BenchRequest]:
    """The first `num_prompts` lines of a file."""
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"--dataset-path {path}: {error.strerror}; give a file of JSON lines") from error
    return [_custom_request(line, f"{path}:{number}") for number, line in enumerate(lines[:num_prompts], 1)]


def _custom_request(line: str, place: str) -> BenchRequest:
    try:
        entry = json.loads(line)
        prompt = _custom_prompt(entry)
        return BenchRequest(prompt if isinstance(prompt, str) else tuple(prompt), int(entry.get("output_len", DEFAULT_CUSTOM_OUTPUT_LEN)))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(f"{place}: expected an object with 'prompt' or 'conversations' ({error})") from error


def _custom_prompt(entry: dict[str, Any]) -> str | Sequence[int]:
    if "prompt" in entry:
        prompt: str | Sequence[int] = entry["prompt"]
        return prompt
    turn = entry["conversations"][0]
    return str(turn["content"] if "content" in turn else turn["value"])
