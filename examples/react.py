"""ReAct: think, call a tool, look at what it says, until the answer is there. The tools are plain Python; `sgl.host` keeps one that
blocks from holding up other programs."""

from __future__ import annotations

from connect import connect

import ramet as sgl

POPULATION = {"iceland": 393_600, "malta": 563_400, "peru": 34_350_000}
TOOLS = [
    {
        "name": "population",
        "description": "Number of inhabitants of a country.",
        "parameters": {
            "type": "object",
            "properties": {"country": {"enum": ["Iceland", "Malta", "Peru"]}},
            "required": ["country"],
            "additionalProperties": False,
        },
    },
    {
        "name": "finish",
        "description": "Give the final answer.",
        "parameters": {
            "type": "object",
            "properties": {"answer": {"type": "string", "maxLength": 60}},
            "required": ["answer"],
            "additionalProperties": False,
        },
    },
]


@sgl.host
def population(country: str) -> str:
    return f"{country} has {POPULATION[country.lower()]:,} inhabitants."


@sgl.function
def react(s, question, max_steps=4):
    names = "; ".join(f"{tool['name']}: {tool['description']}" for tool in TOOLS)
    s += sgl.user(f"Answer with the help of tools ({names})\nQuestion: {question}")
    for _ in range(max_steps):
        s += sgl.assistant(
            "Thought: " + sgl.gen("thought", stop="\n", max_tokens=40) + "\nCall: " + sgl.gen("call", tools=TOOLS, max_tokens=80)
        )
        call = s["call"]
        if call["name"] == "finish":
            return call["arguments"]["answer"]
        s += sgl.user("Observation: " + population(call["arguments"]["country"]))
    return "no answer within the steps allowed"


def main() -> None:
    connect(__doc__)
    state = react.run("Does Malta have more inhabitants than Iceland?", temperature=0)
    print(state.text())
    print("Answer:", state.value)


if __name__ == "__main__":
    main()
