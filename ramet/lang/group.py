"""The conversations that a fork opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ramet.errors import InvalidRequest
from ramet.lang.expressions import Expr
from ramet.lang.source_location import user_location
from ramet.lang.steps import Join, JoinMode

if TYPE_CHECKING:
    from ramet.lang.state import State


class ForkGroup:
    """`forks[i]`, iteration, `forks += …` on all of them, `forks["name"]` for the list of their values, `forks.join()`."""

    __slots__ = ("_parent", "_states")

    def __init__(self, states: Sequence[State], parent: State) -> None:
        self._states, self._parent = list(states), parent

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[State]:
        return iter(self._states)

    def __getitem__(self, key: int | str) -> Any:
        return [state[key] for state in self._states] if isinstance(key, str) else self._states[key]

    def __setitem__(self, index: int, state: State) -> None:
        """`forks[i] += …` assigns the same state back; anything else would lose a conversation."""
        if state is not self._states[index]:
            raise InvalidRequest("a fork's conversation cannot be replaced; append to it with forks[i] += …")

    def __iadd__(self, other: object) -> ForkGroup:
        """One expression for all, a list with one for each, or `lambda i: expression`."""
        for state, expr in zip(self._states, self._spread(other), strict=True):
            state += expr
        return self

    def join(self, mode: JoinMode = "gather_variable") -> None:
        """Back into the parent, in program order and without waiting: `gather_variable` makes every variable that a fork wrote a list
        in the parent (None where one fork did not write it); `concate_and_append` appends the forks' new text, one after the other."""
        if mode not in ("gather_variable", "concate_and_append"):
            raise InvalidRequest(f"join() knows gather_variable and concate_and_append, not {mode!r}", param="mode")
        self._parent.track.submit(Join(tuple(state.track for state in self._states), mode), user_location())

    def _spread(self, other: object) -> Sequence[object]:
        if isinstance(other, list | tuple):
            if len(other) != len(self._states):
                raise InvalidRequest(f"{len(other)} expressions for {len(self._states)} forks; give one for each")
            return other
        if isinstance(other, Callable) and not isinstance(other, Expr):  # type: ignore[arg-type]
            return [other(index) for index in range(len(self._states))]  # type: ignore[operator]
        return [other] * len(self._states)
