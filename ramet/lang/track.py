"""One conversation of a running program: steps in program order, executed as soon as the one before is done.

Appending never waits. A step that needs no waiting is applied at once when nothing is under way; otherwise it queues, and one task
per track works the queue off. Readers wait on a pulse that rings at every change. A failure ends the track: what was queued is
dropped, and whoever reads or appends afterwards gets that very exception, with the program's line as a note.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from ramet.errors import Cancelled, InvalidRequest, Unsupported
from ramet.lang.expressions import Gen, Image, Key, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, Select, Text
from ramet.lang.generation import generate
from ramet.lang.runner import running_loop
from ramet.lang.source_location import Location, annotate
from ramet.lang.steps import Assign, Instant, Join, Split, Step, keys_written
from ramet.program.backend import Conversation, Part
from ramet.program.reasoning import REASONING_SUFFIX
from ramet.program.selection import decide

if TYPE_CHECKING:
    from ramet.lang.run import Run


class Pulse:
    """Wakes all who wait, at every ring."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def ring(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class Track:
    """Lives on its run's event loop. `variables`, `meta` and `streams` (raw text so far) are keyed by variable."""

    def __init__(self, run: Run, *, started: bool = True) -> None:
        self.run = run
        self.conversation = Conversation()
        self.partial = ""  # of the generation under way
        self.variables: dict[Key, Any] = {}
        self.meta: dict[Key, dict[str, Any]] = {}
        self.streams: dict[Key, str] = {}
        self.written: dict[Key, None] = {}  # since this track began, in order
        self.error: BaseException | None = None
        self.delivered = False  # the program has seen the error
        self.changed = Pulse()
        self.planned_role: str | None = None  # the turn that is open once the queue is worked off
        self._forked_at = 0
        self._scopes: dict[Key, int] = {}
        self._queue: deque[tuple[Step, Location]] = deque()
        self._pending: Counter[Key] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._started = started
        self._rendered: tuple[Conversation, str] = (self.conversation, "")

    # appending

    def submit(self, step: Step, location: Location) -> None:
        """Append one step. Raises at once what is wrong with the order of turns, and the failure of an earlier step."""
        if self.error is not None:
            raise self.deliver()
        if self.run.ended:
            raise InvalidRequest("this program has ended; append inside its function (a result can be read, not extended)")
        if running_loop() is not self.run.loop:
            raise InvalidRequest("a conversation belongs to its program: append in its body, not from another thread or a host call")
        self._plan(step)
        if not self._queue and self._started and isinstance(step, Instant):
            self._apply(step)
            self.changed.ring()
            return
        self._queue.append((step, location))
        self._pending.update(keys_written(step))
        self._pump()

    def start(self, parent: Track) -> None:
        """A fork begins with what its parent holds now."""
        self.conversation, self._forked_at = parent.conversation, len(parent.conversation.parts)
        self.variables = {**parent.variables, **self.variables}
        self.meta, self.streams = dict(parent.meta), dict(parent.streams)
        self._scopes = dict(parent._scopes)
        self._started = True
        self._pump()
        self.changed.ring()  # who reads a variable of a fork before appending to it waits for this

    def _plan(self, step: Step) -> None:
        match step:
            case RoleBegin(role=role):
                if self.planned_role is not None:
                    raise InvalidRequest(f"the {role}'s turn cannot begin inside the {self.planned_role}'s, which is open; end that first")
                self.planned_role = role
            case RoleEnd(role=role):
                if self.planned_role != role:
                    raise InvalidRequest(f"the {role}'s turn ends here, but the open turn is {self.planned_role or 'none'}")
                self.planned_role = None

    def _pump(self) -> None:
        if self._started and self._task is None and self._queue:
            self._task = self.run.loop.create_task(self._drain())

    # executing

    async def _drain(self) -> None:
        location = self._queue[0][1]
        try:
            while self._queue:
                step, location = self._queue[0]
                await self._execute(step)
                self._queue.popleft()
                self._pending.subtract(keys_written(step))
                self.changed.ring()
        except asyncio.CancelledError:
            self.fail(Cancelled("the run was cancelled before this was done"), location)
            raise
        except Exception as error:
            self.fail(error, location)
        finally:
            self._task = None
            self.changed.ring()

    def fail(self, error: BaseException, location: Location) -> None:
        """End this track and the forks that would have begun later."""
        if self.error is not None:
            return
        annotate(error, location)
        self.error, self.partial = error, ""
        dropped, self._queue = self._queue, deque()
        for step, where in dropped:
            for child in step.children if isinstance(step, Split) else ():
                child.fail(error, where)
        self.changed.ring()

    async def _execute(self, step: Step) -> None:
        match step:
            case Gen():
                await self._generate(step)
            case Select():
                await self._select(step)
            case Join():
                await self._join(step)
            case Image(source=source):
                raise Unsupported(
                    f"image ({source:.80}): {type(self.run.backend).__name__} is a text backend and takes no images", param="image"
                )
            case _:
                self._apply(step)

    def _apply(self, step: Step) -> None:
        match step:
            case Text(value=value):
                self._append(Part("text", value))
            case RoleBegin(role=role):
                self._append(Part("begin", role))
            case RoleEnd(role=role):
                self._append(Part("end", role))
            case ScopeBegin(key=key):
                self._scopes[key] = len(self.text())
            case ScopeEnd(key=key):
                self._write(key, self.text()[self._scopes.pop(key) :])
            case Assign(key=key, value=value):
                self._write(key, value)
            case Split(children=children):
                for child in children:
                    child.start(self)

    async def _generate(self, op: Gen) -> None:
        def show(text: str) -> None:
            self.partial = text
            if op.name is not None:
                self.streams[op.name] = text
            self.changed.ring()

        result = await generate(self.run, self.conversation, op, show)
        self.partial = ""
        self._append(Part("text", result.text))
        if op.name is None:
            return
        self.meta[op.name] = result.meta_info
        self._write(op.name, result.value, result.text)
        if op.reasoning is not None:
            self._write(op.name + REASONING_SUFFIX, result.thoughts)

    async def _select(self, op: Select) -> None:
        unconditional = op.method.requires_unconditional_logprobs
        scores = await self.run.backend.score(self.conversation, op.choices, unconditional=unconditional, run_id=self.run.run_id)
        found = decide(op.choices, scores, op.method, op.temperature, self.run.draw(op.seed))
        self._append(Part("text", found.decision))
        if op.name is not None:
            self.meta[op.name] = found.meta_info
            self._write(op.name, found.decision)

    async def _join(self, step: Join) -> None:
        for child in step.children:
            await child.idle()
            if child.error is not None:
                raise child.deliver()
        if step.mode == "concate_and_append":
            for child in step.children:
                self.conversation = Conversation((*self.conversation.parts, *child.conversation.parts[child._forked_at :]))
            return
        for key in dict.fromkeys(key for child in step.children for key in child.written if isinstance(key, str)):
            self._write(key, [child.variables[key] if key in child.written else None for child in step.children])

    def _append(self, part: Part) -> None:
        self.conversation = self.conversation.append(part)

    def said(self, parts: Sequence[Part]) -> None:
        """Parts that were appended elsewhere; with them the generation under way, if any, is complete."""
        self.conversation, self.partial = Conversation((*self.conversation.parts, *parts)), ""
        self.changed.ring()

    def saying(self, name: str | None, text: str) -> None:
        """More text of the generation under way elsewhere."""
        if not self.partial and name is not None:
            self.streams[name] = ""
        self.partial += text
        if name is not None:
            self.streams[name] += text
        self.changed.ring()

    def record(self, name: str, value: Any, meta: Any = None) -> None:
        """A variable as a compiled program, executed elsewhere, has set it."""
        if meta is not None:
            self.meta[name] = dict(meta)
        self._write(name, value, self.streams.get(name) if meta is not None else None)
        self.changed.ring()

    def _write(self, key: Key, value: Any, text: str | None = None) -> None:
        self.variables[key] = value
        self.streams[key] = text if text is not None else str(value)
        self.written[key] = None

    # reading

    @property
    def is_idle(self) -> bool:
        return self.error is not None or (self._started and not self._queue)

    @property
    def is_working(self) -> bool:
        return self._task is not None

    def text(self) -> str:
        """The transcript so far, in the model's own format."""
        if self._rendered[0] is not self.conversation:
            self._rendered = (self.conversation, self.conversation.render(self.run.chat))
        return self._rendered[1] + self.partial

    def ready(self, key: Key) -> bool:
        return key in self.variables and not self._pending[key]

    def deliver(self) -> BaseException:
        """The failure, which the program now knows of."""
        assert self.error is not None
        self.delivered = True
        return self.error

    async def idle(self) -> None:
        while not self.is_idle:
            await self.changed.wait()

    async def value(self, key: Key, ended: Callable[[], bool] | None = None) -> Any:
        """Wait for a variable. Unknown names are a KeyError as soon as nothing that is under way can still write them."""
        ended = ended or (lambda: self.is_idle)
        while not self.ready(key):
            if self.error is not None:
                raise self.deliver()
            if ended():
                raise KeyError(f"{key!r} is no variable of this conversation; it has: {', '.join(self.names()) or 'none'}")
            await self.changed.wait()
        return self.variables[key]

    async def stream(self, key: Key | None, ended: Callable[[], bool] | None = None) -> AsyncIterator[str]:
        """New text as it comes, of one variable or of the whole transcript; ends when the variable is complete, or at `ended()`."""
        ended = ended or (lambda: self.is_idle)
        if key is None:
            await self.run.know_chat()
        seen = 0
        while True:
            text = self.text() if key is None else self.streams.get(key, "")
            complete = ended() if key is None else self.ready(key)
            if len(text) > seen:
                yield text[seen:]
                seen = len(text)
                continue
            if self.error is not None:
                raise self.deliver()
            if complete:
                return
            if key is not None and ended():
                await self.value(key, ended)
            await self.changed.wait()

    def names(self) -> list[str]:
        return [key for key in self.variables if isinstance(key, str)]

    async def cancel(self) -> None:
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
