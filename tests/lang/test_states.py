"""What a state can do: order, variables, scopes, forks, joins, streams; and what it refuses."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import ramet as sgl
from ramet.compiler.diagnostics import CompileError
from ramet.errors import InvalidRequest, QueueFull, Unsupported
from ramet.program.backend import GenerateCall
from ramet.program.scripted import ScriptedBackend
from tests.lang.unhurried import Unhurried


def prompt(call: GenerateCall) -> str:
    return "".join(part.value for part in call.conversation.parts if part.kind == "text")


@sgl.function
def several(s: Any, count: Any) -> None:
    s += "a" + sgl.gen("x", n=count)


def run(body: Any, backend: ScriptedBackend, **options: Any) -> Any:
    return sgl.function(body).run(backend=backend, **options)


def test_appending_does_not_wait_and_keeps_program_order() -> None:
    def body(s: Any) -> Any:
        s += "a" + sgl.gen("x") + "b" + sgl.gen("y") + "c"
        return len(backend.calls), s["x"], s["y"], s.text()

    backend = ScriptedBackend(["1", "2"])
    asked, x, y, text = run(body, backend).value
    assert asked == 0, "the body went on before the first was even asked for"
    assert (x, y, text) == ("1", "2", "a1b2c")
    assert [prompt(call) for call in backend.calls] == ["a", "a1b"]


def test_variables_set_read_overwritten() -> None:
    def body(s: Any) -> Any:
        s += sgl.gen("x")
        s["x"] = s["x"] + "!"
        s.set_var("n", 3)
        s += sgl.gen("again")
        first = s["again"]
        s += sgl.gen("again")
        return s["x"], s.get_var("n"), "n" in s, "nope" in s, first, s["again"]

    assert run(body, ScriptedBackend(["1", "2", "3"])).value == ("1!", 3, True, False, "2", "3")


def test_unknown_variable_is_a_key_error_that_lists_the_known_ones() -> None:
    def body(s: Any) -> Any:
        s += sgl.gen("known")
        return s["unknown"]

    with pytest.raises(KeyError, match=r"'unknown' is no variable.*known"):
        run(body, ScriptedBackend())
    with pytest.raises(KeyError, match="'other' is no variable"):
        _ = run(lambda s: s.set_var("a", 1), ScriptedBackend())["other"]


def test_role_methods_contexts_and_scopes() -> None:
    def body(s: Any) -> None:
        s.system("Be brief.")
        with s.user():
            s += "Tell "
            s += "me."
        with s.assistant(), s.var_scope("all"):
            s += "Well, " + sgl.gen("x")
        s += sgl.user_begin() + "bye" + sgl.user_end()

    state = run(body, ScriptedBackend(["yes"]))
    assert [m["content"] for m in state.messages()] == ["Be brief.", "Tell me.", "Well, yes", "bye"]
    assert state["all"] == "Well, yes"


@pytest.mark.parametrize(
    ("expr", "complaint"),
    [
        (lambda: sgl.user(sgl.assistant("x")), "cannot begin inside the user's"),
        (lambda: sgl.user_end(), "the open turn is none"),
        (lambda: 5, "only text and sgl expressions"),
    ],
)
def test_wrong_appends_fail_on_the_spot(expr: Any, complaint: str) -> None:
    def body(s: Any) -> None:
        s += expr()

    with pytest.raises(InvalidRequest, match=complaint):
        run(body, ScriptedBackend())


@pytest.mark.parametrize("mode", ["compiled", "interpreted"])
@pytest.mark.parametrize("n", [0, -1, "2", 2.0, True, 1000])
def test_an_impossible_number_of_answers_is_refused(n: Any, mode: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(f"n is a whole number from 1 to 128, not {n!r}")):
        several.run(n, backend=ScriptedBackend(), mode=mode)


@pytest.mark.parametrize("size", [0, "2", 1.5])
def test_an_impossible_number_of_forks_is_refused(size: Any) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(f"whole number of 1 or more, got {size!r}")):
        run(lambda s: s.fork(size), ScriptedBackend())


def test_formatting_a_generation_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cannot be formatted"):
        run(lambda s: f"{sgl.gen('x')}", ScriptedBackend())


def test_forks_run_together_and_join_in_order() -> None:
    def answer(call: GenerateCall) -> str:
        return "r" + prompt(call)[-1]

    def body(s: Any) -> Any:
        s += "Q" + sgl.gen("first")
        forks = s.fork(4)
        forks += lambda i: f" topic {i}"
        forks += sgl.gen("x")
        forks[2] += "!" + sgl.gen("extra")
        forks.join()
        s += "end"
        return s["x"], s["extra"], s.text(), forks["x"], len(forks)

    backend = Unhurried(lambda call: answer(call) if len(prompt(call)) > 1 else "0")
    xs, extra, text, again, size = run(body, backend).value
    assert xs == again == ["r0", "r1", "r2", "r3"]
    assert extra == [None, None, "r!", None]
    assert (text, size) == ("Q0end", 4)
    assert backend.peak_live == 4


def test_concatenating_join_and_copy() -> None:
    def body(s: Any) -> Any:
        s += "Intro."
        forks = s.fork(2)
        forks += [" A" + sgl.gen("x"), " B" + sgl.gen("x")]
        forks.join("concate_and_append")
        with s.copy() as other:
            other += "aside" + sgl.gen("aside")
            assert other["aside"] == "3"
        return s.text()

    assert run(body, ScriptedBackend(["1", "2", "3"])).value == "Intro. A1 B2"


def test_a_fork_may_come_first_and_start_inside_a_turn() -> None:
    def body(s: Any) -> Any:
        forks = s.fork(2)
        forks += sgl.user("hi") + sgl.assistant_begin()
        inner = forks[0].fork(1)
        inner += sgl.gen("x") + sgl.assistant_end()
        return inner[0].messages()

    assert run(body, ScriptedBackend(["yo"])).value == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def test_failures_keep_their_type_and_name_the_line() -> None:
    def refuse(call: GenerateCall) -> str:
        raise QueueFull("too many requests", retry_after=2.0)

    def body(s: Any) -> Any:
        s += "a"
        s += sgl.gen("x")  # the line
        return s["x"]

    with pytest.raises(QueueFull, match="too many") as caught:
        run(body, ScriptedBackend(refuse))
    [note] = caught.value.__notes__
    assert "test_states.py" in note and "# the line" in note
    with pytest.raises(QueueFull):
        run(lambda s: s.__iadd__(sgl.gen("x")), ScriptedBackend(refuse))


def test_a_handled_failure_is_not_raised_again() -> None:
    def refuse(call: GenerateCall) -> str | None:
        if "bad" in prompt(call):
            raise QueueFull("later")
        return "fine"

    def body(s: Any) -> Any:
        forks = s.fork(2)
        forks += ["good" + sgl.gen("x"), "bad" + sgl.gen("x")]
        return [None if fork.error() else fork["x"] for fork in forks]

    assert run(body, ScriptedBackend(refuse)).value == ["fine", None]

    def unhandled(s: Any) -> None:
        forks = s.fork(2)
        forks += ["good" + sgl.gen("x"), "bad" + sgl.gen("x")]
        forks.join()

    with pytest.raises(QueueFull):
        run(unhandled, ScriptedBackend(refuse))


def test_failure_of_a_parent_reaches_forks_that_wait_for_it() -> None:
    def refuse(call: GenerateCall) -> str:
        raise QueueFull("later")

    def body(s: Any) -> Any:
        s += sgl.gen("x")
        forks = s.fork(2)
        forks += sgl.gen("y")
        return forks[1]["y"]

    with pytest.raises(QueueFull):
        run(body, ScriptedBackend(refuse))


def test_images_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"cat\.png.*ScriptedBackend is a text backend"):
        run(lambda s: s.__iadd__(sgl.user(sgl.image("cat.png") + "What is it?")), ScriptedBackend())


def test_reading_and_appending_after_the_end() -> None:
    kept: list[Any] = []

    def body(s: Any) -> None:
        kept.append(s)
        s += sgl.gen("x")

    result = run(body, ScriptedBackend(["7"]))
    result["x"] = int(result["x"])
    assert result["x"] == 7 and result.variables() == {"x": 7}
    assert kept[0]["x"] == 7 and kept[0].text() == "7"
    with pytest.raises(InvalidRequest, match="has ended"):
        kept[0] += "more"


def test_streams_join_to_the_text() -> None:
    def body(s: Any) -> Any:
        s += sgl.user("Go") + sgl.assistant(sgl.gen("x"))
        pieces = list(s.text_iter("x"))
        assert "".join(pieces) == s["x"]
        return len(pieces)

    backend = Unhurried(["one two three four"])
    result = run(body, backend, stream=True)
    whole = "".join(result.text_iter())
    assert whole == result.text()
    assert result.value >= 3


async def test_async_streams() -> None:
    @sgl.function
    def body(s: Any) -> None:
        s += sgl.user("Go") + sgl.assistant("So: " + sgl.gen("x", max_tokens=3) + sgl.gen("y"))

    backend = Unhurried(["one two three four", "end"])
    assert [piece async for piece in body.astream(backend=backend, var_name="x")] == ["one", " two", " three"]
    backend = ScriptedBackend(["one two", "end"])
    whole = "".join([piece async for piece in body.astream(backend=backend)])
    assert whole.endswith("So: one twoend<|end|>\n")


def test_streaming_an_unknown_or_failing_variable_raises() -> None:
    @sgl.function
    def body(s: Any) -> None:
        s += sgl.gen("x")

    with pytest.raises(KeyError, match="'y' is no variable"):
        list(body.run(backend=ScriptedBackend(), stream=True).text_iter("y"))

    @sgl.function
    def broken(s: Any) -> None:
        s += sgl.gen("x")
        raise ZeroDivisionError("in the body")

    with pytest.raises(ZeroDivisionError, match="in the body"):
        list(broken.run(backend=ScriptedBackend(), stream=True).text_iter())
    assert isinstance(broken.run(backend=ScriptedBackend(), stream=True).error(), ZeroDivisionError)


MISNAMED = [
    ("s += sgl.gen('x', max_token=3)", "gen() has no argument 'max_token'; did you mean 'max_tokens'?"),
    ("s += sgl.gen_int('x', max_new_tokens=3)", "gen() has no argument 'max_new_tokens'; did you mean 'max_tokens'?"),
    ("s += sgl.select('x', choice=['a', 'b'])", "select() has no argument 'choice'; did you mean 'choices'?"),
    ("s += sgl.user('x', content=3)", "user() has no argument 'content'; known: expr"),
    ("forks = s.fork(n=2)", "fork() has no argument 'n'; known: position_ids_offset, size"),
]


@pytest.mark.parametrize(("line", "complaint"), MISNAMED)
def test_a_misspelt_argument_is_told_the_one_that_was_meant(line: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"import ramet as sgl\n@sgl.function\ndef program(s):\n    {line}\n")
    program = runpy.run_path(str(tmp_path / "program.py"))["program"]
    with pytest.raises(TypeError, match=re.escape(complaint)):
        program.run(backend=ScriptedBackend())  # as it is in both modes: what does not compile is interpreted
    with pytest.raises(CompileError, match=re.escape(complaint.partition("; ")[2])):
        program.run(backend=ScriptedBackend(), mode="compiled")


def test_usual_mistakes_are_answered_with_what_to_write() -> None:
    @sgl.function
    def appends(s: Any, text: str) -> None:
        s.append(text)

    @sgl.function
    def adds(s: Any, text: str) -> None:
        s = s + text

    with pytest.raises(AttributeError, match=r"no 'append'; append with s \+="):
        appends.run("a", backend=ScriptedBackend())
    with pytest.raises(TypeError, match=r"append with s \+="):
        adds.run("a", backend=ScriptedBackend())
    with pytest.raises(TypeError, match="for 'temprature', did you mean 'temperature'"):
        adds.run("a", temprature=0, backend=ScriptedBackend())
    with pytest.raises(TypeError, match="for 'txt', did you mean 'text'"):
        adds.run(txt="a", backend=ScriptedBackend())
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'$"):
        adds.run("a", zzz="a", backend=ScriptedBackend())
