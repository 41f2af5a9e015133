"""The only serialised form of a program: deterministic JSON, digested, bounded.

What an op looks like is derived from its dataclass: operands and results are value numbers, attributes are JSON. Nothing in a message
names Python, and the reader trusts nothing: sizes, depths, types and names are checked here, meaning by `ir.verify` afterwards.

    {"format": "ramet-program", "version": 1, "sources": […], "grammars": […],
     "functions": [{"name", "params", "types": {"0": "state"}, "blocks": [{"id", "args": [0], "ops": [["gen", {…}, [0, 12, 4, 20]]]}]}]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from ramet.errors import InvalidRequest, TooLarge
from ramet.ir.module import Block, Function, Grammar, Module, Source
from ramet.ir.ops import LAYOUTS, OPS, Op, Target, results_of
from ramet.ir.types import Location, Type, Value
from ramet.ir.verify import verify
from ramet.wire.format_version import FORMAT, VERSION
from ramet.wire.plain_values import from_json, to_json

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_FUNCTIONS = 256
MAX_OPS = 100_000
MAX_BLOCKS = 4096
MAX_NUMBER = 1 << 53
T = TypeVar("T")


class WireError(InvalidRequest):
    code = "invalid_program_encoding"


def encode(module: Module) -> bytes:
    """The same module always gives the same bytes."""
    message = {
        "format": FORMAT,
        "version": VERSION,
        "sources": [[each.file, each.first_line, list(each.lines)] for each in module.sources],
        "grammars": [[each.kind, each.source] for each in module.grammars],
        "functions": [_function(function) for function in module.functions],
    }
    return json.dumps(message, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()


def check_digest(encoded: bytes, expected: str) -> None:
    if digest(encoded) != expected:
        raise WireError("the digest does not belong to this program")


def decode(encoded: bytes, expected_digest: str | None = None) -> Module:
    """A verified module, or an InvalidRequest that says what is wrong and where."""
    if len(encoded) > MAX_BYTES:
        raise TooLarge(f"a program of {len(encoded)} bytes; at most {MAX_BYTES}")
    if expected_digest is not None:
        check_digest(encoded, expected_digest)
    message = _parse(encoded)
    if message.get("format") != FORMAT or type(message.get("version")) is not int or message.get("version") != VERSION:
        have = f"{message.get('format')!r:.40} version {message.get('version')!r:.20}"
        raise WireError(f"this reader knows {FORMAT} version {VERSION}, not {have}")
    module = _Reader().module(message)
    verify(module)
    return module


def _parse(encoded: bytes) -> dict[str, Any]:
    try:
        message = json.loads(encoded, parse_constant=_no_constant, parse_int=_small_int)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not a program: {error}") from None
    _check_depth(message)
    if not isinstance(message, dict):
        raise WireError("not a program: the message is a JSON object")
    return message


def _check_depth(message: Any) -> None:
    """The parser itself stops at Python's recursion limit; what passes it is walked without recursion."""
    level = [message]
    for _ in range(MAX_DEPTH):
        level = [item for node in level for item in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())]
        if not level:
            return
    raise WireError(f"the program nests deeper than {MAX_DEPTH} levels")


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _small_int(text: str) -> int:
    value = int(text) if len(text) < 20 else MAX_NUMBER + 1
    if abs(value) > MAX_NUMBER:
        raise ValueError(f"the number {text[:24]} is out of range")
    return value


def _function(function: Function) -> dict[str, Any]:
    values = [value for block in function.blocks for value in block.args]
    values += [value for op in function.ops() for value in results_of(op)]
    return {
        "name": function.name,
        "params": list(function.params),
        "types": {str(value.id): str(value.type) for value in values},
        "blocks": [
            {"id": block.id, "args": [value.id for value in block.args], "ops": [_op(op) for op in block.ops]} for block in function.blocks
        ],
    }


def _op(op: Op) -> list[Any]:
    layout = LAYOUTS[type(op)]
    fields = {name: _operand(getattr(op, name)) for name, _ in layout.uses if getattr(op, name) not in (None, ())}
    fields |= {name: getattr(op, name).id for name in layout.results}
    fields |= {name: [getattr(op, name).block, [value.id for value in getattr(op, name).args]] for name in layout.targets}
    for name, default in layout.attributes:
        held = getattr(op, name)
        if not _same(held, default):
            fields[name] = to_json(held) if default is None else held
    return [layout.name, fields, [op.loc.source, op.loc.line, op.loc.col, op.loc.end_col]]


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def _operand(held: Value | tuple[Value, ...]) -> Any:
    return held.id if isinstance(held, Value) else [value.id for value in held]


class _Reader:
    """Turns parsed JSON into IR; every complaint says at which pointer."""

    def __init__(self) -> None:
        self._at = ""
        self._num_ops = 0
        self._num_blocks = 0

    def module(self, message: Mapping[str, Any]) -> Module:
        unknown = message.keys() - {"format", "version", "sources", "grammars", "functions"}
        self._at = "/"
        if unknown:
            raise self._error(f"unknown field {min(unknown)!r:.40}")
        functions = self._is(message.get("functions"), list)
        if len(functions) > MAX_FUNCTIONS:
            raise self._error(f"{len(functions)} functions; at most {MAX_FUNCTIONS}")
        sources = tuple(self._source(each, i) for i, each in enumerate(self._is(message.get("sources", []), list)))
        grammars = tuple(self._grammar(each, i) for i, each in enumerate(self._is(message.get("grammars", []), list)))
        return Module(tuple(self._function(each, i) for i, each in enumerate(functions)), sources, grammars)

    def _source(self, given: Any, index: int) -> Source:
        self._at = f"/sources/{index}"
        file, first, lines = self._row(given, (str, int, list))
        return Source(file, first, tuple(self._is(line, str) for line in lines))

    def _grammar(self, given: Any, index: int) -> Grammar:
        self._at = f"/grammars/{index}"
        kind, source = self._row(given, (str, str))
        return Grammar(kind, source)

    def _function(self, given: Any, index: int) -> Function:
        self._at = f"/functions/{index}"
        fields = self._is(given, dict)
        types: dict[int, Value] = {}
        for number, kind in self._is(fields.get("types"), dict).items():
            if not number.isdecimal() or len(number) > 9 or self._is(kind, str) not in _TYPES:
                raise self._error(f"value {number!r:.20} of type {kind!r:.20} is no value")
            types[int(number)] = Value(int(number), Type(kind))
        params = tuple(self._is(param, str) for param in self._is(fields.get("params"), list))
        given_blocks = self._is(fields.get("blocks"), list)
        self._num_blocks += len(given_blocks)
        if self._num_blocks > MAX_BLOCKS:
            raise self._error(f"more than {MAX_BLOCKS} blocks")
        blocks = [self._block(each, types, f"/functions/{index}/blocks/{i}") for i, each in enumerate(given_blocks)]
        return Function(self._is(fields.get("name"), str), params, tuple(blocks))

    def _block(self, given: Any, types: Mapping[int, Value], where: str) -> Block:
        self._at = where
        fields = self._is(given, dict)
        args = tuple(self._value(each, types) for each in self._is(fields.get("args"), list))
        number, rows = self._is(fields.get("id"), int), self._is(fields.get("ops"), list)
        return Block(number, args, tuple(self._op(each, types, f"{where}/ops/{i}") for i, each in enumerate(rows)))

    def _op(self, given: Any, types: Mapping[int, Value], where: str) -> Op:
        self._at = where
        self._num_ops += 1
        if self._num_ops > MAX_OPS:
            raise self._error(f"more than {MAX_OPS} ops")
        name, fields, place = self._row(given, (str, dict, list))
        cls = OPS.get(name)
        if cls is None:
            raise self._error(f"unknown op {name!r:.40}")
        layout = LAYOUTS[cls]
        known = {**dict(layout.uses), **dict.fromkeys(layout.results, "result"), **dict.fromkeys(layout.targets, "target")}
        defaults = dict(layout.attributes)
        if unknown := fields.keys() - known.keys() - defaults.keys():
            raise self._error(f"{name} has no field {min(unknown)!r:.40}")
        read: dict[str, Any] = {field: self._field(role, fields.get(field), types) for field, role in known.items()}
        read |= {field: self._attribute(fields[field], default) for field, default in defaults.items() if field in fields}
        return cls(**read, loc=Location(*self._row(place, (int, int, int, int))))

    def _field(self, role: str, given: Any, types: Mapping[int, Value]) -> Any:
        if role == "operands":
            return tuple(self._value(each, types) for each in self._is(given if given is not None else [], list))
        if role == "optional" and given is None:
            return None
        if role == "target":
            block, args = self._row(given, (int, list))
            return Target(block, tuple(self._value(each, types) for each in args))
        return self._value(given, types)

    def _attribute(self, given: Any, default: Any) -> Any:
        """An attribute without a default type is any plain value (a constant)."""
        if default is None:
            return from_json(given)
        if isinstance(default, tuple):
            return tuple(self._is(each, str) for each in self._is(given, list))
        if isinstance(default, dict):
            return {key: self._is(each, int) for key, each in self._is(given, dict).items()}
        return self._is(given, type(default))

    def _value(self, number: Any, types: Mapping[int, Value]) -> Value:
        value = types.get(self._is(number, int))
        if value is None:
            raise self._error(f"value {number} has no type")
        return value

    def _row(self, given: Any, kinds: tuple[type, ...]) -> list[Any]:
        row = self._is(given, list)
        if len(row) != len(kinds):
            raise self._error(f"expected {len(kinds)} items, found {len(row)}")
        return [self._is(item, kind) for item, kind in zip(row, kinds, strict=True)]

    def _is(self, given: Any, kind: type[T]) -> T:
        if type(given) is not kind:
            raise self._error(f"expected {kind.__name__}, found {type(given).__name__}")
        return given

    def _error(self, what: str) -> WireError:
        return WireError(f"{what} (at {self._at})", param=self._at)


_TYPES = frozenset(str(kind) for kind in Type)
