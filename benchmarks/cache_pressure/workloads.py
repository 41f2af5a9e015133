"""Three kinds of program whose KV lives longer than one generation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import ramet as sgl

WORDS = ("root", "shoot", "leaf", "stem", "branch", "twig", "seed", "bark", "moss", "fern", "lichen", "spore", "pollen", "petal", "thorn")
RULES = "Work in small steps. Look things up. Say what you found and where. Never guess. "


def prose(key: object, length: int) -> str:
    """The same words for the same key."""
    dice = random.Random(str(key))
    text = ""
    while len(text) < length:
        text += dice.choice(WORDS) + " "
    return text[:length]


def delay(key: str, low: float, high: float) -> float:
    return low + (high - low) * random.Random(key).random()


async def look_up(query: str) -> str:
    """A tool, in virtual time."""
    await asyncio.sleep(delay(query, 0.3, 2.0))
    return prose(query, 240)


async def next_message(reply: str) -> str:
    await asyncio.sleep(delay(reply, 0.5, 2.5))
    return prose(reply, 160)


@sgl.function
def react(s, question):
    s += sgl.system(RULES * 4)
    s += sgl.user(question)
    for _ in range(5):
        s += sgl.assistant("Thought: " + sgl.gen("thought", max_tokens=24) + "Search: " + sgl.gen("query", max_tokens=12))
        s += sgl.user("Found: " + look_up(s["query"]))
    s += sgl.assistant(sgl.gen("answer", max_tokens=32))
    return s["answer"]


@sgl.function
def tree_of_thought(s, problem):
    s += sgl.system(RULES * 4)
    s += sgl.user(problem)
    for _ in range(3):
        forks = s.fork(4)
        for fork in forks:
            fork += sgl.assistant("A step: " + sgl.gen("step", max_tokens=24) + " Grade: " + sgl.gen("grade", max_tokens=2))
        best = forks[0]["step"]
        grade = forks[0]["grade"]
        for fork in forks:
            if fork["grade"] > grade:
                best = fork["step"]
                grade = fork["grade"]
        forks.join()
        s += sgl.assistant("Best: " + best)
    s += sgl.assistant(sgl.gen("answer", max_tokens=32))
    return s["answer"]


@sgl.function
def chat(s, opening):
    s += sgl.system(RULES * 4)
    s += sgl.user(opening)
    for _ in range(7):
        s += sgl.assistant(sgl.gen("reply", max_tokens=32))
        s += sgl.user(next_message(s["reply"]))
    s += sgl.assistant(sgl.gen("reply", max_tokens=32))
    return s["reply"]


@dataclass(frozen=True)
class Workload:
    """`argument(i)` of the i-th program; `live` programs are alive at once."""

    name: str
    program: sgl.Function
    argument: Callable[[int], str]
    live: int


WORKLOADS = (
    Workload("react", react, lambda i: prose(("react", i), 900), 64),
    Workload("tree_of_thought", tree_of_thought, lambda i: prose(("tot", i), 1200), 48),
    Workload("chat", chat, lambda i: prose(("chat", i), 300), 96),
)
