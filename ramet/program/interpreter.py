"""Runs a verified module on a backend: the same code inside the server, inside an engine and on the client.

The driver walks the blocks in program order, one method per op. Conversations are chains of futures: appending and generating never
wait, so forks run concurrently as soon as they exist. Reading a variable waits, as in Python, unless a pass marked it `deferred`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.errors import InvalidRequest
from ramet.ir import ops
from ramet.ir.builtins import evaluate
from ramet.ir.host_object import HostObject
from ramet.ir.module import Block, Function, Module
from ramet.ir.types import Location, Type, Value
from ramet.program.answer_shape import LOGPROB_NAMES, SERVER_NAMES
from ramet.program.backend import Backend, Conversation
from ramet.program.budget import Budget, BudgetExceeded, Spent
from ramet.program.conversation_state import ConversationState
from ramet.program.failure import ProgramFailed
from ramet.program.generation_step import generate, select
from ramet.program.plain_data import bound, fresh, item, looks_into
from ramet.program.running import HostCall, HostCalls, KvHints, NoHost, Running, Watch, get, is_ready, known
from ramet.program.timeline import Event, Timeline

__all__ = ["HostCall", "HostCalls", "KvHints", "ProgramResult", "Watch", "run_program"]

State = ConversationState
Work = Callable[[Any], Coroutine[Any, Any, tuple[Any, Any]]]
"""What a generation does with the conversation before it: the conversation after it, and the variable's value."""
QUIET = (ops.Const, ops.Append, ops.Call, ops.Index, ops.MakeList, ops.MakeDict, ops.GetVar, ops.SetVar, ops.Inspect)
"""Ops that begin nothing."""


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """`state` is the conversation at the end."""

    value: Any
    state: ConversationState
    spent: Spent
    timeline: Timeline


async def run_program(
    module: Module,
    arguments: Mapping[str, Any],
    backend: Backend,
    *,
    host: HostCalls | None = None,
    sampling: Mapping[str, Any] | None = None,
    logprobs: Mapping[str, Any] | None = None,
    budget: Budget | Spent | None = None,
    emit: Callable[[Event], None] | None = None,
    run_id: str = "",
    kv: KvHints | None = None,
    timeline: Timeline | None = None,
    watch: Watch | None = None,
) -> ProgramResult:
    """Run `module`, which must be verified. `sampling` and `logprobs` are the run's defaults, with the server's names. Give `budget` as
    `Spent` to read the counts while the run goes on; `watch` follows the run's own conversation. `kv` hears of KV
    lifetimes: by default the backend, if it can.

    Raises ProgramFailed with the user's line; cancelling the caller aborts every generation.
    """
    run = Running(
        module,
        backend,
        host or NoHost(),
        budget if isinstance(budget, Spent) else Spent(budget or Budget()),
        timeline or Timeline(emit),
        run_id,
        kv or (backend if isinstance(backend, KvHints) else None),
    )
    run.watch = watch
    run.call = lambda function, state, args, depth: _Frame(run, function, depth).run(state, args)
    values = bound(module.main, arguments)
    run.seed = (sampling or {}).get("seed")
    start = State(sampling=dict(sampling or {}), logprobs=dict(logprobs or {}), watched=watch is not None)
    try:
        async with asyncio.timeout(run.spent.remaining_seconds()):
            final, value = await run.function(module.main, start, values, 0)
            state: State = await get(final)
            await run.settle()
            value = await run.plain(value)
            await run.guarded(run.complete_all([value, *state.variables.values()]), run.at)
            return ProgramResult(value, state, run.spent, run.timeline)
    except TimeoutError:
        raise ProgramFailed(module, run.at, BudgetExceeded(f"the run took more than {run.spent.budget.seconds:g} seconds")) from None
    finally:
        await run.end()


@dataclass(slots=True)
class _Frame:
    """One call of a function: its values, and one method per op."""

    run_: Running
    function: Function
    depth: int
    values: dict[int, Any] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)
    last: ops.Op | None = None  # a generation after which nothing is begun any more: it needs no task of its own

    async def run(self, state: Any, args: Sequence[Any]) -> tuple[Any, Any]:
        block, incoming = self.function.entry, [state, *args]
        while True:
            self.last = None if self.depth else _last_generation(block)
            for argument, value in zip(block.args, incoming, strict=True):
                self.values[argument.id] = value
            for op in block.ops[:-1]:
                await self._execute(op)
            end = block.ops[-1]
            if isinstance(end, ops.Return):
                self.run_.at = end.loc
                return self._held(end.state), self._held(end.value)
            target = await self.run_.guarded(self._jump(end), end.loc)
            incoming = [self._held(value) for value in target.args]
            block = self.run_.blocks[self.function.name][target.block]

    async def _execute(self, op: ops.Op) -> None:
        run = self.run_
        run.at = op.loc
        if run.failure is not None:
            raise run.failure
        try:
            run.spent.step()
            if not run.spent.steps & 255:
                await asyncio.sleep(0)
            waits = _METHODS[type(op)](self, op)
            if waits is not None:
                await waits
        except (ProgramFailed, asyncio.CancelledError):
            raise
        except Exception as error:
            raise ProgramFailed(run.module, op.loc, error) from error

    async def _jump(self, op: ops.Op) -> ops.Target:
        self.run_.spent.step()
        if isinstance(op, ops.Br):
            if not self.run_.spent.steps & 63:
                await asyncio.sleep(0)
            return op.to
        assert isinstance(op, ops.CondBr)
        test = await self._plain(op.test)
        taken = bool(await self.run_.looked_into("truth", [test], (), op.loc) if isinstance(test, HostObject) else test)
        self.run_.timeline.branch(op.loc, taken)
        return op.then if taken else op.otherwise

    # values

    def _held(self, value: Value) -> Any:
        return self.values[value.id]

    def _set(self, value: Value, result: Any) -> None:
        self.values[value.id] = result

    async def _set_to(self, value: Value, work: Awaitable[Any]) -> None:
        self._set(value, await work)

    async def _plain(self, value: Value) -> Any:
        return await self.run_.plain(self.values[value.id])

    async def _named(self, keys: Sequence[str], args: Sequence[Value]) -> dict[str, Any]:
        return {key: await self._plain(value) for key, value in zip(keys, args, strict=True)}

    def _chain(self, inputs: Sequence[Any], compute: Callable[..., Any], loc: Location) -> Any:
        """`compute(*inputs)`, now if every input is there, else as a future."""
        if all(map(is_ready, inputs)):
            return compute(*map(known, inputs))

        async def later() -> Any:
            return compute(*[await get(each) for each in inputs])

        return self.run_.spawn(later(), loc)

    # constants and conversations

    def const(self, op: ops.Const) -> None:
        self._set(op.out, fresh(op.value))

    async def open(self, op: ops.Open) -> None:
        given = {key: value for key, value in (await self._named(op.keys, op.args)).items() if value is not None}
        sampling = {SERVER_NAMES.get(key, key): value for key, value in given.items() if key not in LOGPROB_NAMES}
        logprobs = {key: value for key, value in given.items() if key in LOGPROB_NAMES}
        self._set(op.out, State(sampling=sampling, logprobs=logprobs))
        self.opened.add(op.out.id)

    def append(self, op: ops.Append) -> None:
        texts = [self._held(text) for text in op.texts]

        def add(state: State, *said: Any) -> State:
            for text in said:
                self.run_.spent.made(text)
            return self.run_.follow(state, state.with_pieces(op.shape, said))

        self._set(op.out, self._on_each(op.state, lambda state: self._chain([state, *texts], add, op.loc)))

    def _on_each(self, state: Value, change: Callable[[Any], Any]) -> Any:
        held = self._held(state)
        return tuple(change(member) for member in held) if state.type is Type.GROUP else change(held)

    def gen(self, op: ops.Gen) -> Awaitable[None] | None:
        name = None if op.name is None else self._held(op.name)
        args = [self._held(value) for value in op.args]

        async def work(state: Any) -> tuple[Any, Any]:
            before, called = await get(state), await self.run_.plain(name)
            arguments = {key: await self.run_.plain(value) for key, value in zip(op.keys, args, strict=True)}
            return await self._generation(op.loc, called, before, arguments, op.hints)

        return self._generate(op, work)

    async def _generation(
        self, loc: Location, name: Any, state: State, arguments: Mapping[str, Any], hints: Mapping[str, int]
    ) -> tuple[Any, Any]:
        run = self.run_
        with run.timeline.span("gen", loc, {"name": name}) as span:

            def show(text: str) -> None:
                run.timeline.text(loc, name, text)
                if run.watch is not None and state.watched:
                    run.watch.saying(name, text)

            seen = show if run.timeline.emit is not None or state.watched else None
            after, value, usage = await generate(run.backend, state, name, arguments, run.run_id, hints, seen)
            span.update(run.timeline.counts(state.conversation, usage))
        run.spent.generated(usage["completion_tokens"])
        return run.follow(state, after), value

    def select(self, op: ops.Select) -> Awaitable[None] | None:
        name = None if op.name is None else self._held(op.name)
        args, options = [self._held(value) for value in op.args], self._held(op.choices)

        async def work(state: Any) -> tuple[Any, Any]:
            run = self.run_
            before, called, choices = await get(state), await run.plain(name), await run.plain(options)
            arguments = {key: await run.plain(value) for key, value in zip(op.keys, args, strict=True)}
            with run.timeline.span("select", op.loc, {"name": called}):
                after, value, _ = await select(run.backend, before, called, choices, op.method, arguments, run.draw, run.run_id)
            run.timeline.text(op.loc, called, value)
            return run.follow(before, after), value

        return self._generate(op, work)

    def _generate(self, op: ops.Gen | ops.Select, work: Work) -> Awaitable[None] | None:
        held = self._held(op.state)
        for _ in range(len(held) if op.state.type is Type.GROUP else 1):
            self.run_.spent.generation()
        if op is self.last:
            return self._generate_here(op, work)
        if op.state.type is Type.STATE:
            after, made = self.run_.split(work(held), op.loc)
        else:
            pairs = [self.run_.split(work(member), op.loc) for member in held]
            after = tuple(pair[0] for pair in pairs)

            async def every() -> list[Any]:
                return [await get(pair[1]) for pair in pairs]

            made = self.run_.spawn(every(), op.loc)
        self._set(op.out, after)
        self._set(op.value, made)
        return None

    async def _generate_here(self, op: ops.Gen | ops.Select, work: Work) -> None:
        after, made = await work(self._held(op.state))
        self._set(op.out, after)
        self._set(op.value, made)

    # reading and writing variables

    def get_var(self, op: ops.GetVar) -> Awaitable[None] | None:
        result = self._chain([self._held(op.state), self._held(op.name)], State.variable, op.loc)
        return self._finish(op.out, result, deferred=op.deferred)

    def _finish(self, out: Value, result: Any, *, deferred: bool) -> Awaitable[None] | None:
        self._set(out, result)
        if deferred:
            self.run_.expect(result)
        return None if deferred or not isinstance(result, asyncio.Future) else self._set_to(out, get(result))

    def set_var(self, op: ops.SetVar) -> None:
        def write(state: State, name: Any, value: Any) -> State:
            if not isinstance(name, str):
                raise InvalidRequest(f"a variable's name is text, not {name!r:.60}")
            return self.run_.follow(state, state.with_variable(name, value))

        self._set(op.out, self._chain([self._held(op.state), self._held(op.name), self._held(op.value)], write, op.loc))

    def inspect(self, op: ops.Inspect) -> Awaitable[None] | None:
        if op.what == "size":
            self._set(op.out, len(self._held(op.state)))
            return None
        state, arg = self._held(op.state), None if op.arg is None else self._held(op.arg)
        if op.what in ("mark", "since"):  # not a read that Python waits for
            self._set(op.out, self.run_.spawn(self._look(op, state, arg), op.loc))
            return None
        return self._set_to(op.out, self._look(op, state, arg))

    async def _look(self, op: ops.Inspect, held: Any, argument: Any) -> Any:
        state: State = await get(held)
        arg = await get(argument)
        if op.what == "messages":
            return state.conversation.messages()
        if op.what == "has":
            return isinstance(arg, str) and arg in state.variables
        if op.what == "meta":
            state.variable(arg)
            if arg not in state.meta:
                raise KeyError(f"variable {arg!r} was not generated, so it has no meta info")
            return dict(state.meta[arg])
        text = state.conversation.render(await self.run_.chat())
        self.run_.spent.made(text)
        return len(text) if op.what == "mark" else text[arg:] if op.what == "since" else text

    # forks

    async def fork(self, op: ops.Fork) -> None:
        count = await self._plain(op.count)
        if type(count) is not int or count < 1:
            raise InvalidRequest(f"fork() needs a size of 1 or more, got {count!r:.40}", param="size")
        self.run_.spent.forked(count)
        texts = [self._held(text) for text in op.texts]
        state = self._held(op.state)
        member = self._chain([state, *texts], lambda s, *said: s.branch().with_pieces(op.shape, said), op.loc)
        if op.prefetch and count > 1:
            member = self.run_.spawn(self._prefilled(member, op.loc), op.loc)
        self._set(op.out, state)
        self._set(op.group, (member,) * count)

    async def _prefilled(self, held: Any, loc: Location) -> State:
        state: State = await get(held)
        with self.run_.timeline.span("prefetch", loc, {}):
            await self.run_.prefetch(state.conversation)
        return state

    async def take(self, op: ops.Take) -> None:
        self._set(op.out, self._held(op.group)[await self._plain(op.index)])

    async def put(self, op: ops.Put) -> None:
        members = list(self._held(op.group))
        members[await self._plain(op.index)] = self._held(op.state)
        self._set(op.out, tuple(members))

    def join(self, op: ops.Join) -> None:
        members = self._held(op.group)
        self.run_.spent.joined(len(members))
        self._set(
            op.out,
            self._chain(
                [self._held(op.state), *members], lambda state, *ended: self.run_.follow(state, state.joined(ended, op.mode)), op.loc
            ),
        )

    # plain values

    def call(self, op: ops.Call) -> Awaitable[None] | None:
        held = [self._held(value) for value in op.args]
        if op.function == ".append" and op.deferred and len(held) == 2 and not is_ready(held[1]) and isinstance(held[0], list):
            self.run_.incomplete[id(held[0])] = held[0]
            evaluate(op.function, held)
            self._set(op.out, None)
            return None
        if op.deferred and not all(map(is_ready, held)):
            self._set(op.out, self.run_.defer(self._call(op, held), op.loc))
            return None
        if any(isinstance(value, asyncio.Future | HostObject) for value in held) or self._incomplete(op.function, held):
            return self._set_to(op.out, self._call(op, held))
        self._set(op.out, self._compute(op, held))
        return None

    def _incomplete(self, function: str, held: Sequence[Any]) -> bool:
        """Must lists be completed before this builtin sees them? Some only look at the list itself."""
        known = self.run_.incomplete
        if not known:
            return False
        if function in ("len", ".append"):
            return False
        if function == "iterate":
            return id(held[0]) in known
        return any(isinstance(value, list | tuple | dict) for value in held)

    async def _call(self, op: ops.Call, held: Sequence[Any]) -> Any:
        args = [await get(value) for value in held]
        if self._incomplete(op.function, args):
            for value in args:
                await self.run_.complete(value)
        if looks_into(op.function, args):
            return await self.run_.looked_into(op.function, args, op.keys, op.loc)
        return self._compute(op, args)

    def _compute(self, op: ops.Call, args: Sequence[Any]) -> Any:
        result = evaluate(op.function, args, op.keys)
        self.run_.spent.made(result)
        return result

    def index(self, op: ops.Index) -> Awaitable[None] | None:
        target, key = self._held(op.object), self._held(op.key)
        if op.deferred and not (is_ready(target) and is_ready(key)):
            self._set(op.out, self.run_.defer(self._index(op, target, key), op.loc))
            return None
        if isinstance(target, asyncio.Future | HostObject) or isinstance(key, asyncio.Future) or id(target) in self.run_.incomplete:
            return self._set_to(op.out, self._index(op, target, key))
        self._set(op.out, item(target, key))
        return None

    async def _index(self, op: ops.Index, target: Any, key: Any) -> Any:
        found = [await self.run_.plain(target), await self.run_.plain(key)]
        return await self.run_.looked_into("index", found, (), op.loc) if isinstance(found[0], HostObject) else item(*found)

    def make_list(self, op: ops.MakeList) -> Awaitable[None] | None:
        return self._collect(op, lambda *items: list(items))

    def make_dict(self, op: ops.MakeDict) -> Awaitable[None] | None:
        return self._collect(op, lambda *items: dict(zip(items[::2], items[1::2], strict=True)))

    def _collect(self, op: ops.MakeList | ops.MakeDict, build: Callable[..., Any]) -> Awaitable[None] | None:
        def collected(*items: Any) -> Any:
            self.run_.spent.made(items)
            return build(*items)

        result = self._chain([self._held(item) for item in op.items], collected, op.loc)
        return self._finish(op.out, result, deferred=op.deferred)

    # calls out of the function

    async def host_call(self, op: ops.HostCall) -> None:
        run = self.run_
        args = [await self._plain(value) for value in op.args]
        await run.caught_up()
        self._set(op.out, await run.on_host(op.function, args, op.keys, op.loc))

    async def program_call(self, op: ops.ProgramCall) -> None:
        run, callee = self.run_, self.run_.functions[op.function]
        args = [self._held(value) for value in op.args]
        if op.deferred:
            run.spent.nested(self.depth + 1)
            after, value = self.run_.split(self._called(callee, self._held(op.state), args), op.loc)
            run.expect(value)
        else:
            after, value = await run.function(callee, self._held(op.state), args, self.depth + 1)
            if op.state.id in self.opened:  # a run of its own: Python waits for its end
                after = await get(after)
        self._set(op.out, after)
        self._set(op.value, value)

    async def _called(self, callee: Function, state: Any, args: Sequence[Any]) -> tuple[Any, Any]:
        after, value = await self.run_.function(callee, state, args, self.depth + 1)
        return await get(after), await get(value)

    # what passes insert

    def prefetch(self, op: ops.Prefetch) -> None:
        self._background(op.state, op.loc, "prefetch", self.run_.prefetch_and_pin)

    def pin(self, op: ops.Pin) -> None:
        if self.run_.kv is not None:
            self._background(op.state, op.loc, "pin", self.run_.pin)

    def free(self, op: ops.Free) -> None:
        kv = self.run_.kv
        if op.state.type is Type.GROUP:
            self.run_.spent.joined(len(self._held(op.state)))
        if kv is not None:
            self._background(op.state, op.loc, "free", lambda conversation: kv.free(conversation, self.run_.run_id))

    def _background(self, state: Value, loc: Location, what: str, act: Callable[[Conversation], Awaitable[None]]) -> None:
        async def work(member: Any) -> None:
            ready: State = await get(member)
            with self.run_.timeline.span(what, loc, {}):
                await act(ready.conversation)

        for member in self._held(state) if state.type is Type.GROUP else (self._held(state),):
            self.run_.spawn(work(member), loc)


def _last_generation(block: Block) -> ops.Op | None:
    """Of the block in which a function ends, where only quiet ops come behind it."""
    if not isinstance(block.ops[-1], ops.Return):
        return None
    last = next((op for op in reversed(block.ops[:-1]) if not isinstance(op, QUIET)), None)
    return last if isinstance(last, ops.Gen | ops.Select) and last.state.type is Type.STATE else None


_METHODS: Mapping[type[ops.Op], Callable[[_Frame, Any], Awaitable[None] | None]] = {
    cls: getattr(_Frame, name) for name, cls in ops.OPS.items() if hasattr(_Frame, name)
}
