"""The whitelist behind `call`: what a program may compute, with bounded time and memory however hostile it is.

A builtin gives exactly what Python gives, raises what Python raises, or raises `LimitExceeded`. Nothing here reads a file, an
attribute or a module: methods are looked up in a table by the run-time type of their object.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ramet.errors import QuotaExceeded
from ramet.ir import bounded_regex
from ramet.ir.types import Type

MAX_TEXT = 1 << 20
MAX_ITEMS = 1 << 16
MAX_NODES = 1 << 17
MAX_DEPTH = 64
MAX_BITS = 1 << 14


class LimitExceeded(QuotaExceeded):
    code = "program_limit"


@dataclass(frozen=True, slots=True)
class Builtin:
    """`deep`: walks whole containers, so these are measured first. `writes`: changes its first argument in place."""

    run: Callable[..., Any]
    result: Type = Type.JSON
    deep: bool = False
    writes: bool = False


def evaluate(name: str, args: Sequence[Any], keys: Sequence[str] = ()) -> Any:
    """Run builtin `name`; `keys` names the last arguments. Raises Python's own errors and `LimitExceeded`."""
    builtin = BUILTINS[name]
    if builtin.deep:
        for value in args:
            measure(value)
    split = len(args) - len(keys)
    result = builtin.run(*args[:split], **dict(zip(keys, args[split:], strict=True)))
    _bound(len(result) if isinstance(result, str) else 0, MAX_TEXT, "characters")
    return result


def measure(value: Any) -> int:
    """Nodes of a plain value, shared parts counted each time they occur; refuses what is too large, too deep or cyclic."""
    if not isinstance(value, list | tuple | dict):
        return 1
    total = 0
    stack: list[tuple[Any, int]] = [(value, 0)]
    while stack:
        node, depth = stack.pop()
        total += 1
        if total > MAX_NODES or depth > MAX_DEPTH:
            raise LimitExceeded(f"a list or dict is too large: more than {MAX_NODES} values or {MAX_DEPTH} levels")
        if isinstance(node, list | tuple):
            stack.extend((each, depth + 1) for each in node)
        elif isinstance(node, dict):
            stack.extend((each, depth + 1) for each in node.values())
    return total


def _bound(size: int, most: int, what: str) -> None:
    if size > most:
        raise LimitExceeded(f"{size} {what} is more than the {most} that a program may hold in one value")


def _items(value: Any) -> Any:
    """A bounded thing to iterate over."""
    if not isinstance(value, str | list | tuple | dict | range):
        raise TypeError(f"'{type(value).__name__}' object is not iterable")
    _bound(len(value), MAX_TEXT if isinstance(value, str) else MAX_ITEMS, "items")
    return value


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        _bound(len(left) + len(right), MAX_TEXT if isinstance(left, str) else MAX_ITEMS, "items")
    return left + right


def _multiply(left: Any, right: Any) -> Any:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(count, int):
            _bound(len(sequence) * max(count, 0), MAX_TEXT if isinstance(sequence, str) else MAX_ITEMS, "items")
    _bound(_bits(left) + _bits(right), MAX_BITS, "bits")
    return left * right


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _power(left: Any, right: Any) -> Any:
    if isinstance(right, int):
        _bound(_bits(left) * abs(right), MAX_BITS, "bits")
    result = left**right
    if isinstance(result, complex):
        raise ValueError("a negative number cannot be raised to a fraction here")
    return result


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _widths(left)
        if "*" in left:
            raise LimitExceeded("a width given as an argument (`%*d`) is not supported in programs")
    return left % right


def _widths(text: str) -> None:
    _bound(max((int(number[:9]) for number in re.findall(r"[0-9]+", text)), default=0), 10_000, "columns")


def _format(value: Any, spec: str = "") -> str:
    _widths(spec)
    return format(value, spec)


def _in(item: Any, container: Any) -> bool:
    return bool(item in (container if isinstance(container, range) else _items(container)))


def _concat(*texts: str) -> str:
    _bound(sum(map(len, texts)), MAX_TEXT, "characters")
    return "".join(texts)


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if max(map(abs, (made.start, made.stop, made.step))) >= 1 << 62:
        raise LimitExceeded("a range past 2**62")
    return made


def _strict_size(position: int, *sizes: int) -> int:
    """How far a strict zip over so many items goes. Raises what it raises when it gets there and something is left."""
    least = min(sizes)
    if position >= least:
        list(zip(*(range(size - least > 0) for size in sizes), strict=True))
    return least


def _iterate(value: Any) -> Any:
    if isinstance(value, range):
        return value
    return list(_items(value)) if isinstance(value, dict) else _items(value)


def _unpack(value: Any, count: int) -> list[Any]:
    items = list(_items(value))
    if len(items) != count:
        raise ValueError(f"{'not enough' if len(items) < count else 'too many'} values to unpack (expected {count})")
    return items


def _round(value: Any, digits: int | None = None) -> Any:
    if digits is not None:
        _bound(abs(digits), 400, "digits")
    return round(value, digits)


def _loads(text: str) -> Any:
    try:
        value = json.loads(text)
    except RecursionError:
        raise LimitExceeded("the JSON nests too deeply") from None
    measure(value)
    return value


def _dumps(value: Any, *, indent: int | None = None, sort_keys: bool = False, ensure_ascii: bool = True) -> str:
    if isinstance(indent, int):
        _bound(indent, 16, "columns")
    return json.dumps(value, indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii)


def _set_item(container: Any, key: Any, value: Any) -> None:
    if isinstance(container, dict) and key not in container:
        _grow(container, 1)
    if not isinstance(container, list | dict):
        raise TypeError(f"'{type(container).__name__}' object does not support item assignment")
    if isinstance(key, slice):
        raise TypeError("assigning to a slice is not supported in programs")
    container[key] = value


def _grow(container: Sequence[Any] | dict[Any, Any], by: int) -> None:
    _bound(len(container) + by, MAX_ITEMS, "items")


def _append(container: list[Any], item: Any) -> None:
    _grow(container, 1)
    container.append(item)


def _extend(container: list[Any], items: Any) -> list[Any]:
    new = list(_items(items))
    _grow(container, len(new))
    container.extend(new)
    return container


def _insert(container: list[Any], index: int, item: Any) -> None:
    _grow(container, 1)
    container.insert(index, item)


def _update(container: dict[Any, Any], other: dict[Any, Any]) -> None:
    _grow(container, len(other))
    container.update(dict(other))


def _set_default(container: dict[Any, Any], key: Any, value: Any = None) -> Any:
    _grow(container, 1)
    return container.setdefault(key, value)


def _in_place_add(left: Any, right: Any) -> Any:
    return _extend(left, right) if isinstance(left, list) else _add(left, right)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    _bound(len(text) + text.count(old) * max(len(new) - len(old), 0), MAX_TEXT, "characters")
    return text.replace(old, new, count)


def _join(text: str, parts: Any) -> str:
    pieces = list(_items(parts))
    _bound(sum(len(piece) for piece in pieces if isinstance(piece, str)) + len(text) * len(pieces), MAX_TEXT, "characters")
    return text.join(pieces)


def _padded(method: Callable[..., str]) -> Callable[..., str]:
    def run(text: str, width: int, *fill: str) -> str:
        _bound(width, MAX_TEXT, "characters")
        return method(text, width, *fill)

    return run


def _split(method: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def run(text: str, *args: Any, **options: Any) -> list[str]:
        parts = method(text, *args, **options)
        _bound(len(parts), MAX_ITEMS, "items")
        return parts

    return run


def _sort(container: list[Any], *, reverse: bool = False) -> None:
    container.sort(reverse=reverse)


def _regex(mode: str) -> Callable[[str, str], Any]:
    def run(pattern: str, string: str) -> Any:
        return _bounded(lambda: bounded_regex.find(pattern, string, mode))

    return run


def _bounded(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except bounded_regex.TooMuchWork as error:
        raise LimitExceeded(f"regular expression: {error}") from None
    except re.error as error:
        raise ValueError(f"invalid regular expression: {error}") from None


def _find_all(pattern: str, string: str) -> list[Any]:
    def shown(match: bounded_regex.Match) -> Any:
        groups = [group or "" for group in match[1:]]
        return match[0] if not groups else groups[0] if len(groups) == 1 else tuple(groups)

    return [shown(match) for _, match in _bounded(lambda: bounded_regex.find_all(pattern, string))]


def _substitute(pattern: str, repl: str, string: str) -> str:
    if "\\" in repl:
        raise ValueError("re.sub with backslashes in the replacement is not supported in programs")
    pieces, place = [], 0
    for (start, end), _ in _bounded(lambda: bounded_regex.find_all(pattern, string)):
        pieces += [string[place:start], repl]
        place = end
    return _concat(*pieces, string[place:])


def _words(text: str) -> list[str]:
    return text.split()


_METHODS: Mapping[str, Mapping[type, Callable[..., Any]]] = {
    **{
        name: {str: getattr(str, name)}
        for name in _words(
            "upper lower strip lstrip rstrip title capitalize swapcase casefold startswith endswith find rfind rindex isdigit isalpha "
            "isalnum isspace isupper islower isnumeric isdecimal removeprefix removesuffix partition rpartition"
        )
    },
    **{name: {str: _split(getattr(str, name))} for name in ("split", "rsplit", "splitlines")},
    **{name: {str: _padded(getattr(str, name))} for name in ("ljust", "rjust", "center", "zfill")},
    "replace": {str: _replace},
    "join": {str: _join},
    "count": {str: str.count, list: list.count, tuple: tuple.count},
    "index": {str: str.index, list: list.index, tuple: tuple.index},
    "copy": {list: list.copy, dict: dict.copy},
    "keys": {dict: list},
    "values": {dict: lambda d: list(d.values())},
    "items": {dict: lambda d: list(d.items())},
    "get": {dict: dict.get},
    "group": {list: lambda match, number=0: match[number]},
    "groups": {list: lambda match: tuple(match[1:])},
    "append": {list: _append},
    "extend": {list: lambda a, b: _extend(a, b) and None},
    "insert": {list: _insert},
    "pop": {list: list.pop, dict: dict.pop},
    "remove": {list: list.remove},
    "clear": {list: list.clear, dict: dict.clear},
    "sort": {list: _sort},
    "reverse": {list: list.reverse},
    "update": {dict: _update},
    "setdefault": {dict: _set_default},
}
_WRITERS = frozenset(_words("append extend insert pop remove clear sort reverse update setdefault"))
_TEXT_RESULTS = frozenset(
    _words(
        "upper lower strip lstrip rstrip title capitalize swapcase casefold removeprefix removesuffix ljust rjust center zfill replace join"
    )
)
_BOOL_RESULTS = frozenset(_words("startswith endswith isdigit isalpha isalnum isspace isupper islower isnumeric isdecimal"))
_DEEP_METHODS = frozenset({"remove", "index", "count", "sort"})


def _method(name: str, table: Mapping[type, Callable[..., Any]]) -> Builtin:
    def run(target: Any, *args: Any, **options: Any) -> Any:
        method = table.get(type(target))
        if method is None:
            raise AttributeError(f"'{type(target).__name__}' object has no attribute '{name}' that a program may use")
        return method(target, *args, **options)

    result = Type.TEXT if name in _TEXT_RESULTS else Type.BOOL if name in _BOOL_RESULTS else Type.JSON
    return Builtin(run, result, deep=name in _DEEP_METHODS, writes=name in _WRITERS)


class Undefined:
    """What a variable holds before anything is assigned to it."""

    __slots__ = ()


UNDEFINED = Undefined()
_RAISED: Mapping[str, type[Exception]] = {each.__name__: each for each in (ValueError, TypeError, KeyError, IndexError, RuntimeError)}

BUILTINS: Mapping[str, Builtin] = MappingProxyType(
    {
        "add": Builtin(_add),
        "iadd": Builtin(_in_place_add, writes=True),
        "sub": Builtin(operator.sub),
        "mul": Builtin(_multiply),
        "truediv": Builtin(operator.truediv),
        "floordiv": Builtin(operator.floordiv),
        "mod": Builtin(_modulo, deep=True),
        "pow": Builtin(_power),
        "neg": Builtin(operator.neg),
        "pos": Builtin(operator.pos),
        "not": Builtin(operator.not_, Type.BOOL),
        "truth": Builtin(bool, Type.BOOL),
        "eq": Builtin(operator.eq, Type.BOOL, deep=True),
        "ne": Builtin(operator.ne, Type.BOOL, deep=True),
        "lt": Builtin(operator.lt, Type.BOOL, deep=True),
        "le": Builtin(operator.le, Type.BOOL, deep=True),
        "gt": Builtin(operator.gt, Type.BOOL, deep=True),
        "ge": Builtin(operator.ge, Type.BOOL, deep=True),
        "is": Builtin(operator.is_, Type.BOOL),
        "is_not": Builtin(operator.is_not, Type.BOOL),
        "in": Builtin(_in, Type.BOOL, deep=True),
        "not_in": Builtin(lambda item, container: not _in(item, container), Type.BOOL, deep=True),
        "concat": Builtin(_concat, Type.TEXT),
        "format": Builtin(_format, Type.TEXT, deep=True),
        "str": Builtin(lambda value="": str(value), Type.TEXT, deep=True),
        "repr": Builtin(repr, Type.TEXT, deep=True),
        "int": Builtin(int, Type.INT),
        "float": Builtin(float, Type.FLOAT),
        "bool": Builtin(bool, Type.BOOL),
        "list": Builtin(lambda value=(): list(_items(value)), Type.LIST),
        "tuple": Builtin(lambda value=(): tuple(_items(value)), Type.LIST),
        "dict": Builtin(lambda value=(), **more: dict(_items(value), **more), Type.DICT),
        "undefined": Builtin(lambda: UNDEFINED),
        "bound": Builtin(lambda value, name: _bound_variable(value, name)),
        "check": Builtin(lambda test, message="": _check(test, message), Type.NONE, writes=True),
        "fail": Builtin(lambda kind, message="": _fail(kind, message), Type.NONE, writes=True),
        "len": Builtin(len, Type.INT),
        "min": Builtin(lambda *args, **options: min(*(map(_items, args) if len(args) == 1 else args), **options), deep=True),
        "max": Builtin(lambda *args, **options: max(*(map(_items, args) if len(args) == 1 else args), **options), deep=True),
        "sum": Builtin(lambda values, start=0: _sum(_items(values), start)),
        "sorted": Builtin(lambda values, *, reverse=False: sorted(_items(values), reverse=reverse), Type.LIST, deep=True),
        "reversed": Builtin(lambda values: list(reversed(_items(values))), Type.LIST),
        "any": Builtin(lambda values: any(_items(values)), Type.BOOL),
        "all": Builtin(lambda values: all(_items(values)), Type.BOOL),
        "abs": Builtin(abs),
        "round": Builtin(_round),
        "divmod": Builtin(divmod),
        "ord": Builtin(ord, Type.INT),
        "chr": Builtin(chr, Type.TEXT),
        "range": Builtin(_range),
        "enumerate": Builtin(lambda values, start=0: list(enumerate(_items(values), start)), Type.LIST),
        "zip": Builtin(lambda *values, strict=False: list(zip(*map(_items, values), strict=strict)), Type.LIST),
        "strict_size": Builtin(_strict_size, Type.INT),
        "iterate": Builtin(_iterate),
        "unpack": Builtin(_unpack, Type.LIST),
        "slice": Builtin(lambda value, low, high, step: value[low:high:step]),
        "set_item": Builtin(_set_item, writes=True),
        "del_item": Builtin(operator.delitem, writes=True),
        "json.loads": Builtin(_loads),
        "json.dumps": Builtin(_dumps, Type.TEXT, deep=True),
        "re.fullmatch": Builtin(_regex("fullmatch")),
        "re.match": Builtin(_regex("match")),
        "re.search": Builtin(_regex("search")),
        "re.findall": Builtin(_find_all, Type.LIST),
        "re.sub": Builtin(_substitute, Type.TEXT),
        "math.sqrt": Builtin(math.sqrt, Type.FLOAT),
        "math.floor": Builtin(math.floor, Type.INT),
        "math.ceil": Builtin(math.ceil, Type.INT),
        "math.log": Builtin(math.log, Type.FLOAT),
        "math.exp": Builtin(math.exp, Type.FLOAT),
        **{f".{name}": _method(name, table) for name, table in _METHODS.items()},
    }
)
"""Name → builtin. A leading dot marks a method, dispatched on the type of its first argument."""


def _fail(kind: str, message: str) -> None:
    raise _RAISED.get(kind, RuntimeError)(message)


def _check(test: Any, message: str = "") -> None:
    if not test:
        raise AssertionError(message)


def _bound_variable(value: Any, name: str) -> Any:
    if value is UNDEFINED:
        raise UnboundLocalError(f"cannot access local variable '{name}' where it is not associated with a value")
    return value


def _sum(values: Any, start: Any) -> Any:
    total = start
    for value in values:
        total = _add(total, value)
    return total
