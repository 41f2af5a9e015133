"""`s`: a conversation in the making, as user code sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

from ramet.errors import InvalidRequest
from ramet.lang.argument_names import knows_its_arguments
from ramet.lang.expressions import Expr, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, as_expr
from ramet.lang.group import ForkGroup
from ramet.lang.runner import wait_for
from ramet.lang.source_location import user_location
from ramet.lang.steps import Assign, Split
from ramet.lang.streaming import DONE, next_or_done
from ramet.lang.track import Track
from ramet.program.backend import Role


class State:
    """Append with `+=` (never waits), read with `s["name"]` (waits for that variable). Reading works in `def` and `async def` bodies
    alike; in tasks that an async body starts itself, use `await s.aget_var(name)` and `await s`."""

    __slots__ = ("_track",)

    def __init__(self, track: Track) -> None:
        self._track = track

    def __iadd__(self, other: object) -> State:
        location = user_location()
        for op in as_expr(other).ops:
            self._track.submit(op, location)
        return self

    def __add__(self, other: object) -> NoReturn:
        raise TypeError("s + … makes no new conversation; append with s += …, or branch with s.fork(n)")

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a conversation has no {name!r}; append with s += …, read a variable with s[name]", name=name, obj=self)

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: object) -> bool:
        """Whether the variable exists once everything appended so far is done."""
        self.sync()
        return isinstance(name, str) and name in self._track.variables

    def __await__(self) -> Generator[Any, None, State]:
        """`await s`: wait until everything appended so far is done."""
        yield from self._settled().__await__()
        return self

    def get_var(self, name: str) -> Any:
        if self._track.ready(name):
            return self._track.variables[name]
        return wait_for(self._track.run.loop, lambda: self._track.value(name))

    async def aget_var(self, name: str) -> Any:
        return await self._track.value(name)

    def set_var(self, name: str, value: Any) -> None:
        """In program order: a generation of the same name that is still under way is overwritten, not the other way round."""
        self._track.submit(Assign(name, value), user_location())

    def sync(self) -> None:
        """Wait until everything appended so far is done; raise what failed."""
        if not self._track.is_idle or self._track.error is not None:
            wait_for(self._track.run.loop, self._settled)

    async def _settled(self) -> None:
        await self._track.idle()
        if self._track.error is not None:
            raise self._track.deliver()

    def error(self) -> BaseException | None:
        """The failure of this conversation, if any, once everything appended so far is done. Asking for it counts as handling it."""
        if not self._track.is_idle:
            wait_for(self._track.run.loop, self._track.idle)
        return self._track.deliver() if self._track.error is not None else None

    def text(self) -> str:
        """The transcript, in the model's own chat format."""
        self.sync()
        return self._track.text()

    def messages(self) -> list[dict[str, str]]:
        """The turns as OpenAI messages."""
        self.sync()
        return self._track.conversation.messages()

    def get_meta_info(self, name: str) -> dict[str, Any]:
        """What the server said about the generation: finish_reason, token counts, cached_tokens, logprobs; for a select its scores."""
        self.get_var(name)
        if name not in self._track.meta:
            raise KeyError(f"variable {name!r} was not generated, so it has no meta info")
        return self._track.meta[name]

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """New text as it is generated: of one variable, or of everything appended so far."""
        stream = self.text_async_iter(var_name)
        while (piece := wait_for(self._track.run.loop, lambda: next_or_done(stream))) is not DONE:
            yield piece

    def text_async_iter(self, var_name: str | None = None) -> AsyncIterator[str]:
        self._track.run.live = True
        return self._track.stream(var_name)

    def system(self, expr: object = None) -> RoleTurn:
        """`s.system("…")`, or `with s.system(): s += …`; so too `user` and `assistant`."""
        return self._turn("system", expr)

    def user(self, expr: object = None) -> RoleTurn:
        return self._turn("user", expr)

    def assistant(self, expr: object = None) -> RoleTurn:
        return self._turn("assistant", expr)

    def _turn(self, role: Role, expr: object) -> RoleTurn:
        if expr is not None:
            self.__iadd__(Expr((RoleBegin(role), *as_expr(expr).ops, RoleEnd(role))))
        return RoleTurn(self, role, used=expr is not None)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[State]:
        """Keep the text appended inside as variable `name`."""
        self.__iadd__(Expr((ScopeBegin(name),)))
        yield self
        self.__iadd__(Expr((ScopeEnd(name),)))

    @knows_its_arguments
    def fork(self, size: int = 1, position_ids_offset: list[int] | None = None) -> ForkGroup:
        """`size` continuations of this conversation, which run concurrently. Never waits. (`position_ids_offset` is SGLang's and, as
        there, has no effect.)"""
        if not hasattr(size, "__index__") or size < 1:
            raise InvalidRequest(f"fork() needs a whole number of 1 or more, got {size!r:.40}", param="size")
        children = tuple(self._track.run.open_track(started=False) for _ in range(size))
        for child in children:
            child.planned_role = self._track.planned_role
        self._track.submit(Split(children), user_location())
        return ForkGroup([State(child) for child in children], self)

    @contextmanager
    def copy(self) -> Iterator[State]:
        """A fork of one, for a `with` block."""
        yield self.fork(1)[0]

    def cancel(self) -> None:
        """Abort what this conversation still generates; reading it afterwards raises `Cancelled`."""
        wait_for(self._track.run.loop, self._track.cancel)

    @property
    def track(self) -> Track:
        """The execution behind this state: for the language's own modules and strategies."""
        return self._track


class RoleTurn:
    """What `s.user(...)` returns: with no content given, a context manager for the turn."""

    __slots__ = ("_role", "_state", "_used")

    def __init__(self, state: State, role: Role, *, used: bool) -> None:
        self._state, self._role, self._used = state, role, used

    def __enter__(self) -> State:
        if self._used:
            raise InvalidRequest(f"s.{self._role}(…) with content is a whole turn; leave the content out to open a `with` block")
        self._state += Expr((RoleBegin(self._role),))
        return self._state

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._state += Expr((RoleEnd(self._role),))
