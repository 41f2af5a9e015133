"""Reads the textual form back; a complaint names the line."""

from __future__ import annotations

import json
import re
from typing import Any

from ramet.errors import InvalidRequest
from ramet.ir.module import Block, Function, Grammar, Module, Source
from ramet.ir.ops import LAYOUTS, OPS, Op, Target
from ramet.ir.types import Location, Type, Value

_FUNC = re.compile(r"func ([\w.$<>-]+)\((.*)\)$")
_BLOCK = re.compile(r"\^(\d+)\((.*)\)$")
_TYPED = re.compile(r"%(\d+):(\w+)$")
_OP = re.compile(r"(?:(%[^=]*?) = )?(\w+)(?: |$)")
_WORD = re.compile(r"%\d+|_|\[[^\]]*\]|\^\d+\([^)]*\)")
_ATTRIBUTE = re.compile(r"(\w+)=")
_LOCATION = re.compile(r"@(\d+):(\d+):(\d+)-(\d+)$")


class IrSyntaxError(InvalidRequest):
    code = "invalid_ir_text"


def parse_module(text: str) -> Module:
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str) -> None:
        self._lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        self._number = 0
        self._types: dict[int, Value] = {}

    def module(self) -> Module:
        sources: list[Source] = []
        grammars: list[Grammar] = []
        functions: list[Function] = []
        while self._lines:
            number, line = self._lines[0]
            self._number = number
            if line.startswith("func "):
                functions.append(self._function())
                continue
            self._lines.pop(0)
            parts = self._jsons(line.partition(" ")[2])
            if line.startswith("source ") and len(parts) == 3:
                sources.append(Source(parts[0], parts[1], tuple(parts[2])))
            elif line.startswith("grammar ") and len(parts) == 2:
                grammars.append(Grammar(parts[0], parts[1]))
            else:
                raise self._error(f"expected source, grammar or func, found {line[:40]!r}")
        return Module(tuple(functions), tuple(sources), tuple(grammars))

    def _function(self) -> Function:
        match = _FUNC.match(self._lines.pop(0)[1])
        if match is None:
            raise self._error("a function is written `func name(param, param)`")
        end = next((i for i, (_, line) in enumerate(self._lines) if line.startswith(("func ", "source ", "grammar "))), len(self._lines))
        body, self._lines = self._lines[:end], self._lines[end:]
        self._types = self._declared(body)
        blocks: list[tuple[int, tuple[Value, ...], list[Op]]] = []
        for number, line in body:
            self._number = number
            head = _BLOCK.match(line)
            if head:
                blocks.append((int(head[1]), tuple(self._typed(word) for word in _split(head[2])), []))
            elif blocks:
                blocks[-1][2].append(self._op(line))
            else:
                raise self._error("an op before the first block")
        return Function(match[1], tuple(_split(match[2])), tuple(Block(name, args, tuple(ops)) for name, args, ops in blocks))

    def _declared(self, body: list[tuple[int, str]]) -> dict[int, Value]:
        found: dict[int, Value] = {}
        for number, line in body:
            self._number = number
            block = _BLOCK.match(line)
            op = None if block else _OP.match(line)
            for word in _split(block[2] if block else (op[1] or "" if op else "")):
                value = self._typed(word)
                found[value.id] = value
        return found

    def _op(self, line: str) -> Op:
        match = _OP.match(line)
        cls = OPS.get(match[2]) if match else None
        if match is None or cls is None:
            raise self._error(f"unknown op in {line[:40]!r}; known: {', '.join(OPS)}")
        layout = LAYOUTS[cls]
        given: dict[str, Any] = dict(zip(layout.results, [self._typed(word) for word in _split(match[1] or "")], strict=True))
        place = match.end()
        for name in [*(name for name, _ in layout.uses), *layout.targets]:
            word = _WORD.match(line, place)
            if word is None:
                raise self._error(f"`{layout.name}` lacks its {name}")
            given[name] = self._word(word[0])
            place = word.end() + (2 if line.startswith(", ", word.end()) else 1)
        given |= self._attributes(line[place:], dict(layout.attributes))
        return cls(**given)

    def _word(self, word: str) -> Any:
        if word == "_":
            return None
        if word.startswith("["):
            return tuple(self._value(each) for each in _split(word[1:-1]))
        if word.startswith("^"):
            name, _, args = word[1:-1].partition("(")
            return Target(int(name), tuple(self._value(each) for each in _split(args)))
        return self._value(word)

    def _attributes(self, text: str, defaults: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while text := text.lstrip():
            place = _LOCATION.match(text)
            if place:
                found["loc"] = Location(*(int(each) for each in place.groups()))
                break
            name = _ATTRIBUTE.match(text)
            if name is None or name[1] not in defaults:
                raise self._error(f"expected an attribute ({', '.join(defaults)}) at {text[:30]!r}")
            value, end = self._json(text, name.end())
            found[name[1]] = tuple(value) if isinstance(defaults[name[1]], tuple) else value
            text = text[end:]
        return found

    def _typed(self, word: str) -> Value:
        match = _TYPED.match(word)
        if match is None or match[2] not in Type.__members__.values():
            raise self._error(f"expected %id:type, found {word!r}")
        return Value(int(match[1]), Type(match[2]))

    def _value(self, word: str) -> Value:
        value = self._types.get(int(word[1:])) if word.startswith("%") and word[1:].isdigit() else None
        if value is None:
            raise self._error(f"{word} is not defined in this function")
        return value

    def _json(self, text: str, start: int) -> tuple[Any, int]:
        try:
            return json.JSONDecoder().raw_decode(text, start)
        except ValueError as error:
            raise self._error(f"not JSON: {error}") from None

    def _jsons(self, text: str) -> list[Any]:
        found, place = [], 0
        while place < len(text):
            value, place = self._json(text, place)
            found.append(value)
            place += 1
        return found

    def _error(self, what: str) -> IrSyntaxError:
        return IrSyntaxError(f"IR text, line {self._number}: {what}")


def _split(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]
