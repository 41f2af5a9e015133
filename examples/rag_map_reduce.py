"""Map-reduce over documents: a fork reads each document, the parent answers from what was found."""

from __future__ import annotations

from connect import connect

import ramet as sgl

DOCUMENTS = [
    "A ramet is an individual shoot of a clonal colony; all of them share one root system.",
    "The aspen colony Pando in Utah has about 47,000 stems and is thought to be thousands of years old.",
    "Strawberries spread by runners, thin stems that root where they touch the ground.",
]


@sgl.function
def map_reduce(s, question, documents):
    s += sgl.system("You answer from documents.")
    s += sgl.user("The question will be: " + question)
    readers = s.fork(len(documents))
    readers += lambda i: (
        sgl.user(f"Document {i + 1}:\n{documents[i]}\nDoes it help?")
        + sgl.assistant(sgl.select("helps", ["yes", "no"]) + ". Note: " + sgl.gen("note", max_tokens=40, stop="\n"))
    )
    readers.join()
    notes = [note.strip() for note, helps in zip(s["note"], s["helps"], strict=True) if helps == "yes"]
    s += sgl.user("Notes:\n" + ("\n".join(notes) or "none") + "\nAnswer the question in one sentence.")
    s += sgl.assistant(sgl.gen("answer", max_tokens=48))
    return s["answer"], notes


def main() -> None:
    connect(__doc__)
    answer, notes = map_reduce.run(question="How old is Pando?", documents=DOCUMENTS).value
    print(f"from {len(notes)} notes: {answer}")


if __name__ == "__main__":
    main()
