"""Tree of thought: propose several next steps, score each, and go on from the best. The branches run at the same time and share
everything before them in the cache."""

from __future__ import annotations

from connect import connect

import ramet as sgl

GRADES = ["hopeless", "possible", "promising"]


@sgl.function
def tree_of_thought(s, problem, depth=2, width=3):
    s += sgl.system("You solve problems step by step.")
    s += sgl.user(problem)
    for level in range(1, depth + 1):
        branches = s.fork(width)
        for number, branch in enumerate(branches):
            branch += sgl.assistant(f"Step {level}: " + sgl.gen("step", max_tokens=48, temperature=0.8, seed=number, stop="\n"))
            branch += sgl.user("How good is this step?")
            branch += sgl.assistant(sgl.select("grade", GRADES))
        best = most_promising([branch.get_meta_info("grade")["probabilities"] for branch in branches])
        s += sgl.assistant(f"Step {level}: " + branches[best]["step"]) + sgl.user("Go on.")
    s += sgl.assistant("So the final answer is " + sgl.gen("answer", max_tokens=48))
    return s["answer"], s.text()


def most_promising(distributions):
    """The branch with the highest expected grade under the model's own distribution, finer than the chosen words."""
    expected = [sum(grade * probability for grade, probability in enumerate(each)) for each in distributions]
    return expected.index(max(expected))


def main() -> None:
    connect(__doc__)
    answer, path = tree_of_thought.run("Make 24 out of the numbers 4, 6, 8 and 2.").value
    print(path)
    print("Answer:", answer)


if __name__ == "__main__":
    main()
