"""Skeleton of thought: first the headings, then all paragraphs at the same time."""

from __future__ import annotations

from connect import connect

import ramet as sgl


@sgl.function
def skeleton_of_thought(s, question, points=3):
    s += sgl.user(f"{question}\nFirst list {points} short headings, one a line.")
    s += sgl.assistant_begin()
    for number in range(points):
        s += f"{number + 1}. " + sgl.gen(f"heading_{number}", stop="\n", max_tokens=12) + "\n"
    s += sgl.assistant_end()

    forks = s.fork(points)
    forks += lambda i: sgl.user(f"Write two sentences on heading {i + 1}.") + sgl.assistant(sgl.gen("paragraph", max_tokens=64))
    forks.join()
    return [(s[f"heading_{number}"].strip(), s["paragraph"][number].strip()) for number in range(points)]


def main() -> None:
    connect(__doc__)
    for heading, paragraph in skeleton_of_thought.run("Why do leaves turn red in autumn?").value:
        print(f"## {heading}\n{paragraph}\n")


if __name__ == "__main__":
    main()
