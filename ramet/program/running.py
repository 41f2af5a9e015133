"""What all functions of one run share, and what a run needs from outside: host calls, hints about KV, somebody who watches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from ramet.errors import Unsupported
from ramet.ir.builtins import measure
from ramet.ir.module import Function, Module
from ramet.ir.types import Location
from ramet.program.backend import PLAIN_FORMAT, Backend, ChatFormat, Conversation, Part
from ramet.program.budget import Spent
from ramet.program.conversation_state import ConversationState
from ramet.program.failure import ProgramFailed
from ramet.program.plain_data import travelled
from ramet.program.timeline import Timeline

T = TypeVar("T")
State = ConversationState


@dataclass(frozen=True, slots=True)
class HostCall:
    """A call of the client's own Python: `number` counts the calls of a run from 0."""

    number: int
    function: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    location: Location


class HostCalls(Protocol):
    async def call(self, call: HostCall) -> Any:
        """Returns the function's result, a plain value; raises what it raised. Cancelled when the run is."""
        ...


@runtime_checkable
class KvHints(Protocol):
    """A backend that can act on what the compiler knows of KV lifetimes. Hints never fail a run and change no output."""

    async def pin(self, conversation: Conversation, run_id: str) -> None:
        """The run pauses, and goes on from this conversation."""
        ...

    async def free(self, conversation: Conversation, run_id: str) -> None:
        """That was the last use of this conversation."""
        ...

    async def prefetch(self, conversation: Conversation, run_id: str) -> None:
        """Compute the conversation's KV now; it is used soon. Returns when it is there."""
        ...

    def ended(self, run_id: str) -> None:
        """The run is over, however it ended."""
        ...


class Watch(Protocol):
    """Follows the run's own conversation, in its order, while the run goes on."""

    def said(self, parts: Sequence[Part]) -> None:
        """These parts are in the conversation now; a generation under way is complete with them."""
        ...

    def saying(self, name: str | None, text: str) -> None:
        """More text of the generation under way."""
        ...

    def wrote(self, name: str, value: Any, meta: Mapping[str, Any] | None) -> None: ...


class NoHost:
    async def call(self, call: HostCall) -> Any:
        raise Unsupported(f"{call.function}() is a host call, and nobody here runs host calls")


async def get(value: Any) -> Any:
    """The value itself. Who waits has a waiter of its own: cancelling it neither cancels the shared work nor recurses along the chain."""
    if not isinstance(value, asyncio.Future):
        return value
    if not value.done():
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        value.add_done_callback(lambda _: _wake(waiter))
        await waiter
    return value.result()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _hand_out(task: asyncio.Future[tuple[Any, Any]], parts: Sequence[asyncio.Future[Any]]) -> None:
    """One result, or the failure, to each future."""
    for which, part in enumerate(parts):
        if task.cancelled():
            part.cancel()
        elif (error := task.exception()) is not None:
            part.set_exception(error)
            part.exception()  # known: the run fails with the task itself
        else:
            part.set_result(task.result()[which])


def is_ready(value: Any) -> bool:
    return not isinstance(value, asyncio.Future) or (value.done() and not value.cancelled() and value.exception() is None)


def known(value: Any) -> Any:
    return value.result() if isinstance(value, asyncio.Future) else value


class Running:
    """What all frames of one run share: backend, budget, and everything that is under way."""

    def __init__(
        self, module: Module, backend: Backend, host: HostCalls, spent: Spent, timeline: Timeline, run_id: str, kv: KvHints | None
    ) -> None:
        self.module, self.backend, self.host, self.spent, self.timeline = module, backend, host, spent, timeline
        self.run_id, self.kv = run_id, kv
        self.at = Location()
        self.functions = {function.name: function for function in module.functions}
        self.blocks = {function.name: {block.id: block for block in function.blocks} for function in module.functions}
        self.num_host_calls = 0
        self.incomplete: dict[int, list[Any]] = {}  # lists that hold futures, by id
        self._tasks: list[asyncio.Future[Any]] = []
        self._deferred: list[asyncio.Future[Any]] = []
        self.failure: BaseException | None = None
        self.call: Callable[[Function, Any, Sequence[Any], int], Awaitable[tuple[Any, Any]]]
        self.watch: Watch | None = None
        self._chat: ChatFormat | None = None
        self.seed: Any = None  # of the run, where it has one
        self._dice: random.Random | None = None

    async def function(self, function: Function, state: Any, args: Sequence[Any], depth: int) -> tuple[Any, Any]:
        self.spent.nested(depth)
        return await self.call(function, state, args, depth)

    def follow(self, before: State, after: State) -> State:
        """Tell who watches what became of the conversation."""
        if self.watch is not None and before.watched:
            if parts := after.conversation.parts[len(before.conversation.parts) :]:
                self.watch.said(parts)
            for name, value in after.variables.items():
                if name not in before.variables or before.variables[name] is not value:
                    self.watch.wrote(name, value, after.meta.get(name))
        return after

    def spawn(self, work: Coroutine[Any, Any, T], loc: Location) -> asyncio.Future[T]:
        task = asyncio.ensure_future(self.guarded(work, loc))
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: work.close())  # a task that is cancelled before it begins never enters its work
        self._tasks.append(task)
        if len(self._tasks) > 4096:  # a long run forgets what has ended well
            self._tasks = [each for each in self._tasks if not each.done() or each.cancelled() or each.exception() is not None]
        return task

    def split(self, work: Coroutine[Any, Any, tuple[Any, Any]], loc: Location) -> tuple[Any, Any]:
        """Two futures for the two results of one piece of work."""
        loop = asyncio.get_running_loop()
        parts: tuple[asyncio.Future[Any], asyncio.Future[Any]] = (loop.create_future(), loop.create_future())
        self.spawn(work, loc).add_done_callback(lambda task: _hand_out(task, parts))
        return parts

    def _ended(self, task: asyncio.Future[Any]) -> None:
        """The first failure ends the run at its next op; retrieving it here keeps the loop from logging it as lost."""
        if not task.cancelled() and task.exception() is not None and self.failure is None:
            self.failure = task.exception()

    def defer(self, work: Coroutine[Any, Any, T], loc: Location) -> asyncio.Future[T]:
        """For what Python would have finished by now: the host is not called before it has."""
        task = self.spawn(work, loc)
        self._deferred.append(task)
        return task

    def expect(self, value: Any) -> None:
        if isinstance(value, asyncio.Future):
            self._deferred.append(value)

    async def caught_up(self) -> None:
        """The host must see the world as Python would show it: errors before the call come before the call."""
        deferred, self._deferred = self._deferred, []
        for task in deferred:
            await get(task)

    async def on_host(self, function: str, args: Sequence[Any], keys: Sequence[str], loc: Location) -> Any:
        """A call that the client answers."""
        for value in args:
            measure(value)
        split = len(args) - len(keys)
        call = HostCall(self.num_host_calls, function, tuple(args[:split]), dict(zip(keys, args[split:], strict=True)), loc)
        self.num_host_calls += 1
        with self.timeline.span("host_call", loc, {"function": function}):
            result = await self.host.call(call)
        self.spent.made(result)
        return travelled(result, function)

    async def looked_into(self, function: str, args: Sequence[Any], keys: Sequence[str], loc: Location) -> Any:
        """A builtin on an object of the host, which does it itself."""
        return await self.on_host(f"~{function}", args, keys, loc)

    async def guarded(self, work: Awaitable[T], loc: Location) -> T:
        try:
            return await work
        except (ProgramFailed, asyncio.CancelledError):
            raise
        except Exception as error:
            raise ProgramFailed(self.module, loc, error) from error

    async def settle(self) -> None:
        """Wait for all that is under way; raise the first failure in program order."""
        while pending := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.done() and not task.cancelled() and task.exception() is not None for task in self._tasks):
                break
        for task in self._tasks:
            if task.done():
                task.result()

    async def pin(self, conversation: Conversation) -> None:
        if self.kv is not None:
            await self.kv.pin(conversation, self.run_id)

    async def prefetch_and_pin(self, conversation: Conversation) -> None:
        await self.prefetch(conversation)
        await self.pin(conversation)

    async def prefetch(self, conversation: Conversation) -> None:
        if self.kv is None:
            await self.backend.prefill(conversation)
        else:
            await self.kv.prefetch(conversation, self.run_id)

    async def end(self) -> None:
        """Cancel what is under way, and let the engine forget the run."""
        await self.cancel()
        if self.kv is not None:
            self.kv.ended(self.run_id)

    async def cancel(self) -> None:
        pending = [task for task in self._tasks if not task.done()]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)

    async def complete(self, value: Any) -> None:
        """Put the values in for the futures in the lists that `value` is made of."""
        stack = [value]
        while stack and self.incomplete:
            held = stack.pop()
            if isinstance(held, list) and self.incomplete.pop(id(held), None) is not None:
                for position, item in enumerate(held):
                    if isinstance(item, asyncio.Future):
                        held[position] = await get(item)
            stack.extend(held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else ())

    async def complete_all(self, values: Sequence[Any]) -> None:
        """At the end of a run: what leaves it is whole and of bounded size."""
        for value in values:
            await self.complete(value)
            measure(value)

    async def plain(self, value: Any) -> Any:
        value = await get(value)
        if self.incomplete:
            await self.complete(value)
        return value

    async def chat(self) -> ChatFormat:
        if self._chat is None:
            try:
                self._chat = await self.backend.chat_format()
            except Unsupported:
                self._chat = PLAIN_FORMAT
        return self._chat

    def draw(self, seed: Any) -> random.Random:
        """The dice of selects: one stream per run unless a select has its own seed."""
        if seed is not None:
            return random.Random(seed)
        if self._dice is None:
            self._dice = random.Random(self.seed)
        return self._dice
