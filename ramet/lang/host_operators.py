"""What a program does with an object of its host (a set, a date, a model's instance) is done by the host, on the object itself."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Set
from types import MappingProxyType
from typing import Any

from ramet.ir.builtins import BUILTINS


def host_operator(name: str, wanted: Set[str]) -> Callable[..., Any] | None:
    """The Python behind a host call that begins with "~": an operator or builtin, `~.name` a method, `~@name` an attribute. Of the latter
    only those that the program itself names (`wanted`), and methods that programs may call on plain values."""
    kind, bare = name[:2], name[2:]
    if kind == "~@" and name in wanted:
        return operator.attrgetter(bare)
    if kind == "~." and (name in wanted or name[1:] in BUILTINS):
        return lambda target, *args, **keywords: getattr(target, bare)(*args, **keywords)
    return _OPERATORS.get(name[1:]) if kind[:1] == "~" else None


def _in_place_add(left: Any, right: Any) -> Any:
    left += right
    return left


def _slice(target: Any, start: Any, stop: Any, step: Any) -> Any:
    return target[start:stop:step]


def _unpack(target: Any, count: int) -> list[Any]:
    items = list(target)
    if len(items) != count:
        raise ValueError(f"{'not enough' if len(items) < count else 'too many'} values to unpack (expected {count})")
    return items


_OPERATORS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        **{name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "truth")},
        **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "is_not")},
        **{each.__name__: each for each in (str, repr, int, float, bool, list, tuple, dict, set)},
        **{each.__name__: each for each in (len, min, max, sum, sorted, any, all, abs, round, divmod, format, enumerate, zip, reversed)},
        "json.dumps": json.dumps,
        "not": operator.not_,
        "is": operator.is_,
        "in": lambda item, container: item in container,
        "not_in": lambda item, container: item not in container,
        "index": operator.getitem,
        "set_item": operator.setitem,
        "del_item": operator.delitem,
        "iadd": _in_place_add,
        "iterate": list,
        "slice": _slice,
        "unpack": _unpack,
    }
)
