"""Greedy tokens of the engine against `transformers.generate` on the embedded model: 50 chat prompts × 64 tokens, every way to run them.

    python -m benchmarks.greedy_parity --write       # make the reference anew (needs `pip install accelerate`; 5 minutes)
    python -m benchmarks.greedy_parity               # run the engine in all settings against it (about 10 minutes)

The engine runs with `--quantization none`, in float32 as transformers does. Two float32 programs may round differently: a sequence may part
from the reference only at a token where the reference's two best logits are closer than TIE, and each such place is counted and shown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "greedy" / "smollm2.json"
NUM_TOKENS = 64
TIE = 2e-3

TASKS = (
    "What is the capital of France?",
    "Explain photosynthesis in two sentences.",
    "Write a haiku about the sea.",
    "Translate 'good morning' into Spanish, French and German.",
    "List three uses of a paper clip.",
    "What is 17 + 25? Show the steps.",
    "Write a Python function that reverses a string.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "Summarise: The quick brown fox jumps over the lazy dog. The dog sleeps on.",
    "请用中文介绍一下长城。",
    "Schreibe einen Satz über den Herbst.",
    "Was ist 3,14159 auf zwei Stellen gerundet?",
    "Complete the sequence: 2, 4, 8, 16,",
    "Who wrote Hamlet? 🎭",
    "def fib(n):\n    if n < 2:\n        return n\n",
    '{"name": "Ada", "born": 1815} — what does this JSON say?',
    "Name a colour, an animal and a country.",
    "Is water wet? Answer yes or no, and why.",
    "Tell me a joke about computers.",
    "How do I boil an egg?",
    "What does HTTP status 404 mean?",
    "Rewrite politely: give me the report now.",
    "Write an SQL query that counts rows in the table `users`.",
    "Приведи пример пословицы.",
)
SYSTEMS = (None, "You are terse. Answer in as few words as you can.")


@dataclass(frozen=True, slots=True)
class Reference:
    """`margins[i]`: by how much the best logit beat the second when token i was chosen."""

    prompt: list[int]
    tokens: list[int]
    margins: list[float]


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    options: dict[str, Any]
    at_once: int = 32


SETTINGS = (
    Setting("radix, pages 1, overlap", {}),
    Setting("no radix cache", {"disable_radix_cache": True}),
    Setting("serial loop", {"disable_overlap_schedule": True}),
    Setting("pages of 16", {"page_size": 16}),
    Setting("chunks of 16", {"chunked_prefill_size": 16}),
    Setting("chunks of 16, pages of 16, serial", {"chunked_prefill_size": 16, "page_size": 16, "disable_overlap_schedule": True}),
    Setting("chunks of 2048, no radix cache, pages of 16", {"chunked_prefill_size": 2048, "disable_radix_cache": True, "page_size": 16}),
    Setting("one at a time", {}, at_once=1),
    Setting("one at a time, no radix cache, serial", {"disable_radix_cache": True, "disable_overlap_schedule": True}, at_once=1),
    Setting("two tensor-parallel ranks", {"tp_size": 2}),
)


def prompts() -> list[list[int]]:
    """Token ids of the 50 chat prompts, through the model's own template and tokenizer."""
    from ramet.runtime.model_files import locate_model
    from ramet.runtime.text.chat_template import load_chat_template
    from ramet.runtime.text.tokenizer import load_tokenizer

    files = locate_model(None)
    tokenizer = load_tokenizer(files)
    template = load_chat_template(files, tokenizer)
    assert template is not None
    found = []
    for system in SYSTEMS:
        for task in TASKS:
            messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": task}]
            found.append(tokenizer.encode(template.render(messages), add_special_tokens=False))
    return found


def make_reference(wanted: list[list[int]], num_tokens: int) -> list[Reference]:
    """`transformers`, loading the GGUF file by itself, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    from ramet.runtime.model_files import locate_model

    path = locate_model(None).path
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
    found = []
    for prompt in wanted:
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": num_tokens, "eos_token_id": [2, 0], "pad_token_id": 2}
        done = model.generate(ids, attention_mask=torch.ones_like(ids), output_logits=True, return_dict_in_generate=True, **options)
        best = [step[0].topk(2).values for step in done.logits]
        found.append(Reference(prompt, done.sequences[0, len(prompt) :].tolist(), [round(float(b[0] - b[1]), 5) for b in best]))
    return found


def load_reference() -> list[Reference]:
    return [Reference(**row) for row in json.loads(GOLDEN.read_text())]


def run_engine(setting: Setting, references: list[Reference], num_tokens: int, log_level: str = "warning") -> list[list[int]]:
    from ramet import Engine

    engine = Engine(quantization="none", log_level=log_level, **setting.options)
    try:
        outputs: list[list[int]] = []
        for start in range(0, len(references), setting.at_once):
            batch = [reference.prompt for reference in references[start : start + setting.at_once]]
            replies = engine.generate(input_ids=batch, sampling_params={"temperature": 0, "max_new_tokens": num_tokens})
            outputs += [reply["output_ids"] for reply in replies]
        return outputs
    finally:
        engine.shutdown()


def compare(references: list[Reference], outputs: list[list[int]], num_tokens: int) -> tuple[int, list[str]]:
    """Number of ties that went the other way, and the differences that no tie explains."""
    ties, wrong = 0, []
    for i, (reference, output) in enumerate(zip(references, outputs, strict=True)):
        expected = reference.tokens[:num_tokens]
        if output == expected:
            continue
        at = next((k for k, (a, b) in enumerate(zip(expected, output, strict=False)) if a != b), min(len(expected), len(output)))
        margin = reference.margins[at] if at < len(reference.margins) else float("inf")
        if margin < TIE:
            ties += 1
        else:
            wrong.append(f"prompt {i}, token {at}: {output[at : at + 1]} instead of {expected[at : at + 1]} (margin {margin})")
    return ties, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make the reference file")
    parser.add_argument("--only", type=int, nargs="+", default=range(len(SETTINGS)), help="numbers of the settings to run, from 0")
    arguments = parser.parse_args()
    if arguments.write:
        rows = [{"prompt": r.prompt, "tokens": r.tokens, "margins": r.margins} for r in make_reference(prompts(), NUM_TOKENS)]
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        return 0
    references, failed = load_reference(), False
    for setting in (SETTINGS[i] for i in arguments.only):
        began = time.perf_counter()
        ties, wrong = compare(references, run_engine(setting, references, NUM_TOKENS), NUM_TOKENS)
        failed |= bool(wrong)
        equal = len(references) - ties - len(wrong)
        print(f"{setting.name}: {equal} equal, {ties} ties, {len(wrong)} wrong, {time.perf_counter() - began:.0f} s", flush=True)
        print("".join(f"    {line}\n" for line in wrong), end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
