"""Objects that only the client has (sets, dates, named tuples, instances of models): a compiled program may use them as its body would."""

from __future__ import annotations

import datetime
from collections import Counter, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest

import ramet as sgl
from ramet.errors import InvalidRequest
from ramet.lang.host_calls import ClientHost
from ramet.program.scripted import ScriptedBackend

Pair = namedtuple("Pair", "left right")


@dataclass
class Person:
    name: str = "Ada"

    def greeting(self, end: str = "") -> str:
        return f"Hello, {self.name}{end}"


@sgl.function
def sets(s: Any) -> Any:
    seen = set()
    for word in ["a", "b", "a"]:
        if word not in seen:
            s += word
        seen.add(word)
    if not seen or not {x + x for x in "xy"}:
        s += "never"
    return len(seen), sorted(seen), {"a", "b"} == seen, "b" in seen


@sgl.function
def counted(s: Any) -> Any:
    votes = Counter(["x", "y", "x"])
    votes["z"] += 5
    for key, value in sorted(votes.items()):
        s += f"{key}={value} "
    return votes.most_common(1)[0][0], votes["z"], sum(votes.values()), votes


@sgl.function
def dated(s: Any) -> Any:
    day = datetime.date(2026, 11, 23)
    s += f"{day} {day:%Y} " + str(day)
    return day.year, day.isoformat(), day is None, day is not None and day == datetime.date(2026, 11, 23)


@sgl.function
def attributes(s: Any) -> Any:
    person, pair = Person(name="Joe"), Pair(1, "b")
    left, right = pair
    s += person.name + person.greeting(end="!") + right + pair.right + pair[1]
    return person, left + pair.left, [each for each in pair if each], right.encode("latin-1")


@sgl.function
def missing(s: Any) -> Any:
    person = Person()
    s += "a"
    return person.nothing


@pytest.mark.parametrize("program", [sets, counted, dated, attributes], ids=lambda program: program.__name__)
def test_used_alike_in_the_body_in_this_process_and_on_the_server(program: sgl.Function, url: str) -> None:
    wanted = program.run(backend=ScriptedBackend(), mode="interpreted")
    for backend in (ScriptedBackend(), sgl.RuntimeEndpoint(url)):
        found = program.run(backend=backend, mode="compiled")
        assert (found.value, found.text()) == (wanted.value, wanted.text())
        assert type(found.value[-1]) is type(wanted.value[-1])


def test_an_attribute_that_is_not_there_is_python_s_own_error(url: str) -> None:
    with pytest.raises(AttributeError, match="'Person' object has no attribute 'nothing'") as caught:
        missing.run(backend=sgl.RuntimeEndpoint(url), mode="compiled")
    assert "return person.nothing\n           ^^^^^^^^^^^^^^" in caught.value.__notes__[0]


@pytest.mark.parametrize("name", ["eval", "__import__", "os.system", "~@__class__", "~@year", "~.mro", "~.__reduce__", "Person", "~exec"])
async def test_a_server_cannot_ask_for_what_the_program_does_not_call(name: str) -> None:
    host = ClientHost(sets.compilation.get().compiled, ScriptedBackend())
    with pytest.raises(InvalidRequest, match="the program has no host call"):
        await host.run(name, ["1"], {})
