"""Each pass on a program made for it: a folder holds the source, the module before and the module after. Set RAMET_WRITE_GOLDEN=1 to
rewrite the files; then read the difference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramet.compiler.default_order import DEFAULT, PASS_NAMES
from ramet.compiler.diagnostics import CompileError
from ramet.compiler.pipeline import Notes, Pipeline
from ramet.ir.module import Module
from ramet.ir.ops import Append, Br, Call, CondBr, Fork, Free, Gen, GetVar, Op, Pin, Prefetch, ProgramCall
from ramet.ir.printer import print_module
from tests.compiler.language import compiled, define

GOLDEN = Path(__file__).parent.parent / "golden"
# What each pass must show, in numbers: ops of a class before and after. Figures that need a run: parallelize in
# tests/program/test_interpreter.py, precompile_constraints in tests/server/test_programs.py, batch_hints below.
FIGURES: dict[str, tuple[type[Op] | tuple[type[Op], ...], int, int]] = {
    "constant_fold": (CondBr, 1, 0),
    "dead_code": (Call, 4, 1),
    "simplify_cfg": ((Br, CondBr), 6, 3),
    "inline": (ProgramCall, 1, 0),
    "common_subexpression": ((ProgramCall, GetVar), 3, 1),
    "merge_text": (Append, 8, 2),
    "hoist_prefix": (Append, 2, 1),
    "kv_liveness": ((Free, Pin, Prefetch), 0, 2),
}


def ready(name: str) -> Module:
    """The lowered module; for passes that build on others, after those."""
    program = compiled(define((GOLDEN / "passes" / name / "program.txt").read_text()))
    before = {"hoist_prefix": ["merge_text"], "precompile_constraints": [], "batch_hints": ["constant_fold"]}.get(name, [])
    module = program.lowered
    for each in before:
        module = DEFAULT.only(each).run(module, Notes())[0]
    return module


def check(file: Path, text: str) -> None:
    if os.environ.get("RAMET_WRITE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert file.read_text() == text, f"{file.name} differs; RAMET_WRITE_GOLDEN=1 rewrites it"


@pytest.mark.parametrize("name", PASS_NAMES)
def test_golden(name: str) -> None:
    before = ready(name)
    notes = Notes()
    after, _ = Pipeline((next(each for each in DEFAULT.passes if each.name == name),)).run(before, notes)
    remarks = "\n".join(f"; {'+' if note.done else '-'} line {note.location.line}: {note.what}" for note in notes.entries)
    folder = GOLDEN / "passes" / name
    check(folder / "before.ir", print_module(before, locations=False))
    check(folder / "after.ir", print_module(after, locations=False) + remarks + "\n")
    assert after != before, "the program must give the pass something to do"


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name: str) -> None:
    kinds, before, after = FIGURES[name]
    module = ready(name)
    changed = DEFAULT.only(name).run(module, Notes())[0]

    def count(each: Module) -> int:
        return sum(isinstance(op, kinds) for op in each.main.ops())

    assert (count(module), count(changed)) == (before, after)


@pytest.mark.parametrize("name", PASS_NAMES)
def test_a_second_time_a_pass_finds_nothing(name: str) -> None:
    if name == "kv_liveness":
        pytest.skip("pins and prefetches are placed once, as the last passes run once")
    once = DEFAULT.only(name).run(ready(name), Notes())[0]
    twice = DEFAULT.only(name).run(once, Notes())[0]
    assert twice == once


def test_merging_generations_says_why_when_it_may_not() -> None:
    judge = '@function\ndef judge(s, topic):\n    s += topic + sgl.gen("score")\n    return s["score"]\n'
    source = judge + "@function\ndef main(s, a):\n    return [judge.run(a).value, judge.run(a).value]\n"
    notes = Notes()
    module = DEFAULT.only("common_subexpression").run(compiled(define(source)).lowered, notes)[0]
    assert sum(isinstance(op, ProgramCall) for op in module.main.ops()) == 2
    assert any("give temperature=0" in note.what and not note.done for note in notes.entries)


def test_unknown_pass_is_named() -> None:
    with pytest.raises(Exception, match="there is no pass 'magic'; passes: batch_hints"):
        DEFAULT.without(["magic"])


REFUSED = {
    "try": "@function\ndef main(s):\n    try:\n        s += sgl.gen('x')\n    except ValueError:\n        pass\n",
    "match": "@function\ndef main(s, x):\n    match x:\n        case 'a':\n            s += sgl.gen('x')\n",
    "key": "@function\ndef main(s, words):\n    s += max(words, key=len)\n",
    "yield": "@function\ndef main(s):\n    yield 1\n",
    "lambda_value": "@function\ndef main(s):\n    f = lambda x: x\n    return f(1)\n",
    "captured_object": "THING = object()\n@function\ndef main(s):\n    s += str(THING)\n",
    "captured_mutation": "KNOWN = []\n@function\ndef main(s):\n    KNOWN.append(1)\n",
    "generation_as_value": "@function\ndef main(s):\n    x = 'a' + sgl.gen('x')\n    s += x\n",
    "state_as_value": "@function\ndef main(s):\n    x = [s]\n    return x\n",
    "return_state": "@function\ndef main(s):\n    s += 'a'\n    return s\n",
    "unknown_method": "@function\ndef main(s, x):\n    s += str(x.popitem())\n",
    "attribute": "@function\ndef main(s, x):\n    s += x._name\n",
    "gen_argument": "@function\ndef main(s):\n    s += sgl.gen('x', max_length=3)\n",
    "fork_argument": "@function\ndef main(s):\n    forks = s.fork(n=2)\n",
    "join_by_variable": "@function\ndef main(s, how):\n    forks = s.fork(2)\n    forks.join(how)\n",
    "unknown_verb": "@function\ndef main(s):\n    s += sgl.gem('x')\n",
    "choices_with_sampling": "@function\ndef main(s):\n    s += sgl.gen('x', choices=['a'], max_tokens=3)\n",
    "undefined": "@function\ndef main(s):\n    s += nowhere\n",
    "two_kinds": "@function\ndef main(s):\n    f = s.fork(2)\n    f = 3\n    return f\n",
    "two_problems": "@function\ndef main(s, *args):\n    global X\n    import os\n",
    "callee": "@function\ndef sub(s):\n    import os\n@function\ndef main(s):\n    x = sub.run().value\n",
    "wide": "@function\ndef main(s):\n    s += 'Größe — ' + nowhere\n",
    "image": "@function\ndef main(s):\n    s += sgl.image('cat.png')\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_compile_is_shown_with_advice(name: str) -> None:
    with pytest.raises(CompileError) as refused:
        compiled(define(REFUSED[name]))
    text = "\n".join(line if "<program" not in line else line[line.index(">") + 1 :] for line in str(refused.value).split("\n"))
    assert "^" in text and "instead:" in text
    check(GOLDEN / "errors" / f"{name}.txt", f"{REFUSED[name]}\n---\n{text}\n")


@pytest.mark.parametrize("name", ["triage", "ambient", "forks", "loops"])
def test_lowering(name: str) -> None:
    folder = GOLDEN / "lower"
    program = compiled(define((folder / f"{name}.txt").read_text()))
    check(folder / f"{name}.ir", print_module(program.lowered, locations=False))


def test_forks_move_their_common_beginning_before_the_fork() -> None:
    module = DEFAULT.only("hoist_prefix").run(ready("hoist_prefix"), Notes())[0]
    fork = next(op for op in module.main.ops() if isinstance(op, Fork))
    assert fork.prefetch and fork.shape == ("text",)


def test_hints_know_lengths_and_the_critical_path() -> None:
    module = DEFAULT.only("batch_hints").run(ready("batch_hints"), Notes())[0]
    hints = [op.hints for op in module.main.ops() if isinstance(op, Gen) or type(op).__name__ == "Select"]
    assert [hint["path"] for hint in hints] == [5, 4, 3, 2, 1]
    assert [hint.get("max_tokens") for hint in hints] == [7, 3, 5, 6, None]
