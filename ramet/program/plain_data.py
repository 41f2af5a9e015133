"""Plain values at the borders of a run: literals, items, and what a host gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ramet.errors import InvalidRequest
from ramet.ir.builtins import measure
from ramet.ir.host_object import HostObject
from ramet.ir.module import Function


def bound(function: Function, arguments: Mapping[str, Any]) -> list[Any]:
    """A call's arguments in the order of the parameters."""
    if missing := [name for name in function.params if name not in arguments]:
        raise InvalidRequest(f"{function.name}: argument {missing[0]!r} is missing", param=missing[0])
    if extra := [name for name in arguments if name not in function.params]:
        raise InvalidRequest(f"{function.name}: there is no parameter {extra[0]!r}; it has {', '.join(function.params)}", param=extra[0])
    for value in arguments.values():
        measure(value)
    return [arguments[name] for name in function.params]


def fresh(value: Any) -> Any:
    """A literal list or dict is a new object at each evaluation."""
    if isinstance(value, list):
        return [fresh(each) for each in value]
    if isinstance(value, tuple):
        return tuple(fresh(each) for each in value)
    return {key: fresh(each) for key, each in value.items()} if isinstance(value, dict) else value


def item(target: Any, key: Any) -> Any:
    if not isinstance(target, str | list | tuple | dict | range):
        raise TypeError(f"'{type(target).__name__}' object is not subscriptable")
    return target[key]


def travelled(value: Any, function: str) -> Any:
    """What a host call gives back must be plain, as if it had come over the wire."""
    measure(value)
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, list | tuple):
            stack.extend(node)
        elif isinstance(node, dict):
            stack.extend([*node.keys(), *node.values()])
        elif node is not None and not isinstance(node, str | int | float | bool | HostObject):
            raise InvalidRequest(f"{function}() returned a {type(node).__name__}; return text, numbers, lists and dicts")
    return value


def looks_into(function: str, args: Sequence[Any]) -> bool:
    """Is an object of the host among the arguments of a builtin that needs more of it than that it is there?"""
    num_objects = sum(isinstance(value, HostObject) for value in args)
    return num_objects > (1 if function in ("is", "is_not") else 0) and function not in ("bound", "check", "strict_size")
