"""Classify many texts at once: `select` scores every label in one pass and says how sure it is.

The labels have different lengths, so the choice is made token by token: the default, a mean per token, would favour "feature request",
whose second token is certain once the first is there.
"""

from __future__ import annotations

from connect import connect

import ramet as sgl

TICKETS = [
    "The app closes whenever I open the settings.",
    "Could you add a dark theme?",
    "How do I export my data?",
    "I was charged twice this month.",
]
LABELS = ["bug", "feature request", "question", "billing"]


@sgl.function
def classify(s, ticket):
    s += sgl.system("You sort support tickets into: " + ", ".join(LABELS) + ".")
    s += sgl.user(ticket)
    s += sgl.assistant("Category: " + sgl.select("label", LABELS, choices_method=sgl.greedy_token_selection))
    return s["label"]


def main() -> None:
    connect(__doc__)
    results = classify.run_batch([{"ticket": ticket} for ticket in TICKETS], progress_bar=True)
    for ticket, state in zip(TICKETS, results, strict=True):
        probabilities = dict(zip(LABELS, state.get_meta_info("label")["probabilities"], strict=True))
        print(f"{state.value:16} {probabilities[state.value]:5.0%}  {ticket}")


if __name__ == "__main__":
    main()
