"""Branch, solve, merge: judge an essay along several dimensions at once, then merge the judgements into one grade."""

from __future__ import annotations

from connect import connect

import ramet as sgl

DIMENSIONS = ["clarity", "originality", "evidence"]
ESSAY = "Cities should plant more trees. They cool the streets, they clean the air, and people who see them are happier."


@sgl.function
def judge(s, essay):
    s += sgl.system("You grade essays.")
    s += sgl.user("The essay:\n" + essay)
    forks = s.fork(len(DIMENSIONS))
    for dimension, fork in zip(DIMENSIONS, forks, strict=True):
        fork += sgl.user(f"Judge its {dimension} in one sentence, then give points from 1 to 10.")
        fork += sgl.assistant(sgl.gen("judgement", max_tokens=48, stop="\n") + "\nPoints: " + sgl.gen("points", regex="([1-9]|10)"))
    forks.join()
    summary = "\n".join(f"{d}: {j.strip()} ({p}/10)" for d, j, p in zip(DIMENSIONS, s["judgement"], s["points"], strict=True))
    s += sgl.user("The judgements:\n" + summary + "\nGive the overall grade.")
    s += sgl.assistant("Grade: " + sgl.gen("grade", choices=["A", "B", "C", "D"]))
    return summary, s["grade"]


def main() -> None:
    connect(__doc__)
    summary, grade = judge.run(ESSAY).value
    print(summary)
    print("Overall:", grade)


if __name__ == "__main__":
    main()
