"""The ambient style: role expressions inside a function without a state parameter join that function's own conversation."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from ramet.lang.expressions import Expr, Key, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, Text, as_expr
from ramet.lang.runner import wait_for
from ramet.lang.state import State
from ramet.program.backend import Role

_conversation: ContextVar[State | None] = ContextVar("ramet_conversation", default=None)


def enter_conversation(state: State | None) -> None:
    """Make `state` the conversation of the code that runs from here on in this context (None: explicit style)."""
    _conversation.set(state)


def speak(role: Role, content: Expr) -> Turn | None:
    """Append a turn to the current conversation; None where there is none."""
    state = _conversation.get()
    if state is None:
        return None
    key = state.track.run.hidden_key()
    state += Expr((RoleBegin(role), ScopeBegin(key), *content.ops, ScopeEnd(key), RoleEnd(role)))
    return Turn(state, (key,))


class Turn:
    """One or more turns of an ambient conversation. `str(turn)` is what was said (it waits for it); `turn["name"]` a variable of the
    conversation; `history += turn` only gathers, since a turn is in the conversation from the moment it is spoken."""

    __slots__ = ("_keys", "_state")

    def __init__(self, state: State, keys: tuple[Key, ...]) -> None:
        self._state, self._keys = state, keys

    def __add__(self, other: object) -> Any:
        if isinstance(other, Turn):
            return Turn(self._state, (*self._keys, *other._keys))
        return str(self) + other if isinstance(other, str) else as_expr(self) + other

    def __radd__(self, other: object) -> Any:
        return other + str(self) if isinstance(other, str) else as_expr(other) + as_expr(self)

    def __iadd__(self, other: object) -> Turn:
        if isinstance(other, Turn):
            return Turn(self._state, (*self._keys, *other._keys))
        state = self._state
        state += other
        return self

    def __str__(self) -> str:
        track = self._state.track
        if not all(track.ready(key) for key in self._keys):
            wait_for(track.run.loop, self._wait)
        return self._known()

    async def words(self) -> str:
        """`str(turn)`, once it is said."""
        await self._wait()
        return self._known()

    def _known(self) -> str:
        return "\n".join(self._state.track.variables[key] for key in self._keys)

    async def _wait(self) -> None:
        for key in self._keys:
            await self._state.track.value(key)

    def __repr__(self) -> str:
        known = all(self._state.track.ready(key) for key in self._keys)
        return f"Turn({str(self) if known else '…'!r})"

    def __getitem__(self, name: str) -> Any:
        return self._state[name]

    def __contains__(self, text: object) -> bool:
        return str(text) in str(self)

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, str | Turn) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __len__(self) -> int:
        return len(str(self))

    def as_expr(self) -> Expr:
        """As content of another turn: the words."""
        return Expr((Text(str(self)),))

    def text(self) -> str:
        return str(self)
