"""The behaviours that SGLang's own front-end tests list: compiled and interpreted give the same, on a script, on an engine in this
process, and on a server that runs the program beside its cache."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest

import ramet as sgl
from ramet.program.backend import GenerateCall, GenerateChunk
from ramet.program.scripted import ScriptedBackend, invent
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from tests.fakes import fake_engine, fake_text, unhurried_fake_executor
from tests.server.live_server import live_server
from tests.waiting import PATIENCE, until


def closed_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


TOOLS = [
    {"name": "search", "parameters": closed_object(query={"enum": ["rivers", "lakes"]})},
    {"name": "finish", "parameters": closed_object(answer={"enum": ["Po", "Rhine"]})},
]
PERSON = closed_object(age={"type": "integer", "minimum": 1, "maximum": 9})


def search(query: str) -> str:
    return f"facts about {query}"


@sgl.function
def few_shot_qa(s: Any, question: str) -> Any:
    s += "Q: What is the capital of France?\nA: Paris\n"
    s += "Q: What is the capital of Germany?\nA: Berlin\n"
    s += "Q: " + question + "\nA:" + sgl.gen("answer", stop="\n", max_tokens=8)
    return s["answer"]


@sgl.function
def multi_turn(s: Any, questions: Sequence[str]) -> Any:
    s += sgl.system("Be brief.")
    for index, question in enumerate(questions):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer_{index}", max_tokens=6))
    return [s[f"answer_{index}"] for index in range(len(questions))]


@sgl.function
def select(s: Any) -> Any:
    s += "The sky is " + sgl.select("color", ["green", "light blue", "red"], choices_method=sgl.greedy_token_selection) + "."
    s += " It is " + sgl.gen("time", choices=["day", "night"])
    return s["color"], s["time"], s.get_meta_info("color")["decision"]


@sgl.function
def int_decoding(s: Any) -> Any:
    s += "The number of days in a week is " + sgl.gen_int("days", max_tokens=4) + "."
    s += " Half: " + sgl.gen("half", dtype=float, max_tokens=6) + " sure? " + sgl.gen("sure", dtype=bool, max_tokens=6)
    return s["days"] + 1, s["half"], not s["sure"]


@sgl.function
def json_by_regex(s: Any) -> Any:
    s += "A person: " + sgl.gen("json", regex=r'\{"name": "[a-z]{2,5}", "age": [1-9][0-9]\}', max_tokens=64)
    found = json.loads(s["json"])
    return found["name"].upper(), found["age"]


@sgl.function
def json_by_schema(s: Any) -> Any:
    s += "A person: " + sgl.gen("person", json_schema=PERSON, max_tokens=64)
    return s["person"]["age"] * 2


@sgl.function
def expert_answer(s: Any, question: str) -> Any:
    s += sgl.user("Two tips about " + question) + sgl.assistant(sgl.gen("tips", max_tokens=6))
    forks = s.fork(2)
    forks += lambda i: sgl.user(f"Expand tip {i + 1}.") + sgl.assistant(sgl.gen("detail", max_tokens=6))
    forks.join()
    s += sgl.user("Conclude from:\n" + "\n".join(s["detail"])) + sgl.assistant(sgl.gen("end", max_tokens=6))
    return s["detail"], s["end"]


@sgl.function
def react(s: Any, question: str) -> Any:
    s += "Question: " + question + "\n"
    for step in range(1, 4):
        s += f"Thought {step}:" + sgl.gen("thought", stop="\n", max_tokens=6) + f"\nAction {step}: "
        s += sgl.gen("call", tools=TOOLS, max_tokens=80) + "\n"
        if s["call"]["name"] == "finish":
            return s["call"]["arguments"]["answer"]
        s += f"Observation {step}: " + search(s["call"]["arguments"]["query"]) + "\n"
    return "out of steps"


@sgl.function
def parallel_decoding(s: Any) -> Any:
    s += "Topics."
    forks = s.fork(3)
    for i, fork in enumerate(forks):
        fork += f" {i}:" + sgl.gen("paragraph", stop="\n", max_tokens=5)
    forks.join()
    return s["paragraph"]


@sgl.function
def parallel_encoding(s: Any, contexts: Sequence[str]) -> Any:
    forks = s.fork(len(contexts))
    for fork, context in zip(forks, contexts, strict=True):
        fork += context + "\n"
    forks.join(mode="concate_and_append")
    s += "In short:" + sgl.gen("answer", max_tokens=6)
    return s["answer"]


@sgl.function
def with_logprobs(s: Any) -> Any:
    s += sgl.user("Hi") + sgl.assistant(sgl.gen("answer", max_tokens=5, return_logprob=True, top_logprobs_num=2))
    return len(s.get_meta_info("answer")["output_token_logprobs"])


@sgl.function(num_api_spec_tokens=64)
def character(s: Any) -> Any:
    s += "Name:" + sgl.gen("name", stop="\n", max_tokens=4) + "\nBirthday:" + sgl.gen("birthday", stop="\n", max_tokens=4)
    s += "\nJob:" + sgl.gen("job", stop="\n", max_tokens=4) + "\n"
    return s["name"], s["job"]


@sgl.function
def min_tokens(s: Any) -> Any:
    s += "A long story:" + sgl.gen("x", min_tokens=12, max_tokens=16)
    return s.get_meta_info("x")["completion_tokens"] >= 12


@sgl.function
def several_answers(s: Any) -> Any:
    s += "Dice: " + sgl.gen("roll", n=3, seed=5, regex="[1-6]", max_tokens=2)
    return s["roll"]


@sgl.function
def ambient(topic: str) -> Any:
    history = sgl.user("Welcome.")
    history += sgl.assistant("Hello!")
    history += sgl.user("Tell me about " + topic)
    response = sgl.assistant(sgl.gen("reply", max_tokens=6))
    return response


@sgl.function
def scopes_and_copies(s: Any) -> Any:
    with s.user():
        s += "Name a "
        s += "colour."
    with s.assistant(), s.var_scope("all"):
        s += "Well, " + sgl.gen("x", max_tokens=4)
    with s.copy() as aside:
        aside += sgl.user("Sure?") + sgl.assistant(sgl.gen("sure", max_tokens=3))
        s["doubt"] = aside["sure"]
    return s["all"], s["doubt"], "x" in s, "nothing" in s


@sgl.function
def summarise(s: Any, text: str) -> Any:
    s += sgl.user("Summarise: " + text) + sgl.assistant(sgl.gen("summary", max_tokens=4))
    return s["summary"]


@sgl.function
def nested(s: Any, texts: Sequence[str]) -> Any:
    inner = [summarise.run(text, temperature=0).value for text in texts]
    here = summarise(s, "all of it: " + ", ".join(inner))
    return inner, here, {1: "one", "key": (1, 2)}


PROGRAMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "few_shot_qa": (few_shot_qa, {"question": "What is the capital of Italy?"}),
    "multi_turn": (multi_turn, {"questions": ["Where?", "When?", "Why?"]}),
    "select": (select, {}),
    "int_decoding": (int_decoding, {}),
    "json_by_regex": (json_by_regex, {}),
    "json_by_schema": (json_by_schema, {}),
    "expert_answer": (expert_answer, {"question": "health"}),
    "react": (react, {"question": "The longest river of Italy?"}),
    "parallel_decoding": (parallel_decoding, {}),
    "parallel_encoding": (parallel_encoding, {"contexts": ["one", "two", "three"]}),
    "with_logprobs": (with_logprobs, {}),
    "character": (character, {}),
    "min_tokens": (min_tokens, {}),
    "several_answers": (several_answers, {}),
    "ambient": (ambient, {"topic": "AI safety"}),
    "scopes_and_copies": (scopes_and_copies, {}),
    "nested": (nested, {"texts": ["a", "b"]}),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    engine = fake_engine()
    yield engine
    engine.close_now()


@pytest.fixture(scope="module")
def server(engine: AsyncEngine) -> Iterator[sgl.RuntimeEndpoint]:
    with live_server(engine) as url:
        yield sgl.RuntimeEndpoint(url)


def answer(call: GenerateCall) -> str | None:
    """Invented, by prompt and constraint; types are told by their regexes."""
    if call.sampling.get("choices"):
        return str(call.sampling["choices"][len(call.conversation.parts) % len(call.sampling["choices"])])
    return invent(call) + ("\n" if "stop" in call.sampling else "")


def shown(state: sgl.ProgramState) -> dict[str, Any]:
    """Everything of a result that does not depend on the time."""
    names = state.variables()
    timeless = ("finish_reason", "completion_tokens", "prompt_tokens", "output_token_logprobs", "output_top_logprobs", "decision", "scores")
    metas = {name: {k: v for k, v in state._track.meta[name].items() if k in timeless} for name in names if name in state._track.meta}
    return {"value": state.value, "text": state.text(), "messages": state.messages(), "variables": names, "meta": metas}


def same(left: Any, right: Any) -> bool:
    """Equal in value and type all the way down; scores may differ in their last bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == pytest.approx(right)) if isinstance(left, float) else bool(left == right)


Way = Callable[[AsyncEngine, sgl.RuntimeEndpoint], Any]
WAYS: dict[str, Way] = {
    "script": lambda engine, server: ScriptedBackend(answer, latency=0.01),
    "engine": lambda engine, server: engine,
    "server": lambda engine, server: server,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_equals_interpreted(name: str, way: str, engine: AsyncEngine, server: sgl.RuntimeEndpoint) -> None:
    program, arguments = PROGRAMS[name]
    options: dict[str, Any] = {"backend": WAYS[way](engine, server), "temperature": 0}
    interpreted = shown(program.run(**arguments, **options, mode="interpreted"))
    compiled = shown(program.run(**arguments, **options, mode="compiled"))
    assert same(compiled, interpreted), f"{compiled}\n{interpreted}"
    assert server.programs.unavailable is None


@pytest.fixture(scope="module")
def unhurried() -> Iterator[tuple[AsyncEngine, sgl.RuntimeEndpoint]]:
    engine = AsyncEngine.start_now(EngineConfig(), worker="thread", executor_factory=unhurried_fake_executor, text_factory=fake_text)
    with live_server(engine) as url:
        yield engine, sgl.RuntimeEndpoint(url)
    engine.close_now()


class Attentive(ScriptedBackend):
    """Goes on behind the first chunk of its second generation once somebody has read of it."""

    def __init__(self, script: Callable[[GenerateCall], str | None]) -> None:
        super().__init__(script)
        self.is_heard = threading.Event()

    async def _speak(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        async for chunk in super()._speak(call):
            yield chunk
            if len(self.calls) > 1:
                await until(self.is_heard.is_set)


@pytest.mark.parametrize("way", WAYS)
def test_streams(way: str, unhurried: tuple[AsyncEngine, sgl.RuntimeEndpoint]) -> None:
    """New text of one variable, and of the whole transcript, as it comes."""
    for mode in ("interpreted", "compiled"):
        backend = Attentive(answer) if way == "script" else WAYS[way](*unhurried)
        state = multi_turn.run(["Where?", "When?"], backend=backend, temperature=0, mode=mode, stream=True)
        pieces: list[str] = []
        for piece in state.text_iter("answer_1"):
            pieces.append(piece)
            if isinstance(backend, Attentive):
                backend.is_heard.set()
        assert "".join(pieces) == state["answer_1"] and len(pieces) > 1
        state = expert_answer.run("health", backend=backend, temperature=0, mode=mode, stream=True)
        assert "".join(state.text_iter()) == state.text()
        assert state.get_meta_info("tips")["completion_tokens"] > 0


@pytest.mark.parametrize("mode", ["interpreted", "compiled"])
def test_batches(mode: str, server: sgl.RuntimeEndpoint, capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"question": f"Number {i}?"} for i in range(12)]
    states = few_shot_qa.run_batch(items, backend=server, temperature=0, mode=mode, num_threads=5, progress_bar=True)
    assert "12/12" in capsys.readouterr().err
    assert states[7].value == few_shot_qa.run(**items[7], backend=server, temperature=0, mode="interpreted").value
    found = few_shot_qa.run_batch(items, backend=server, temperature=0, mode=mode, generator_style=True)
    assert [state.text() for state in found] == [state.text() for state in states]


@sgl.function
def reads_before_writing(s: Any) -> Any:
    s += "a" + sgl.gen("x", max_tokens=4)
    forks = s.fork(2)
    return [fork["x"] for fork in forks]


def test_a_fork_can_be_read_before_it_is_written() -> None:
    for mode in ("compiled", "interpreted"):
        state = reads_before_writing.run(mode=mode, timeout=PATIENCE, backend=sgl.ScriptedBackend())
        assert state.value == [state["x"]] * 2


@sgl.function
def strictly_together(s: Any, notes: Sequence[str], width: int) -> Any:
    s += "a"
    forks = s.fork(width)
    for number, (fork, note) in enumerate(zip(forks, notes, strict=True)):
        fork += f"{number} {note}"
    return [fork.text() for fork in forks]


@pytest.mark.parametrize(("width", "message"), [(2, None), (3, "shorter"), (1, "longer")])
def test_a_strict_zip_over_forks_tells_of_lengths_that_differ(width: int, message: str | None) -> None:
    """In Python's own words, in either mode."""
    for mode in ("compiled", "interpreted"):
        if message is None:
            assert strictly_together.run(["x", "y"], width, mode=mode, backend=sgl.ScriptedBackend()).value == ["a0 x", "a1 y"]
            continue
        with pytest.raises(ValueError, match=rf"zip\(\) argument 2 is {message} than argument 1"):
            strictly_together.run(["x", "y"], width, mode=mode, backend=sgl.ScriptedBackend())
