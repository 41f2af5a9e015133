"""Lowering of iteration: what a `for` runs over, comprehensions, and what is done to each branch of a group."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ramet.compiler.context import Context
from ramet.compiler.diagnostics import Unfit
from ramet.compiler.lower_conversations import Place
from ramet.ir.ops import Index, MakeDict, MakeList
from ramet.ir.types import Type, Value


@dataclass(frozen=True, slots=True)
class _Source:
    """One thing that is iterated over: a group's name, or the variable that holds a sequence."""

    target: ast.expr
    group: str | None
    sequence: str


@dataclass(frozen=True, slots=True)
class Iteration:
    """`counter` is the variable with the position; several sources run side by side, as in zip. `start` is set for enumerate, `strict`
    for a zip whose sources must be equally long."""

    counter: str
    sources: tuple[_Source, ...]
    numbered: ast.expr | None = None
    start: str = ""
    strict: bool = False


class LoopLowering:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._builder = context.builder
        self._for_loops: dict[ast.For, Iteration] = {}

    # for statements, in the three steps of the graph

    def begin(self, loop: ast.For) -> None:
        self._for_loops[loop] = self.plan(loop.target, loop.iter)

    def more(self, loop: ast.For) -> Value:
        return self.has_next(self._for_loops[loop], loop.iter)

    def bind(self, loop: ast.For) -> None:
        self.take_next(self._for_loops[loop], loop.iter)

    # iteration

    def plan(self, target: ast.expr, iterable: ast.expr) -> Iteration:
        """Evaluates what is iterated over and sets the position to 0."""
        context = self._context
        counter = context.fresh("position")
        numbered, start, pairs = self._shape(target, iterable)
        strict = len(pairs) > 1 and _is_strict(_zip_of(iterable))
        sources = tuple(self._source(each, over) for each, over in pairs)
        if numbered is not None and start is not None:
            name = context.fresh("start")
            self._builder.write(name, context.expressions.value(start))
        else:
            name = ""
        self._builder.write(counter, context.const(0, iterable))
        return Iteration(counter, sources, numbered, name, strict)

    def _shape(self, target: ast.expr, iterable: ast.expr) -> tuple[ast.expr | None, ast.expr | None, list[tuple[ast.expr, ast.expr]]]:
        """enumerate and zip over groups are taken apart, since a conversation cannot be an item of a list."""
        called = iterable.func.id if isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name) else ""
        if (
            isinstance(iterable, ast.Call)
            and isinstance(target, ast.Tuple)
            and called in ("enumerate", "zip")
            and self._has_group(iterable)
        ):
            if called == "zip" and len(iterable.args) == len(target.elts):
                return None, None, list(zip(target.elts, iterable.args, strict=True))
            if called == "enumerate" and len(target.elts) == 2:
                start = [*iterable.args[1:], *(keyword.value for keyword in iterable.keywords)]
                _, _, pairs = self._shape(target.elts[1], iterable.args[0])
                return target.elts[0], start[0] if start else None, pairs
        return None, None, [(target, iterable)]

    def _has_group(self, node: ast.expr) -> bool:
        return any(isinstance(each, ast.expr) and self._context.conversations.group(each) is not None for each in ast.walk(node))

    def _source(self, target: ast.expr, iterable: ast.expr) -> _Source:
        group = self._context.conversations.group(iterable)
        if group is not None:
            if not isinstance(target, ast.Name):
                raise Unfit(target, "a fork is bound to one name", "for f in forks")
            return _Source(target, group, "")
        name = self._context.fresh("sequence")
        sequence = self._context.expressions.value(iterable)
        self._builder.write(name, self._context.call("iterate", [sequence], iterable))
        return _Source(target, None, name)

    def has_next(self, iteration: Iteration, node: ast.AST) -> Value:
        position = self._builder.read(iteration.counter)
        sizes = [self._size(source, node) for source in iteration.sources]
        if iteration.strict:
            size = self._context.call("strict_size", [position, *sizes], node)
        else:
            size = sizes[0] if len(sizes) == 1 else self._context.call("min", sizes, node)
        return self._context.call("lt", [position, size], node)

    def _size(self, source: _Source, node: ast.AST) -> Value:
        if source.group is not None:
            return self._context.conversations.inspect(self._builder.read(source.group), "size", node)
        return self._context.call("len", [self._builder.read(source.sequence)], node)

    def take_next(self, iteration: Iteration, node: ast.AST) -> None:
        """Binds the targets to the items at the position, and moves on."""
        context = self._context
        position = self._builder.read(iteration.counter)
        if iteration.numbered is not None:
            number = context.call("add", [position, self._builder.read(iteration.start)], node) if iteration.start else position
            context.assign(iteration.numbered, number)
        for source in iteration.sources:
            if source.group is not None and isinstance(source.target, ast.Name):
                context.conversations.member(source.target.id, source.group, position, node)
                continue
            item = self._builder.values.new(Type.JSON)
            self._builder.emit(Index(object=self._builder.read(source.sequence), key=position, out=item, loc=context.loc(node)))
            context.assign(source.target, item)
        self._builder.write(iteration.counter, context.call("add", [position, context.const(1, node)], node))

    def each(self, iteration: Iteration, node: ast.AST, body: Callable[[], None]) -> None:
        """A whole loop inside an expression."""
        header, inside, after = (self._builder.new_block() for _ in range(3))
        loc = self._context.loc(node)
        self._builder.jump(header, loc)
        self._builder.start(header, seal=False)
        self._builder.branch(self.has_next(iteration, node), inside, after, loc)
        self._builder.start(inside)
        self.take_next(iteration, node)
        body()
        self._builder.jump(header, loc)
        self._builder.seal(header)
        self._builder.start(after)

    # comprehensions

    def comprehension(self, node: ast.ListComp | ast.GeneratorExp | ast.DictComp) -> Value:
        result = self._context.fresh("result")
        loc = self._context.loc(node)
        if isinstance(node, ast.DictComp):
            out = self._builder.values.new(Type.DICT)
            self._builder.emit(MakeDict(out=out, loc=loc))
        else:
            out = self._builder.values.new(Type.LIST)
            self._builder.emit(MakeList(out=out, loc=loc))
        self._builder.write(result, out)
        with self._context.own_names(node):
            self._generators(node.generators, node, lambda: self._collect(node, result))
        return self._builder.read(result)

    def _collect(self, node: ast.ListComp | ast.GeneratorExp | ast.DictComp, result: str) -> None:
        evaluate = self._context.expressions.value
        if isinstance(node, ast.DictComp):
            key = evaluate(node.key)
            self._context.call("set_item", [self._builder.read(result), key, evaluate(node.value)], node)
        else:
            item = evaluate(node.elt)
            self._context.call(".append", [self._builder.read(result), item], node)

    def _generators(self, generators: Sequence[ast.comprehension], node: ast.AST, innermost: Callable[[], None]) -> None:
        if not generators:
            innermost()
            return
        first = generators[0]

        def body() -> None:
            self._conditions(first.ifs, node, lambda: self._generators(generators[1:], node, innermost))

        self.each(self.plan(first.target, first.iter), node, body)

    def _conditions(self, tests: Sequence[ast.expr], node: ast.AST, inside: Callable[[], None]) -> None:
        if not tests:
            inside()
            return
        then, skip = self._context.branch(self._context.expressions.value(tests[0]), node)
        self._builder.start(then)
        self._conditions(tests[1:], node, inside)
        self._builder.jump(skip, self._context.loc(node))
        self._builder.start(skip)

    def any_or_all(self, name: str, node: ast.GeneratorExp) -> Value:
        """Stops at the first item that decides, as Python does: later items may cost generations."""
        context, wanted = self._context, name == "any"
        result = context.fresh("result")
        self._builder.write(result, context.const(not wanted, node))
        out = self._builder.new_block()

        def test() -> None:
            hit, on = (
                context.branch(context.expressions.value(node.elt), node)
                if wanted
                else context.branch(context.expressions.value(node.elt), node)[::-1]
            )
            self._builder.start(hit)
            self._builder.write(result, context.const(wanted, node))
            self._builder.jump(out, context.loc(node))
            self._builder.start(on)

        with context.own_names(node):
            self._generators(node.generators, node, test)
        self._builder.jump(out, context.loc(node))
        self._builder.start(out)
        return self._builder.read(result)

    # groups

    def gather(self, group: str, node: ast.Subscript) -> Value:
        """`forks["name"]`: the list of the branches' values."""
        result, counter = self._context.fresh("result"), self._context.fresh("position")
        name = self._context.expressions.value(node.slice)
        out = self._builder.values.new(Type.LIST)
        self._builder.emit(MakeList(out=out, loc=self._context.loc(node)))
        self._builder.write(result, out)
        self._builder.write(counter, self._context.const(0, node))
        position = self._context.fresh("branch")
        iteration = Iteration(counter, (_Source(ast.Name(position), group, ""),))

        def body() -> None:
            state = self._context.conversations.read(Place(group, f"{position}$index"), node)
            value = self._context.conversations.get_var(state, name, node)
            self._context.call(".append", [self._builder.read(result), value], node)

        self.each(iteration, node, body)
        return self._builder.read(result)

    def broadcast_lambda(self, group: str, node: ast.Lambda) -> None:
        """`forks += lambda i: …`."""
        if len(node.args.args) != 1:
            raise Unfit(node, "the lambda takes the position of the branch", "forks += lambda i: …")
        counter, branch = self._context.fresh("position"), self._context.fresh("branch")
        self._builder.write(counter, self._context.const(0, node))
        iteration = Iteration(counter, (_Source(ast.Name(branch), group, ""),), ast.Name(node.args.args[0].arg, ast.Store()))

        def body() -> None:
            content = self._context.conversations.content(node.body)
            self._context.conversations.append(Place(group, f"{branch}$index"), content, node)

        with self._context.own_names(node):
            self.each(iteration, node, body)


def _zip_of(iterable: ast.expr) -> ast.Call:
    """The zip in `zip(…)` or `enumerate(zip(…), …)`."""
    assert isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name)
    return iterable if iterable.func.id == "zip" else _zip_of(iterable.args[0])


def _is_strict(call: ast.Call) -> bool:
    for keyword in call.keywords:
        if keyword.arg != "strict" or not isinstance(keyword.value, ast.Constant):
            raise Unfit(keyword.value, "zip over forks takes strict=True or strict=False, written out", "zip(forks, items, strict=True)")
        return bool(keyword.value.value)
    return False
