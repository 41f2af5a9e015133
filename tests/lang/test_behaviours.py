"""The behaviours that SGLang's own front-end tests list, on the scripted backend."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

import ramet as sgl
from ramet.errors import InvalidRequest
from ramet.program.backend import GenerateCall
from ramet.program.scripted import ScriptedBackend
from tests.lang.unhurried import Unhurried
from tests.waiting import PATIENCE


def text_of(call: GenerateCall) -> str:
    return "".join(part.value for part in call.conversation.parts if part.kind == "text")


def test_few_shot_question_answering() -> None:
    @sgl.function
    def few_shot_qa(s: Any, question: str) -> None:
        s += "Q: What is the capital of France?\nA: Paris\n"
        s += "Q: " + question + "\nA:" + sgl.gen("answer", stop="\n", temperature=0)

    backend = ScriptedBackend([" Rome\nQ: next"])
    state = few_shot_qa.run(question="What is the capital of Italy?", backend=backend, max_new_tokens=64)
    assert state["answer"] == " Rome"
    assert state.get_meta_info("answer")["finish_reason"] == {"type": "stop", "matched": "\n"}
    assert backend.calls[0].sampling == {"stop": "\n", "temperature": 0, "max_new_tokens": 64}


def test_multi_turn() -> None:
    @sgl.function
    def chat(s: Any, first: str, second: str) -> None:
        s += sgl.system("Be brief.")
        for index, question in enumerate((first, second)):
            s += sgl.user(question) + sgl.assistant(sgl.gen(f"answer_{index}"))

    state = chat.run("a", "b", backend=ScriptedBackend(["1", "2"]))
    assert [m["content"] for m in state.messages()] == ["Be brief.", "a", "1", "b", "2"]


@pytest.mark.parametrize("method", [sgl.token_length_normalized, sgl.greedy_token_selection, sgl.unconditional_likelihood_normalized])
def test_select(method: Any) -> None:
    @sgl.function
    def judge(s: Any) -> Any:
        s += "The sky is " + sgl.select("color", ["green", "light blue", "red"], choices_method=method) + "."
        return s["color"]

    state = judge.run(backend=ScriptedBackend(["light blue"]))
    assert (state.value, state.text()) == ("light blue", "The sky is light blue.")
    meta = state.get_meta_info("color")
    assert sum(meta["probabilities"]) == pytest.approx(1) and max(meta["probabilities"]) == meta["probabilities"][1]


def test_gen_with_choices_is_a_select_and_drops_nothing() -> None:
    backend = ScriptedBackend(["b"])
    assert sgl.function(lambda s: s.__iadd__(sgl.gen("x", choices=["a", "b"]))).run(backend=backend)["x"] == "b"
    assert backend.scored[0][1] == ("a", "b")
    with pytest.raises(InvalidRequest, match="drop max_tokens, stop"):
        sgl.gen("x", choices=["a", "b"], max_tokens=5, stop="\n")


def test_integers_and_other_types() -> None:
    @sgl.function
    def typed(s: Any) -> Any:
        s += "Year: " + sgl.gen_int("year") + "\n"
        s += "Pi: " + sgl.gen("pi", dtype=float) + "\n"
        s += "True? " + sgl.gen("flag", dtype=bool) + "\n"
        s += "Name: " + sgl.gen_string("name") + "\n"
        return s["year"], s["pi"], s["flag"], s["name"]

    state = typed.run(backend=ScriptedBackend(["-1984\nrest", "3.14 more", "False", '"D. N. S., \\"quoted\\""']))
    assert state.value == (-1984, 3.14, False, 'D. N. S., "quoted"')
    assert state.text().splitlines()[0] == "Year: -1984"
    invented = typed.run(backend=ScriptedBackend()).value
    assert [type(value) for value in invented] == [int, float, bool, str]


def test_json_by_regex() -> None:
    pattern = r'\{\s*"name":\s*"[^"]+",\s*"age":\s*\d+\s*\}'
    state = sgl.function(lambda s: s.__iadd__(sgl.gen("json", regex=pattern))).run(backend=ScriptedBackend())
    assert re.fullmatch(pattern, state["json"])


def test_expert_answer_with_forks() -> None:
    @sgl.function
    def expert(s: Any, question: str) -> Any:
        s += sgl.user("List two tips about " + question)
        s += sgl.assistant(sgl.gen("tips"))
        forks = s.fork(2)
        forks += lambda i: sgl.user(f"Expand tip {i + 1}") + sgl.assistant(sgl.gen("detail"))
        forks.join()
        s += sgl.user("Conclude from:\n" + "\n".join(s["detail"])) + sgl.assistant(sgl.gen("conclusion"))
        return s["conclusion"]

    def answer(call: GenerateCall) -> str:
        last = call.conversation.messages()[-2]["content"]
        return {"Expand tip 1": "eat", "Expand tip 2": "sleep"}.get(last, f"<{len(last)}>")

    state = expert.run("health", backend=ScriptedBackend(answer))
    assert state["detail"] == ["eat", "sleep"]
    assert "eat\nsleep" in state.messages()[-2]["content"]


def test_tool_use_and_react() -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("search", "finish")]
    asked: list[str] = []

    @sgl.host
    def search(query: str) -> str:
        asked.append(query)
        return f"facts about {query}"

    @sgl.function
    def react(s: Any, question: str) -> Any:
        s += "Question: " + question + "\n"
        for step in range(1, 6):
            s += f"Thought {step}:" + sgl.gen("thought", stop="\n") + f"\nAction {step}: "
            s += sgl.gen("call", tools=tools) + "\n"
            if s["call"]["name"] == "finish":
                return s["call"]["arguments"]["answer"]
            s += f"Observation {step}: " + search(s["call"]["arguments"]["query"]) + "\n"
        return None

    script = [" look\n", '{"name": "search", "arguments": {"query": "rivers"}}', " done", '{"name":"finish","arguments":{"answer":"Po"}}']
    backend = ScriptedBackend(script)
    state = react.run("Longest river of Italy?", backend=backend)
    assert (state.value, asked) == ("Po", ["rivers"])
    assert "Observation 1: facts about rivers\nThought 2: done" in state.text()
    schema = json.loads(backend.calls[1].sampling["json_schema"])
    assert [call["properties"]["name"]["const"] for call in schema["anyOf"]] == ["search", "finish"]


def test_parallel_decoding_and_encoding() -> None:
    @sgl.function
    def parallel(s: Any) -> Any:
        s += "Topics."
        decoders = s.fork(3)
        decoders += lambda i: f" {i}:" + sgl.gen("paragraph", stop="\n")
        decoders.join()
        encoders = s.fork(2)
        encoders += [" part one", " part two"]
        encoders.join(mode="concate_and_append")
        s += sgl.gen("summary")
        return s["paragraph"]

    backend = Unhurried(lambda call: "x")
    assert parallel.run(backend=backend).value == ["x", "x", "x"]
    assert backend.peak_live == 3
    assert text_of(backend.calls[-1]) == "Topics. part one part two"


def test_streaming_with_logprobs() -> None:
    @sgl.function
    def qa(s: Any) -> None:
        s += sgl.user("Hi") + sgl.assistant(sgl.gen("answer", return_logprob=True, top_logprobs_num=2))

    state = qa.run(backend=ScriptedBackend(["well hello there"]), stream=True)
    assert "".join(state.text_iter("answer")) == "well hello there"
    entries = state.get_meta_info("answer")["output_token_logprobs"]
    assert [entry[2] for entry in entries] == ["well", " hello", " there"] and all(entry[0] < 0 for entry in entries)


def test_several_gens_around_fixed_text() -> None:
    """What SGLang guesses ahead on remote APIs; the hint changes no result."""

    @sgl.function(num_api_spec_tokens=64)
    def character(s: Any) -> None:
        s += (
            "Name:"
            + sgl.gen("name", stop="\n")
            + "\nBirthday:"
            + sgl.gen("birthday", stop="\n")
            + "\nJob:"
            + sgl.gen("job", stop="\n")
            + "\n"
        )

    state = character.run(backend=ScriptedBackend([" Ada\n", " 1815\nx", " poet"]))
    assert state.text() == "Name: Ada\nBirthday: 1815\nJob: poet\n"


def test_min_tokens_and_every_other_parameter_reach_the_backend() -> None:
    given = {
        "max_tokens": 50,
        "min_tokens": 30,
        "stop": ["a"],
        "stop_token_ids": [1],
        "stop_regex": "b+",
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "seed": 7,
        "logit_bias": {5: 1.0},
        "no_stop_trim": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "structural_tag": "{}",
    }
    backend = ScriptedBackend(["text"])
    sgl.function(lambda s: s.__iadd__(sgl.gen("x", **given))).run(backend=backend)
    wanted = {**given, "max_new_tokens": 50, "min_new_tokens": 30}
    assert backend.calls[0].sampling == {name: value for name, value in wanted.items() if name not in ("max_tokens", "min_tokens")}
    long = sgl.function(lambda s: s.__iadd__(sgl.gen("x", min_tokens=40))).run(backend=ScriptedBackend())
    assert long.get_meta_info("x")["completion_tokens"] >= 40


def test_several_answers_to_one_gen() -> None:
    backend = ScriptedBackend(["1", "2", "3"])
    state = sgl.function(lambda s: s.__iadd__("Q" + sgl.gen("x", n=3, seed=5, dtype=int))).run(backend=backend)
    assert (state["x"], state.text()) == ([1, 2, 3], "Q1")
    assert [call.sampling["seed"] for call in backend.calls] == [5, 6, 7]
    assert all("n" not in call.sampling for call in backend.calls)


@pytest.mark.parametrize("mode", ["interpreted", "compiled"])
def test_separated_reasoning(mode: str) -> None:
    @sgl.function
    def think(s: Any, kind: Any) -> Any:
        s["x_reasoning_content"] = "nothing yet"
        s += sgl.user("1+1?")
        s += sgl.assistant("Answer: " + sgl.separate_reasoning(sgl.gen("x", n=None), model_type=kind))
        return s["x"], s["x_reasoning_content"]

    for kind in ("qwen3", None):
        state = think.run(kind, backend=ScriptedBackend(["<think>\nadd them\n</think>\n\n2"]), mode=mode)
        assert state.value == ("2", "add them")
        assert state.messages()[-1]["content"] == "Answer: 2"

    @sgl.function
    def many(s: Any) -> Any:
        s += sgl.separate_reasoning("Think." + sgl.gen("x", n=2), "deepseek-r1")

    thoughts = ScriptedBackend(["a</think>1", "b</think>2"])
    assert many.run(backend=thoughts, mode=mode).variables() == {"x": ["1", "2"], "x_reasoning_content": ["a", "b"]}
    with pytest.raises(InvalidRequest, match="known: deepseek-r1"):
        think.run("gpt-9", backend=thoughts, mode=mode)


@pytest.mark.parametrize("mode", ["interpreted", "compiled"])
async def test_a_stream_with_meta_data(mode: str) -> None:
    @sgl.function
    def tell(s: Any) -> Any:
        s += "Tell:" + sgl.gen("x", max_tokens=8)

    state = await tell.astart(backend=ScriptedBackend(["one two three"]), mode=mode)
    pairs = [pair async for pair in state.text_async_iter("x", return_meta_data=True)]
    assert "".join(text for text, _ in pairs) == state["x"] == "one two three"
    assert pairs[-1] == ("", state.get_meta_info("x"))


@pytest.mark.parametrize("mode", ["interpreted", "compiled"])
async def test_a_result_of_run_is_awaited_on_another_loop(mode: str) -> None:
    """As SGLang's tutorial does: `run(stream=True)` inside of the caller's own event loop, then `async for`."""

    @sgl.function
    def tell(s: Any) -> Any:
        s += "Tell:" + sgl.gen("x", max_tokens=8) + "." + sgl.gen("y", max_tokens=8)

    def begin() -> Any:
        return tell.run(stream=True, backend=ScriptedBackend(["one two three", "four"]), mode=mode)

    async with asyncio.timeout(PATIENCE):
        state = begin()
        assert "".join([piece async for piece in state.text_async_iter(var_name="x")]) == "one two three"
        assert await begin().aget_var("y") == "four"
        assert (await begin())["y"] == "four"
        with pytest.raises(KeyError, match="nope"):
            await begin().aget_var("nope")


def test_reasoning_markers_are_checked_where_they_are_written() -> None:
    with pytest.raises(InvalidRequest, match="known: deepseek-r1"):
        sgl.separate_reasoning(sgl.gen("x"), "gpt-9")


class Person:
    """Quacks like a pydantic model."""

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        return {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}

    @classmethod
    def model_validate_json(cls, text: str) -> Person:
        return cls(json.loads(text)["name"])


def test_json_schemas_give_objects() -> None:
    @sgl.function
    def extract(s: Any) -> Any:
        s += sgl.gen("person", json_schema=Person) + sgl.gen("plain", json_schema=Person.model_json_schema())
        s += sgl.gen("text", json_schema=json.dumps(Person.model_json_schema()))
        return s["person"].name, s["plain"], s["text"]

    state = extract.run(backend=ScriptedBackend(['{"name": "Ada"}', '{"name": "Bob"}', '{"name": "C"}']))
    assert state.value == ("Ada", {"name": "Bob"}, '{"name": "C"}')
    with pytest.raises(InvalidRequest, match=r"cut by max_tokens"):
        sgl.function(lambda s: s.__iadd__(sgl.gen("p", json_schema=Person, max_tokens=3))).run(backend=ScriptedBackend(['{"name": "Ada"}']))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"regex": "a", "json_schema": {}}, "json_schema and regex"),
        ({"regex": "("}, "is not valid"),
        ({"dtype": list}, "int, float, bool or str"),
        ({"json_schema": 5}, "pydantic model class"),
        ({"tools": []}, "at least one tool"),
        ({"tools": 3}, "at least one tool"),
        ({"regex": 3}, "regex is text, not 3"),
        ({"ebnf": ["a"]}, "ebnf is text"),
        ({"name": 3}, "name is text, not 3"),
        ({"tools": [5]}, "a tool is"),
    ],
)
def test_impossible_constraints_fail_on_the_users_line(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        sgl.gen(**{"name": "x", **arguments})


@pytest.mark.parametrize("choices", [None, [], "ab", ["a", 5], ["a", "a"], ["a", ""]])
def test_impossible_choices(choices: Any) -> None:
    with pytest.raises(InvalidRequest, match="select"):
        sgl.select("x", choices)


def test_a_stream_of_a_variable_that_never_came_says_why() -> None:
    """The run's own failure, not that the variable is missing."""

    @sgl.function
    def broken(s: Any) -> None:
        s += sgl.user("hi")
        raise ValueError("out of ink")

    state = broken.run(backend=ScriptedBackend([]), stream=True)
    with pytest.raises(ValueError, match="out of ink"):
        list(state.text_iter("answer"))
