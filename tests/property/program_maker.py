"""Random programs in the language, as source text: everything that compiles, nested and mixed, always ending."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HEADER = """
WORDS = ["red", "green", "blue"]
LIMIT = 3

def tool(value, *, plus=0):
    LOG.append((value, plus))
    return f"t{len(str(value)) + plus}"
"""


METHODS = ("upper()", "strip()", "title()", "replace('a', 'oo')", "lower()")
CHOICES = ("'maybe'", "'so' + str(topic)")


class ProgramMaker:
    """One program per seed. Names in scope are tracked by type, so that most programs run to their end; some fail, which is meant."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.lines: list[str] = []
        self.indent = 0
        self.count = 0
        self.texts: list[str] = []
        self.ints: list[str] = []
        self.lists: list[str] = []
        self.dicts: list[str] = []
        self.vars: list[str] = []  # variables of the conversation
        self.state = "s"
        self.loops = 0
        self.subs: list[str] = []
        self.ambient = False
        self.in_role = False
        self.held = 0

    def program(self) -> str:
        self.emit(HEADER)
        for _ in range(self.rng.randrange(3)):
            self.function(f"sub{len(self.subs)}", nested=True)
        self.ambient = self.rng.random() < 0.15
        self.function("main", nested=False)
        return "\n".join(self.lines) + "\n"

    def function(self, name: str, *, nested: bool) -> None:
        self.texts, self.ints, self.lists, self.dicts, self.vars = ["topic"], ["size"], ["items"], [], []
        self.loops = 0
        self.emit("@function")
        self.emit(f"def {name}({'' if self.ambient else 's, '}topic, size, items):")
        with self.inside():
            self.block(self.rng.randint(1, 3) if nested else self.rng.randint(2, 6))
            self.emit(f"return {self.any()}")
        if nested:
            self.subs.append(name)

    # source text

    def emit(self, line: str) -> None:
        self.lines.append("    " * self.indent + line if line.strip() else line)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What is bound inside may not be bound after."""
        saved = [list(each) for each in (self.texts, self.ints, self.lists, self.dicts, self.vars)]
        self.indent += 1
        yield
        self.indent -= 1
        if self.indent:
            self.texts, self.ints, self.lists, self.dicts, self.vars = saved

    def name(self, what: str) -> str:
        self.count += 1
        return f"{what}{self.count}"

    def pick(self, *options: Callable[[], str]) -> str:
        return self.rng.choice(options)()

    # expressions

    def text(self, depth: int = 0) -> str:
        rng = self.rng
        options: list[Callable[[], str]] = [lambda: repr(rng.choice(["a", "Bee", "c d", "", "yes", "x\n"])), lambda: rng.choice(self.texts)]
        if self.vars and not self.ambient:
            options += [self.variable] * 3
        if depth < 2:
            options += [
                lambda: f"f'<{{{rng.choice([*self.texts, *self.ints, *self.lists])}}}>'",
                lambda: f"str({self.int(depth + 1)})",
                lambda: f"str({self.text(depth + 1)}).{rng.choice(METHODS)}",
                lambda: f"({self.text(depth + 1)} if {self.bool(depth + 1)} else {self.text(depth + 1)})",
                lambda: f"str({self.text(depth + 1)})[{rng.randint(-2, 2)}:{rng.randint(1, 5)}]",
                lambda: f'"-".join([str(v) for v in {self.list(depth + 1)}])',
                lambda: f"({self.text(depth + 1)} + {self.text(depth + 1)})",
                lambda: f"str(WORDS[{self.int(depth + 1)} % 3])",
                lambda: f"(str({self.text(depth + 1)}) or {self.text(depth + 1)})",
            ]
            if rng.random() < 0.3:
                options.append(lambda: f"tool({self.any(depth + 1)}{rng.choice(['', ', plus=2'])})")
            if self.subs and rng.random() < 0.5 and not self.ambient:
                options.append(lambda: self.sub_call(depth))
        return rng.choice(options)()

    def sub_call(self, depth: int) -> str:
        sub = self.rng.choice(self.subs)
        how = self.rng.choice([".value", ".text()", ".value"])
        extra = self.rng.choice(["", ", temperature=0"])
        return f"str({sub}.run({self.text(depth + 1)}, {self.int(depth + 1)}, {self.list(depth + 1)}{extra}){how})"

    def variable(self) -> str:
        return f"str({self.state}[{self.rng.choice(self.vars)!r}])"

    def int(self, depth: int = 0) -> str:
        rng = self.rng
        options: list[Callable[[], str]] = [lambda: str(rng.randint(0, 4)), lambda: rng.choice(self.ints), lambda: "LIMIT"]
        if depth < 2:
            options += [
                lambda: f"({self.int(depth + 1)} {rng.choice(['+', '-', '*', '+'])} {self.int(depth + 1)})",
                lambda: f"len({self.text(depth + 1)})",
                lambda: f"len({self.list(depth + 1)})",
                lambda: f"({self.int(depth + 1)} % 3)",
                lambda: f"max({self.int(depth + 1)}, {self.int(depth + 1)})",
                lambda: f"abs({self.int(depth + 1)})",
                lambda: f"sum([len(str(v)) for v in {self.list(depth + 1)}])",
            ]
            if rng.random() < 0.1:
                options.append(lambda: f"({self.int(depth + 1)} // {self.int(depth + 1)})")
        return rng.choice(options)()

    def bool(self, depth: int = 0) -> str:
        rng = self.rng
        options: list[Callable[[], str]] = [
            lambda: f"{self.int(depth + 1)} {rng.choice(['<', '>', '==', '!=', '<='])} {self.int(depth + 1)}",
            lambda: f"{self.text(depth + 1)} in {self.text(depth + 1)}",
            lambda: rng.choice(["True", "False", f"bool({self.list(1)})"]),
        ]
        if depth < 2:
            options += [
                lambda: f"({self.bool(depth + 1)} {rng.choice(['and', 'or'])} {self.bool(depth + 1)})",
                lambda: f"(not {self.bool(depth + 1)})",
                lambda: f"{self.text(depth + 1)} == {self.text(depth + 1)}",
                lambda: f"0 <= {self.int(depth + 1)} < {self.int(depth + 1)}",
                lambda: f"any(len(str(v)) > {self.int(2)} for v in {self.list(depth + 1)})",
                lambda: f"{self.text(depth + 1)} in {self.list(depth + 1)}",
            ]
            if self.vars and not self.ambient:
                options.append(lambda: f"{rng.choice([*self.vars, 'nothing'])!r} in {self.state}")
        return rng.choice(options)()

    def list(self, depth: int = 0) -> str:
        rng = self.rng
        options: list[Callable[[], str]] = [lambda: rng.choice(self.lists), lambda: "WORDS", lambda: f"[{self.text(2)}, {self.int(2)}]"]
        if depth < 2:
            options += [
                lambda: f"[v for v in {self.list(depth + 1)} if {self.bool(2)}]",
                lambda: f"[str(v) + {self.text(2)} for v in {self.list(depth + 1)}]",
                lambda: f"str({self.text(depth + 1)}).split()",
                lambda: f"list(range({self.int(2)} % 4))",
                lambda: f"sorted([str(v) for v in {self.list(depth + 1)}])",
                lambda: f"({self.list(depth + 1)} + [{self.int(2)}])",
                lambda: f"{rng.choice(self.lists)}[:2]",
            ]
        return rng.choice(options)()

    def any(self, depth: int = 0) -> str:
        found = self.pick(lambda: self.text(depth), lambda: self.int(depth), lambda: self.list(depth), lambda: f"({self.bool(depth)})")
        return self.rng.choice(self.dicts) if self.dicts and self.rng.random() < 0.1 else found

    # statements

    def block(self, num: int) -> None:
        before = len(self.lines)
        for _ in range(num):
            self.statement()
        if len(self.lines) == before:
            self.emit("pass")

    def statement(self) -> None:
        simple = [self.assign, self.assign, self.change, self.change]
        speaking = [self.turn, self.turn] if self.ambient else [self.say, self.say, self.turn, self.generate, self.generate, self.remember]
        nested = [self.branch, self.for_loop, self.while_loop] if self.indent < 4 else []
        forks = [self.forks, self.pair, self.scope, self.copy, self.continued] if self.indent < 3 and not self.ambient else []
        self.rng.choice([*simple, *speaking, *speaking, *nested, *forks])()

    def say(self) -> None:
        self.emit(f"{self.state} += {self.text()}")

    def content(self) -> str:
        if self.ambient or self.rng.random() < 0.5:
            return self.text()
        return f"{self.text(2)} + {self.gen()} + {self.text(2)}"

    def gen(self) -> str:
        name = self.rng.choice(self.vars) if self.vars and self.rng.random() < 0.2 else self.name("g")
        kind = self.rng.choice(
            ["", "", ", max_tokens=5", ', regex="[0-9]+"', ", dtype=int", f", stop={self.text(2)}", f", max_tokens={self.int(2)}"]
        )
        call = (
            f'sgl.gen("{name}"{kind})'
            if self.rng.random() < 0.8
            else f'sgl.select("{name}", choices=["yes", "no", {self.rng.choice(CHOICES)}])'
        )
        self.vars.append(name)
        return call

    def generate(self) -> None:
        self.emit(f"{self.state} += {self.gen()}")

    def turn(self) -> None:
        role = self.rng.choice(["user", "assistant", "system"])
        if self.ambient:
            name = self.name("turn")
            self.emit(f"{name} = sgl.{role}({self.rng.choice([self.text(), self.text(), ''])})")
            if self.rng.random() < 0.4:
                self.emit(f"{name} += sgl.assistant()")
            if self.rng.random() < 0.4:
                word = self.name("t")
                self.emit(f"{word} = str({name})")
                self.texts.append(word)
        elif self.rng.random() < 0.6:
            self.emit(f"{self.state} += sgl.{role}({self.content()})")
        elif self.rng.random() < 0.5:
            self.emit(f"{self.state}.{role}({self.content()})")
        else:
            self.emit(f"with {self.state}.{role}():")
            self.indent += 1
            self.emit(f"{self.state} += {self.content()}")
            self.indent -= 1

    def remember(self) -> None:
        name = self.name("v")
        self.emit(f"{self.state}[{name!r}] = {self.any()}")
        self.vars.append(name)

    def assign(self) -> None:
        kind = self.rng.randrange(5)
        if kind == 0:
            name = self.name("t")
            self.emit(f"{name} = {self.text()}")
            self.texts.append(name)
        elif kind == 1:
            name = self.name("n")
            self.emit(f"{name} = {self.int()}")
            self.ints.append(name)
        elif kind == 2:
            name = self.name("l")
            self.emit(f"{name} = list({self.list()})")
            self.lists.append(name)
        elif kind == 3:
            name = self.name("d")
            self.emit(f"{name} = {{'k': {self.any()}, {self.text(2)}: {self.int()}}}")
            self.dicts.append(name)
        else:
            first, second = self.name("n"), self.name("t")
            self.emit(f"{first}, {second} = {self.int()}, {self.text()}")
            self.ints.append(first)
            self.texts.append(second)

    def change(self) -> None:
        options: list[Callable[[], str]] = []
        own_lists = [name for name in self.lists if name != "items"]
        if own_lists:
            target = self.rng.choice(own_lists)
            options += [
                lambda: f"{target}.append({self.pick(lambda: self.text(1), lambda: self.int(1))})",
                lambda: f"{target} += [{self.text(1)}]",
                lambda: f"{target}[-1:] + [1]",
            ]
            other = self.rng.choice(own_lists)
            options += [lambda: f"{target} = {other}"]
        if self.dicts:
            options += [lambda: f"{self.rng.choice(self.dicts)}[{self.text(2)}] = {self.pick(lambda: self.text(1), lambda: self.int(1))}"]
        if len(self.ints) > 1:
            options += [lambda: f"{self.rng.choice(self.ints)} {self.rng.choice(['+=', '-='])} {self.int(1)}"]
        if len(self.texts) > 1:
            options += [lambda: f"{self.rng.choice(self.texts)} += {self.text(1)}"]
        if options:
            self.emit(self.rng.choice(options)())
        else:
            self.assign()

    def branch(self) -> None:
        self.emit(f"if {self.bool()}:")
        with self.inside():
            self.block(self.rng.randint(1, 2))
            if self.rng.random() < 0.1:
                self.emit(f"return {self.any()}")
            elif self.loops and self.rng.random() < 0.4:
                self.emit(self.rng.choice(["break", "continue"]))
        if self.rng.random() < 0.3:
            self.emit(f"elif {self.bool()}:")
            with self.inside():
                self.block(1)
        if self.rng.random() < 0.6:
            self.emit("else:")
            with self.inside():
                self.block(self.rng.randint(1, 2))

    def for_loop(self) -> None:
        item, index = self.name("i"), self.name("n")
        kind = self.rng.randrange(4)
        head = [
            f"for {index} in range({self.rng.randint(1, 3)}):",
            f"for {item} in {self.list()}[:3]:",
            f"for {index}, {item} in enumerate({self.list()}[:3]):",
            f"for {item}, {index} in zip({self.list()}[:3], range(3)):",
        ][kind]
        self.emit(head)
        self.loops += 1
        with self.inside():
            self.texts += [f"str({item})"] if kind else []
            self.ints += [index] if kind != 1 else []
            self.texts = [name for name in self.texts if name]
            targets = [name for name in self.texts if name.startswith("str(")]
            self.texts = [name for name in self.texts if not name.startswith("str(")]
            if targets:
                word = self.name("t")
                self.emit(f"{word} = {targets[-1]}")
                self.texts.append(word)
            self.block(self.rng.randint(1, 2))
        self.loops -= 1
        if self.rng.random() < 0.2:
            self.emit("else:")
            with self.inside():
                self.block(1)

    def while_loop(self) -> None:
        counter = self.name("w")
        self.emit(f"{counter} = 0")
        self.emit(f"while {counter} < {self.rng.randint(1, 3)}{self.rng.choice(['', ' and ' + self.bool(1)])}:")
        self.loops += 1
        with self.inside():
            self.emit(f"{counter} += 1")
            self.block(self.rng.randint(1, 2))
        self.loops -= 1

    def forks(self) -> None:
        group, branch, index = self.name("fs"), self.name("f"), self.name("n")
        self.emit(f"{group} = {self.state}.fork({self.rng.choice(['2', '3', f'1 + abs({self.int()}) % 3'])})")
        if self.rng.random() < 0.5:
            self.emit(f"{group} += {self.text()}")
        name = self.name("g")
        head = self.rng.choice(
            [
                f"for {branch} in {group}:",
                f"for {index}, {branch} in enumerate({group}):",
                f"for {index}, {branch} in zip(range(9), {group}):",
            ]
        )
        self.emit(head)
        with self.inside():
            outer, self.state = self.state, branch
            self.ints += [index] if index in head else []
            self.emit(f"{branch} += 'fork'")
            self.say()
            self.emit(f'{branch} += sgl.gen("{name}")')
            self.vars.append(name)
            if self.rng.random() < 0.4:
                self.branchless()
            self.state = outer
        if self.rng.random() < 0.5:
            found = self.name("l")
            self.emit(
                f'{found} = [{branch}2["{name}"] for {branch}2 in {group}]' if self.rng.random() < 0.5 else f'{found} = {group}["{name}"]'
            )
            self.lists.append(found)
        if self.rng.random() < 0.7:
            self.emit(f"{group}.join({self.rng.choice(['', '', repr('concate_and_append')])})")
        elif self.rng.random() < 0.5:
            word = self.name("t")
            self.emit(f'{word} = {group}[0]["{name}"]')
            self.texts.append(f"{word}")

    def branchless(self) -> None:
        self.rng.choice([self.say, self.generate, self.assign, self.remember])()

    def pair(self) -> None:
        left, right = self.name("p"), self.name("q")
        self.emit(f"{left}, {right} = {self.state}.fork(2)")
        for branch in (left, right):
            self.emit(f'{branch} += {self.text(1)} + sgl.gen("h")')
        word = self.name("t")
        self.emit(f'{word} = {left}["h"] + {right}["h"]')
        self.texts.append(word)

    def scope(self) -> None:
        name = self.name("v")
        self.emit(f'with {self.state}.var_scope("{name}"):')
        self.indent += 1
        self.say()
        self.generate()
        self.indent -= 1
        self.vars.append(name)

    def copy(self) -> None:
        name = self.name("c")
        self.emit(f"with {self.state}.copy() as {name}:")
        with self.inside():
            outer, self.state = self.state, name
            self.emit(f"{name} += 'copy'")
            self.say()
            self.generate()
            word = self.name("t")
            self.emit(f"{word} = {self.variable()}")
            self.state = outer
        self.texts.append(word)

    def continued(self) -> None:
        """A program called on this conversation goes on in it."""
        if self.subs:
            sub, word = self.rng.choice(self.subs), self.name("t")
            self.emit(f"{word} = str({sub}({self.state}, {self.text(1)}, {self.int(1)}, {self.list(1)}))")
            self.texts.append(word)
