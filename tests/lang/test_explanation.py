"""explain(): why a program is compiled or not, what the passes did, and what happened in a run; the waterfall; the commands."""

from __future__ import annotations

import asyncio
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import ramet as sgl
from ramet.cli.main import main
from ramet.lang.waterfall import waterfall
from ramet.program.scripted import ScriptedBackend
from tests.lang.unhurried import Unhurried

HERE = str(Path(__file__))


def search(query: str) -> str:
    return "facts about " + query


@sgl.function
def program(s: Any, topic: str) -> Any:
    s += sgl.system("Be brief.")
    s += sgl.user("About " + topic + ": " + search(topic))
    s += sgl.assistant(sgl.gen("x", regex="[0-9]{3}", max_tokens=4) + sgl.select("y", ["a", "b"]))
    forks = s.fork(3)
    forks += sgl.user("More?") + sgl.assistant(sgl.gen("more", max_tokens=4))
    forks.join()
    return s["x"], s["more"]


@sgl.function
def interpreted_only(s: Any) -> Any:
    try:
        s += sgl.gen("x")
    except ValueError:
        return "wrong"
    return s["x"]


def test_what_the_compiler_did_is_shown_at_its_line() -> None:
    found = program.explain()
    assert found.compiled and str(found).startswith("program is compiled")
    lines = str(found).splitlines()
    at = next(index for index, line in enumerate(lines) if 'sgl.gen("x"' in line)
    assert any("precompile_constraints" in line for line in lines[at + 1 : at + 8])
    assert "ops lowered" in str(found) and "parallelize" in str(found)


def test_why_a_program_is_interpreted() -> None:
    found = interpreted_only.explain()
    assert not found.compiled and "try does not compile" in found.reason and HERE in str(found) and "^" in str(found)
    assert interpreted_only.run(backend=ScriptedBackend(["1"])).value == "1"
    with pytest.raises(sgl.errors.UserError, match="try does not compile"):
        interpreted_only.run(backend=ScriptedBackend(), mode="compiled")
    with pytest.raises(sgl.errors.Unsupported, match="'topic' is a set"):
        program.run(topic={1}, backend=ScriptedBackend(), mode="compiled")


@pytest.mark.parametrize("where", ["on the server", "in this process"])
def test_what_happened_in_a_run(where: str, url: str) -> None:
    backend = sgl.RuntimeEndpoint(url) if where == "on the server" else ScriptedBackend()
    found = program.explain("rivers", analyze=True, backend=backend, temperature=0)
    text = str(found)
    assert text.startswith(f"program is compiled and runs {where}")
    assert "= gen x: " in text and "= gen more: 3 times, " in text and "= host_call search: " in text and "prefill: " in text
    assert sum(span["kind"] == "gen" for span in found.spans) == 4
    if where == "on the server":
        assert "forced by" in text and "of them cached" in text
    drawn = ElementTree.fromstring(found.waterfall())
    bars = [each for each in drawn.iter("{http://www.w3.org/2000/svg}rect") if each.get("rx")]
    assert len(bars) == len(found.spans)


def test_the_new_share_of_a_prompt_is_what_a_perfect_cache_computes(url: str) -> None:
    found = program.explain("rivers", analyze=True, backend=sgl.RuntimeEndpoint(url), temperature=0)
    gens = [span["data"] for span in found.spans if span["kind"] == "gen"]
    shares = [data["new_prompt_tokens"] / data["prompt_tokens"] for data in gens]
    assert shares[0] == 1.0 and all(0 <= share < 0.5 for share in shares[1:])
    assert sum(data["new_prompt_tokens"] for data in gens) < 2 * gens[0]["prompt_tokens"]


def test_a_picture_of_nothing_is_a_picture() -> None:
    assert ElementTree.fromstring(waterfall([], [])).tag.endswith("svg")


def test_commands(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = program.run("rivers", backend=sgl.RuntimeEndpoint(url), mode="compiled")
    assert main(["trace", state.run_id, "--endpoint", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "done"
    assert main(["trace", state.run_id, "--endpoint", url, "-o", str(tmp_path / "run.svg")]) == 0
    assert ElementTree.parse(tmp_path / "run.svg").getroot().tag.endswith("svg")
    assert main(["trace", "nobody", "--endpoint", url]) == 2
    for form, says in (("ir", "gen %"), ("cfg", ""), ("wire", "ramet-program"), ("svg", "<svg"), ("explain", "ops lowered")):
        assert main(["compile", f"{HERE}:program", "--emit", form, "--disable-pass", "merge_text"]) == 0
        assert says in capsys.readouterr().out
    assert main(["compile", f"{HERE}:program", "--print-after-all"]) == 0
    assert "; after parallelize" in capsys.readouterr().err
    assert main(["compile", f"{HERE}:interpreted_only"]) == 1
    assert "try does not compile" in capsys.readouterr().err
    (tmp_path / "neighbour.py").write_text("TOPIC = 'rivers'\n")
    beside = "import ramet as sgl\nfrom {} import TOPIC\n@sgl.function\ndef program(s):\n    s += TOPIC + sgl.gen('x')\n"
    (tmp_path / "beside.py").write_text(beside.format("neighbour"))
    assert main(["compile", f"{tmp_path / 'beside.py'}:program"]) == 0
    (tmp_path / "lost.py").write_text(beside.format("nobody_knows"))
    assert main(["compile", f"{tmp_path / 'lost.py'}:program"]) == 1
    assert "No module named 'nobody_knows'" in capsys.readouterr().err
    places = {"": "write which program of beside.py", ":x": "beside.py has no program 'x'", "s:x": "there is no file"}
    for place, complaint in places.items():
        assert main(["compile", f"{tmp_path / 'beside.py'}{place}"]) == 1
        assert complaint in capsys.readouterr().err


def test_host_objects_and_models_in_this_process() -> None:
    class Person:
        def __init__(self, name: str) -> None:
            self.name = name

        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return {"type": "object", "properties": {"name": {"enum": ["Ada"]}}, "required": ["name"]}

        @classmethod
        def model_validate_json(cls, text: str) -> Person:
            return cls(json.loads(text)["name"])

    def named(person: Person) -> str:
        return person.name

    @sgl.function
    def extract(s: Any) -> Any:
        s += sgl.gen("person", json_schema=Person)
        return s["person"], named(s["person"])

    state = extract.run(backend=ScriptedBackend(['{"name": "Ada"}']), mode="compiled")
    person, name = state.value
    assert type(person) is Person and person is state["person"] and name == "Ada"


async def test_a_thousand_compiled_runs_on_one_loop() -> None:
    backend = Unhurried(lambda call: "123")
    states = await asyncio.gather(*(simple.arun(index, backend=backend, mode="compiled") for index in range(1000)))
    assert [state.value for state in states] == list(range(1000))
    assert backend.peak_live == 1000


@sgl.function
def simple(s: Any, index: int) -> Any:
    s += f"Number {index}: " + sgl.gen("x", max_tokens=4)
    return index
