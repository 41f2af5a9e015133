"""Self-consistency: several chains of thought for one question, and the answer that most of them reach."""

from __future__ import annotations

from collections import Counter

from connect import connect

import ramet as sgl


@sgl.function
def self_consistency(s, question, samples=5):
    s += sgl.user(question + " Think step by step, then give the number.")
    forks = s.fork(samples)
    forks += lambda i: sgl.assistant(
        sgl.gen("thoughts", max_tokens=64, temperature=0.8, seed=i) + "\nThe answer is " + sgl.gen("answer", regex="[0-9]{1,4}")
    )
    forks.join()
    return count(s["answer"])


def count(answers):
    """A plain Python function: a compiled program calls back for it."""
    return Counter(answers).most_common()


def main() -> None:
    connect(__doc__)
    votes = self_consistency.run("A train has 4 cars with 12 seats each, and 9 seats are taken. How many are free?").value
    print("votes:", ", ".join(f"{answer} ({count})" for answer, count in votes))
    print("answer:", votes[0][0])


if __name__ == "__main__":
    main()
