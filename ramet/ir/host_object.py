"""An object of the host that a program holds without seeing into it."""

from __future__ import annotations

from typing import Any, NoReturn


class HostObject:
    """Stands for what a host function returned and only host functions understand: a connection, a data frame, a set. A program may
    keep it, pass it to host functions and return it; whatever looks into it is a TypeError. `number` is the host's name of it; one that
    is yet to be made by the host's class `kind`, of a generated text, has that as its `content`."""

    __slots__ = ("content", "kind", "number")

    def __init__(self, number: int, kind: str, content: str | None = None) -> None:
        self.number, self.kind, self.content = number, kind, content

    def _look(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"a {self.kind} of the host: only host functions can look into it; return text, numbers, lists or dicts from the host "
            'function, or run with mode="interpreted"'
        )

    __str__ = __repr__ = __format__ = __bool__ = __eq__ = __hash__ = __lt__ = __len__ = __iter__ = __contains__ = _look
