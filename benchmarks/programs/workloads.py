"""The eleven workloads, written as a user would who knows nothing of the compiler: no forks for speed, no hints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ramet as sgl

SHORT, LONG = 8, 24
TOPICS = ("rivers", "trains", "chess", "bread", "volcanoes", "violins", "moss", "satellites", "glass", "tides", "paper", "bees")
SHOTS = "".join(
    f"Question: Which of these is a {kind}?\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer: {answer}\n\n"
    for kind, a, b, c, d, answer in (
        ("metal", "iron", "oak", "silk", "milk", "A"),
        ("planet", "rain", "Venus", "salt", "wool", "B"),
        ("tree", "copper", "coal", "birch", "ice", "C"),
        ("river", "basalt", "cotton", "ember", "Danube", "D"),
        ("bird", "heron", "granite", "linen", "steam", "A"),
    )
)


@dataclass(frozen=True)
class Workload:
    """`arguments(i)` of the i-th run; `dependent` generations or host calls follow one another in a run."""

    name: str
    program: sgl.Function
    arguments: Callable[[int], Mapping[str, Any]]
    dependent: int


def topic(index: int) -> str:
    return f"{TOPICS[index % len(TOPICS)]} (case {index})"


@sgl.function
def few_shot(s, question):
    s += "The following are multiple choice questions with answers.\n\n" + SHOTS
    s += "Question: " + question + "\nA. one\nB. two\nC. three\nD. four\nAnswer: "
    s += sgl.gen("answer", regex="[ABCD]", max_tokens=2)
    return s["answer"]


@sgl.function
def classify(s, text):
    s += sgl.system("You sort texts by their mood.")
    s += sgl.user("Text: " + text) + sgl.assistant("The mood is " + sgl.select("mood", ["glad", "sad", "angry", "calm"]))
    s += sgl.user("And how sure are you?") + sgl.assistant(sgl.select("sure", ["sure", "unsure"]))
    return s["mood"], s["sure"]


@sgl.function
def solve(s, question, attempt):
    s += sgl.system("You solve riddles step by step and end with a number.")
    s += sgl.user(f"{question} Attempt {attempt}.")
    s += sgl.assistant(sgl.gen("thoughts", max_tokens=LONG) + " So the number is " + sgl.gen("number", regex="[0-9]{2}", max_tokens=3))
    return s["number"]


@sgl.function
def self_consistency(s, question):
    votes = [solve.run(question, attempt).value for attempt in range(4)]
    best = votes[0]
    for vote in votes:
        if votes.count(vote) > votes.count(best):
            best = vote
    s += sgl.user(question) + sgl.assistant("The number is " + best)
    return best


@sgl.function
def propose(s, problem, idea):
    s += sgl.system("You plan in small steps.")
    s += sgl.user(f"Problem: {problem}. Kind of plan: {idea}.") + sgl.assistant(sgl.gen("plan", max_tokens=SHORT))
    s += sgl.user("Grade it.") + sgl.assistant("Grade: " + sgl.gen("grade", regex="[1-9]", max_tokens=2))
    return s["plan"], s["grade"]


@sgl.function
def tree_of_thought(s, problem):
    best_plan = ""
    for _ in range(2):
        found = [propose.run(problem + best_plan, idea).value for idea in ("bold", "careful", "cheap")]
        best_grade = ""
        for plan, grade in found:
            if grade > best_grade:
                best_plan, best_grade = plan, grade
    s += sgl.user("Write it out: " + best_plan) + sgl.assistant(sgl.gen("answer", max_tokens=SHORT))
    return s["answer"]


@sgl.function
def expand(s, question, point):
    s += sgl.system("You write one short paragraph.")
    s += sgl.user(f"{question} Expand on: {point}") + sgl.assistant(sgl.gen("text", max_tokens=LONG))
    return s["text"]


@sgl.function
def skeleton_of_thought(s, question):
    s += sgl.user(question + " Name three points.")
    with s.assistant():
        s += "1. " + sgl.gen("a", max_tokens=SHORT)
        s += "\n2. " + sgl.gen("b", max_tokens=SHORT)
        s += "\n3. " + sgl.gen("c", max_tokens=SHORT)
    first = expand.run(question, s["a"]).value
    second = expand.run(question, s["b"]).value
    third = expand.run(question, s["c"]).value
    return "\n".join([first, second, third])


@sgl.function
def grade(s, essay, dimension):
    s += sgl.system("You judge essays fairly.")
    s += sgl.user("Essay: " + essay + "\nJudge its " + dimension + ".")
    s += sgl.assistant(sgl.gen("reason", max_tokens=SHORT) + " Grade: " + sgl.gen("grade", regex="[1-9]", max_tokens=2))
    return s["grade"]


@sgl.function
def judge(s, essay):
    clarity = grade.run(essay, "clarity").value
    style = grade.run(essay, "style").value
    depth = grade.run(essay, "depth").value
    s += sgl.user(f"Grades: clarity {clarity}, style {style}, depth {depth}. Conclude.")
    s += sgl.assistant(sgl.gen("verdict", max_tokens=SHORT))
    return clarity + style + depth, s["verdict"]


def look_up(query: str) -> str:
    return f"{len(query)} records, the newest of them from last spring"


@sgl.function
def react(s, question):
    s += sgl.system("Think, look something up, answer.") + sgl.user(question)
    for _ in range(3):
        s += sgl.assistant("Thought: " + sgl.gen("thought", max_tokens=SHORT))
        s += sgl.assistant("Search: " + sgl.gen("query", regex="[a-z]{4,8}", max_tokens=8))
        s += sgl.user("Found: " + look_up(s["query"]))
    s += sgl.assistant("Answer: " + sgl.gen("answer", max_tokens=SHORT))
    return s["answer"]


@sgl.function
def extract_json(s, letter):
    s += sgl.system("You fill in forms.") + sgl.user("Letter: " + letter)
    s += sgl.assistant(sgl.gen("form", regex=r'\{"urgent": (true|false), "pages": [1-9], "city": "[A-Z][a-z]{3,6}"\}', max_tokens=40))
    return re.fullmatch(r".*city.*", s["form"]) is not None


@sgl.function
def chat(s, opening, turns, length):
    s += sgl.system("You are a patient assistant.")
    for turn in range(turns):
        s += sgl.user(f"{opening} Part {turn + 1}.")
        s += sgl.assistant(sgl.gen("reply", max_tokens=length))
    return s["reply"]


@sgl.function
def read(s, question, document):
    s += sgl.system("You take notes.") + sgl.user(f"The question: {question}\nDocument: {document}")
    s += sgl.assistant(sgl.gen("note", max_tokens=SHORT))
    return s["note"]


@sgl.function
def rag_map_reduce(s, question, documents):
    notes = [read.run(question, document).value for document in documents]
    s += sgl.user("Notes:\n" + "\n".join(notes) + "\n" + question) + sgl.assistant(sgl.gen("answer", max_tokens=SHORT))
    return s["answer"]


WORKLOADS = (
    Workload("few_shot", few_shot, lambda i: {"question": f"Which belongs to {topic(i)}?"}, 1),
    Workload("classify", classify, lambda i: {"text": f"Today I thought of {topic(i)} for hours."}, 2),
    Workload("self_consistency", self_consistency, lambda i: {"question": f"How many {topic(i)} fit?"}, 8),
    Workload("tree_of_thought", tree_of_thought, lambda i: {"problem": f"learn about {topic(i)}"}, 13),
    Workload("skeleton_of_thought", skeleton_of_thought, lambda i: {"question": f"Why care about {topic(i)}?"}, 6),
    Workload("judge", judge, lambda i: {"essay": f"An essay on {topic(i)}. " * 6}, 7),
    Workload("react", react, lambda i: {"question": f"What is new about {topic(i)}?"}, 10),
    Workload("extract_json", extract_json, lambda i: {"letter": f"Dear Sir, concerning {topic(i)}, yours."}, 1),
    Workload("chat_short", chat, lambda i: {"opening": f"About {topic(i)}.", "turns": 4, "length": SHORT}, 4),
    Workload("chat_long", chat, lambda i: {"opening": f"At length about {topic(i)}.", "turns": 4, "length": LONG}, 4),
    Workload(
        "rag_map_reduce",
        rag_map_reduce,
        lambda i: {"question": f"What of {topic(i)}?", "documents": [f"Document {n} says this of {topic(i)}. " * 4 for n in range(4)]},
        5,
    ),
)
