"""What it costs to guess: milliseconds per token of one stream and of several, without guesses and beside an EAGLE-3 head whose guesses are
all wrong, since its weights are random. From that, from which number of right guesses a step on guessing wins.

    python -m benchmarks.gpu.guess_costs MODEL_DIR HEAD_DIR

Both directories need no more than a config.json: the 8B shape, and a head's of it (`draft_vocab_size`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from benchmarks.gpu.peer_factory import PeerEngine

STREAMS = (1, 4, 16)
NUM_GUESSES = (2, 4, 6)
PROMPT_LEN, NUM_TOKENS, ROUNDS = 512, 128, 2


def milliseconds(engine: PeerEngine, streams: int) -> float:
    """Per token of a stream, the median of a few rounds; prefill not counted."""
    found = []
    for number in range(ROUNDS + 1):
        prompts = [[(7 * number + 13 * i + j) % 30_000 + 10 for j in range(PROMPT_LEN)] for i in range(streams)]
        times = []
        for length in (1, NUM_TOKENS):
            begin = time.perf_counter()
            engine.generate(prompts, [length] * streams)
            times.append(time.perf_counter() - begin)
        found.append(1e3 * (times[1] - times[0]) / (NUM_TOKENS - 1))
    return statistics.median(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("head")
    args = parser.parse_args()
    plain: dict[int, float] = {}
    for count in (0, *NUM_GUESSES):
        head: dict[str, Any] = {
            "speculative_algorithm": "EAGLE3",
            "speculative_draft_model_path": args.head,
            "speculative_num_steps": count,
            "speculative_always": True,
        }
        engine = PeerEngine(args.model, with_text=False, extra={"disable_radix_cache": True, **(head if count else {})})
        for streams in STREAMS:
            found = milliseconds(engine, streams)
            base = plain.setdefault(streams, found)
            row = {
                "guesses": count,
                "streams": streams,
                "ms_per_step": round(found, 2),
                "wins_from_right_guesses": round(found / base - 1, 2),
            }
            print(json.dumps(row), flush=True)
        engine.close()


if __name__ == "__main__":
    main()
