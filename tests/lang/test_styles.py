"""Both styles of writing a program: an explicit state, and the ambient conversation."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import ramet as sgl
from ramet.errors import ConfigError, InvalidRequest
from ramet.lang.process import _process
from ramet.program.scripted import ScriptedBackend

DESIGN = Path(__file__).parents[2] / "docs" / "language.md"
AMBIENT = """
import ramet as sgl

@sgl.function                                   # ambient conversation: no state parameter
def multi_turn_conversation(user_input):
    history = sgl.user("Welcome to the assistant.")
    history += sgl.assistant("Hello! How can I help you?")
    history += sgl.user(user_input)
    response = sgl.assistant()                  # no content: generate the next assistant turn
    return response
"""


@sgl.function
def triage(s: Any, ticket: str) -> Any:
    s += sgl.system("You sort support tickets.")
    s += sgl.user(ticket)
    s += sgl.assistant(sgl.gen("kind", regex=r"(bug|feature|question)"))
    if s["kind"] == "bug":
        s += sgl.user("Give a severity from 1 to 5.")
        s += sgl.assistant(sgl.gen("severity", regex=r"[1-5]"))
    return s["kind"]


def ambient_program() -> Any:
    """The documented program, as written, from a file-less source."""
    namespace: dict[str, Any] = {}
    exec(compile(AMBIENT, "<ambient>", "exec"), namespace)
    return namespace["multi_turn_conversation"]


def test_explicit_program_branches_on_what_was_generated() -> None:
    bug = triage.run("It crashes", backend=ScriptedBackend(["bug", "4"]))
    assert (bug.value, bug["severity"], "severity" in bug) == ("bug", "4", True)
    assert [m["role"] for m in bug.messages()] == ["system", "user", "assistant", "user", "assistant"]
    question = triage.run(ticket="How?", backend=ScriptedBackend(["question"]))
    assert (question.ret_value, "severity" in question) == ("question", False)


def test_ambient_program_as_documented() -> None:
    backend = ScriptedBackend(["Safety matters."])
    ret = ambient_program().run(user_input="Tell me about AI safety.", backend=backend)
    assert str(ret.value) == "Safety matters."
    assert [m["content"] for m in ret.messages()] == [
        "Welcome to the assistant.",
        "Hello! How can I help you?",
        "Tell me about AI safety.",
        "Safety matters.",
    ]
    assert ret.text() == backend.calls[0].conversation.render(backend._chat) + "Safety matters.<|end|>\n"


def test_ambient_program_runs_against_a_server() -> None:
    from tests.server.live_server import live_server
    from tests.server.scripted_engine import ScriptedEngine

    engine = ScriptedEngine(answer="Hi!")
    with live_server(engine) as url:
        runtime = sgl.Runtime(endpoint=url)
        before = _process.default_backend
        try:
            sgl.set_default_runtime(runtime)
            ret = ambient_program().run(user_input="Tell me about AI safety.")
        finally:
            _process.default_backend = before
    assert ret.text().endswith("[user]Tell me about AI safety.[/user][assistant]Hi![/assistant]")
    assert engine.seen[0].text == ret.text().removesuffix("Hi![/assistant]")


def test_ambient_turns_behave_like_their_words() -> None:
    @sgl.function
    def interview(topic: str) -> Any:
        question = sgl.user("About " + topic)
        answer = sgl.assistant("I say: " + sgl.gen("answer"))
        assert "yes" in answer and answer == "I say: yes" and answer["answer"] == "yes"
        both = question + sgl.user("You said: " + answer)
        both += " and more"
        return f"{answer}/{both}"

    ret = interview.run("rain", backend=ScriptedBackend(["yes"]))
    assert ret.value == "I say: yes/About rain\nYou said: I say: yes"
    assert ret.text().endswith("You said: I say: yes<|end|>\n and more")
    assert ret["answer"] == "yes"


def test_nested_programs_keep_their_own_conversations() -> None:
    @sgl.function
    def summarise(text: str) -> Any:
        sgl.user("Summarise: " + text)
        return str(sgl.assistant())

    @sgl.function
    def explicit(s: Any, text: str) -> Any:
        s += sgl.user(text) + sgl.assistant(sgl.gen("own"))
        return s["own"]

    @sgl.function
    def outer(text: str) -> Any:
        sgl.user("Outer")
        inner = summarise(text).value
        other = explicit.run(text).value
        sgl.assistant(inner + other)
        return inner + other

    ret = outer.run("a", backend=ScriptedBackend(["one", "two"]))
    assert ret.value == "onetwo"
    assert [m["content"] for m in ret.messages()] == ["Outer", "onetwo"]


def test_a_program_called_with_a_state_continues_it() -> None:
    @sgl.function
    def ask(s: Any, question: str) -> Any:
        s += sgl.user(question) + sgl.assistant(sgl.gen("a"))
        return s["a"]

    @sgl.function
    def chat(s: Any) -> Any:
        return [ask(s, "first"), ask(s, question="second")]

    ret = chat.run(backend=ScriptedBackend(["1", "2"]))
    assert ret.value == ["1", "2"]
    assert len(ret.messages()) == 4


async def test_async_bodies_may_await_and_read() -> None:
    import asyncio

    @sgl.function
    async def both(s: Any) -> Any:
        s += sgl.gen("a")
        await asyncio.sleep(0.001)
        s += sgl.gen("b")
        first = s["a"]
        second = await s.aget_var("b")
        others = await asyncio.gather(leaf.arun("x"), leaf.arun("y"))
        await s
        return first + second + "".join(other.value for other in others)

    @sgl.function
    def leaf(s: Any, text: str) -> Any:
        s += text + sgl.gen("c")
        return text + s["c"]

    ret = await both.arun(backend=ScriptedBackend(["1", "2", "3", "4"]))
    assert ret.value == "12x3y4"


def test_wrong_calls_are_the_callers_errors() -> None:
    with pytest.raises(TypeError, match="ticket"):
        triage.run(tikcet="x", backend=ScriptedBackend())
    with pytest.raises(ConfigError, match="no backend"):
        before, _process.default_backend = _process.default_backend, None
        try:
            triage.run("x")
        finally:
            _process.default_backend = before
    with pytest.raises(InvalidRequest, match="'stop' is also an option"):

        @sgl.function
        def clash(s: Any, stop: str) -> None: ...

    with pytest.raises(InvalidRequest, match="mode is auto"):
        triage.run("x", mode="fast", backend=ScriptedBackend())
    with pytest.raises(ConfigError, match="is no backend"):
        sgl.set_default_backend("http://localhost:30000")


def test_the_documented_program_is_the_tested_one() -> None:
    """The tutorial shows the ambient program; it must be this one."""
    shown = DESIGN.read_text()
    wanted = ast.dump(ast.parse(AMBIENT).body[1])
    blocks = [block for block in shown.split("```python")[1:] if "def multi_turn_conversation" in block]
    assert any(wanted == ast.dump(node) for block in blocks for node in ast.parse(block.split("```")[0]).body)
