"""From the control-flow graph of each function to a verified module: statements here, expressions and conversations beside."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from ramet.compiler.cfg import BeginLoop, BindItem, Branch, End, Enter, Exit, Graph, Jump, Leave, NextItem, Step, build_cfg
from ramet.compiler.check import check
from ramet.compiler.context import Context
from ramet.compiler.definite import unbound_reads
from ramet.compiler.diagnostics import CompileError, Unfit
from ramet.compiler.lower_conversations import ConversationLowering, Piece, Place
from ramet.compiler.lower_expressions import OPERATORS, ExpressionLowering
from ramet.compiler.lower_loops import LoopLowering
from ramet.compiler.scope import ProgramObject, Verbs, scope_of
from ramet.compiler.source import FunctionSource, load_source
from ramet.compiler.ssa import Draft
from ramet.ir.module import Function, Module, Source
from ramet.ir.types import Type, Value


class ProgramLowering:
    """One module: the function asked for, and every program that it calls."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs
        self._names: dict[int, str] = {}
        self._functions: dict[str, Function | None] = {}
        self.sources: list[Source] = []
        self.graphs: dict[str, Graph] = {}
        self.captures: list[tuple[Callable[..., Any], dict[str, Any]]] = []

    def module(self, program: ProgramObject) -> Module:
        self.function(program)
        return Module(tuple(function for function in self._functions.values() if function is not None), tuple(self.sources))

    def function(self, program: ProgramObject) -> str:
        """The name of `program` in the module; lowered when it is first asked for, so that programs may call themselves."""
        key = id(program.function)
        if key not in self._names:
            plain = getattr(program.function, "__name__", "program").replace("<lambda>", "lambda")
            name = plain if plain not in self._functions else f"{plain}.{len(self._functions)}"
            self._names[key] = name
            self._functions[name] = None
            self._functions[name] = self._lower(program, name)
        return self._names[key]

    def _lower(self, program: ProgramObject, name: str) -> Function:
        source = load_source(program.function)
        check(source)
        index = len(self.sources)
        self.sources.append(source.source)
        self.graphs[name] = build_cfg(source.tree)
        lowering = FunctionLowering(source, index, program, self._verbs, self._callee)
        try:
            function = lowering.lower(self.graphs[name], name)
        except Unfit as problem:
            raise CompileError([source.diagnostic(problem)]) from None
        self.captures.append((program.function, lowering.captures))
        return function

    def _callee(self, program: ProgramObject, node: ast.AST) -> str:
        try:
            return self.function(program)
        except CompileError as error:
            called = getattr(program.function, "__name__", "the program")
            raise Unfit(node, f"{called} does not compile", f"mend it first:\n{error}") from error


class FunctionLowering:
    def __init__(
        self, source: FunctionSource, index: int, program: ProgramObject, verbs: Verbs, callee: Callable[[ProgramObject, ast.AST], str]
    ) -> None:
        args = source.tree.args
        self._params = [argument.arg for argument in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        conversation = "$conversation" if program.ambient else self._params.pop(0)
        scope = scope_of(program.function, source.tree)
        self._context = context = Context(source, index, scope, verbs, program.ambient, conversation, callee)
        self._builder = context.builder
        context.conversations = ConversationLowering(context)
        context.expressions = ExpressionLowering(context)
        context.loops = LoopLowering(context)
        context.assign = self._assign
        self._open_contexts: dict[ast.withitem, Callable[[], None]] = {}

    @property
    def captures(self) -> dict[str, Any]:
        return self._context.scope.captures

    def lower(self, graph: Graph, name: str) -> Function:
        context, builder = self._context, self._builder
        context.unbound = unbound_reads(graph, frozenset(self._params))
        context.parameters = frozenset(self._params)
        builder.parameter(context.conversation, Type.STATE)
        context.kinds[context.conversation] = "state"
        for param in self._params:
            builder.parameter(param, Type.JSON)
        drafts = {node.id: builder.current if node.id == graph.nodes[0].id else builder.new_block() for node in graph.nodes}
        waiting = {node: len(befores) for node, befores in graph.predecessors().items()}
        for node in graph.nodes:
            builder.start(drafts[node.id], seal=waiting[node.id] == 0)
            for step in node.steps:
                self._step(step)
            assert node.end is not None
            self._end(node.end, drafts)
            for following in node.successors():
                waiting[following] -= 1
                if waiting[following] == 0:
                    builder.seal(drafts[following])
        return builder.finish(name, tuple(self._params))

    def _step(self, step: Step) -> None:
        match step:
            case BeginLoop(loop):
                self._context.loops.begin(loop)
            case BindItem(loop):
                self._context.loops.bind(loop)
            case Enter(item):
                self._enter(item)
            case Leave(item):
                self._open_contexts[item]()
            case ast.stmt():
                self._statement(step)

    def _statement(self, step: ast.stmt) -> None:
        match step:
            case ast.Expr():
                self._expression(step.value)
            case ast.Assign():
                self._assignment(step)
            case ast.AnnAssign():
                if step.value is not None:
                    self._assign_expression(step.target, step.value)
            case ast.AugAssign():
                self._augmented(step)
            case ast.Delete():
                self._delete(step)
            case ast.Assert():
                self._assert(step)
            case ast.Raise():
                self._raise(step)
            case ast.Pass():
                pass
            case _:
                raise Unfit(step, f"{type(step).__name__} does not compile", "use a host function, or simpler Python")

    def _delete(self, step: ast.Delete) -> None:
        evaluate = self._context.expressions.value
        for target in step.targets:
            assert isinstance(target, ast.Subscript)
            self._context.call("del_item", [evaluate(target.value), evaluate(target.slice)], step)

    def _end(self, end: End, drafts: dict[int, Draft]) -> None:
        builder, context = self._builder, self._context
        match end:
            case Jump(to):
                builder.jump(drafts[to], builder.current.ops[-1].loc if builder.current.ops else context.loc(context.source.tree))
            case Branch(test, then, otherwise):
                builder.branch(context.expressions.value(test), drafts[then], drafts[otherwise], context.loc(test))
            case NextItem(loop, body, after):
                builder.branch(context.loops.more(loop), drafts[body], drafts[after], context.loc(loop.iter))
            case Exit(node, value, leaving):
                result = self._returned(value, node)
                for item in leaving:
                    self._open_contexts[item]()
                builder.leave(builder.read(context.conversation), result, context.loc(node))

    def _returned(self, value: ast.expr | None, node: ast.AST) -> Value:
        if value is None:
            return self._context.const(None, node)
        if self._context.expressions.is_conversation(value) and not self._is_turn(value) and not self._continues(value):
            raise Unfit(
                value, "a conversation cannot be returned: the result of run() is the conversation already", "return a value, or nothing"
            )
        return self._context.expressions.value(value)

    def _continues(self, node: ast.expr) -> bool:
        """Is it a program called with a conversation? That yields the function's value."""
        return isinstance(node, ast.Call) and bool(node.args) and self._context.conversations.place(node.args[0]) is not None

    def _is_turn(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and self._context.kind(node.id) == "turn"

    # statements

    def _expression(self, node: ast.expr) -> None:
        context = self._context
        if isinstance(node, ast.Constant):
            return
        if context.conversations.is_content(node):
            if context.ambient:
                raise Unfit(node, "a generation outside of a turn is not appended", "put it into a role: sgl.assistant(sgl.gen(…))")
            return  # an expression that is built and dropped has no effect
        program = context.conversations.called_program(node)
        if program is not None and isinstance(node, ast.Call):
            context.conversations.run_program(program, node)
        else:
            context.expressions.value(node)

    def _assignment(self, step: ast.Assign) -> None:
        first, *more = step.targets
        self._assign_expression(first, step.value)
        for target in more:
            if not isinstance(first, ast.Name):
                raise Unfit(step, "a chain of assignments ends in a name here", "write two assignments")
            self._assign(target, self._context.expressions.value(ast.copy_location(ast.Name(first.id, ast.Load()), first)))

    def _assign_expression(self, target: ast.expr, value: ast.expr) -> None:
        """Assignments that bind a conversation are bindings of a place; all others move a value."""
        context, conversations = self._context, self._context.conversations
        program = conversations.called_program(value)
        if program is not None and isinstance(target, ast.Name) and isinstance(value, ast.Call):
            appended = bool(value.args) and not program.ambient and context.expressions.is_conversation(value.args[0])
            state, result = conversations.run_program(program, value)
            if appended:
                self._assign(target, result)
            else:
                context.bind(target.id, "state", target)
                self._builder.write(target.id, state)
                self._builder.write(f"{target.id}$value", result)
        elif self._assign_fork(target, value):
            return
        elif isinstance(target, ast.Name) and self._context.conversations.speaks(value):
            said = context.expressions.value(value)
            context.bind(target.id, "turn", target)
            self._builder.write(target.id, said)
        elif isinstance(target, ast.Name) and isinstance(value, ast.Name) and context.kind(value.id) == "state":
            context.bind(target.id, "state", target)
            context.aliases[target.id] = context.aliases.get(value.id, value.id)
        elif isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for each, item in zip(target.elts, [context.expressions.value(item) for item in value.elts], strict=True):
                self._assign(each, item)
        else:
            self._assign(target, context.expressions.value(value))

    def _assign_fork(self, target: ast.expr, value: ast.expr) -> bool:
        """`forks = s.fork(n)`, `a, b = s.fork(2)`, `f = s.fork(1)[0]`, `c = s.copy()`."""
        conversations = self._context.conversations
        picked = value.slice if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Constant) else None
        inner = value.value if picked is not None and isinstance(value, ast.Subscript) else value
        found = conversations.fork(inner)
        if found is None:
            return False
        place, size = found
        names = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        if not all(isinstance(name, ast.Name) for name in names):
            raise Unfit(target, "forks are bound to names", "forks = s.fork(n)")
        copied = isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "copy"
        if copied:
            raise Unfit(value, "copy() is a context manager", "with s.copy() as c: …, or c = s.fork(1)[0]")
        if names == [target] and picked is None:
            assert isinstance(target, ast.Name)
            conversations.open_group(target.id, place, size, value)
            return True
        group = self._context.fresh("group")
        conversations.open_group(group, place, size, value)
        for position, name in enumerate(names):
            assert isinstance(name, ast.Name)
            index = self._context.const(picked.value if picked is not None else position, value)
            conversations.member(name.id, group, index, name)
        return True

    def _assign(self, target: ast.expr, value: Value) -> None:
        context = self._context
        if isinstance(target, ast.Name):
            context.bind(target.id, "value", target)
            self._builder.write(target.id, value)
        elif isinstance(target, ast.Tuple | ast.List):
            items = context.call("unpack", [value, context.const(len(target.elts), target)], target)
            for position, each in enumerate(target.elts):
                self._assign(each, context.index(items, context.const(position, target), target))
        elif isinstance(target, ast.Subscript):
            place = context.conversations.place(target.value)
            key = context.expressions.value(target.slice)
            if place is not None:
                context.conversations.set_var(place, key, value, target)
                return
            self._refuse_captured(target.value)
            context.call("set_item", [context.expressions.value(target.value), key, value], target)
        else:
            raise Unfit(target, "assigning to an attribute does not compile", 'use a dict: d["name"] = value')

    def _refuse_captured(self, node: ast.expr) -> None:
        if isinstance(node, ast.Name) and not self._context.scope.is_local(node.id):
            raise Unfit(node, f"the captured {node.id!r} cannot be changed by a program", f"copy it first: mine = dict({node.id})")

    def _augmented(self, step: ast.AugAssign) -> None:
        conversations, target = self._context.conversations, step.target
        group = conversations.group(target) if isinstance(target, ast.Name) else None
        place = None if self._is_turn(target) else conversations.place(target)
        if (group is not None or place is not None) and not isinstance(step.op, ast.Add):
            raise Unfit(step, "a conversation only grows", "s += …")
        if group is not None:
            conversations.broadcast(group, step.value)
        elif place is not None:
            conversations.append(place, conversations.content(step.value), step)
        elif isinstance(target, ast.Name) and self._is_turn(target):
            self._grow_turn(target, step)
        else:
            self._update(target, step)

    def _grow_turn(self, target: ast.Name, step: ast.AugAssign) -> None:
        """`history += turn` gathers what was said; `history += text` says more."""
        context = self._context
        if self._context.conversations.speaks(step.value):
            known = self._builder.read(target.id)
            said = context.expressions.value(step.value)
            self._builder.write(target.id, context.call("concat", [known, context.const("\n", step), said], step))
        else:
            context.conversations.append(Place(context.conversation), context.conversations.content(step.value), step)

    def _update(self, target: ast.expr, step: ast.AugAssign) -> None:
        context, evaluate = self._context, self._context.expressions.value
        function = "iadd" if isinstance(step.op, ast.Add) else OPERATORS[type(step.op)]
        if isinstance(target, ast.Name):
            old = evaluate(ast.copy_location(ast.Name(target.id, ast.Load()), target))
            self._assign(target, context.call(function, [old, evaluate(step.value)], step))
            return
        assert isinstance(target, ast.Subscript)
        place = context.conversations.place(target.value)
        if place is not None:
            key = evaluate(target.slice)
            old = context.conversations.get_var(context.conversations.read(place, step), key, step)
            context.conversations.set_var(place, key, context.call(function, [old, evaluate(step.value)], step), step)
            return
        self._refuse_captured(target.value)
        container, key = evaluate(target.value), evaluate(target.slice)
        old = context.index(container, key, step)
        context.call("set_item", [container, key, context.call(function, [old, evaluate(step.value)], step)], step)

    def _assert(self, step: ast.Assert) -> None:
        context = self._context
        test = context.expressions.value(step.test)
        fails, holds = context.branch(context.call("not", [test], step), step)
        self._builder.start(fails)
        message = [context.expressions.value(step.msg)] if step.msg is not None else []
        context.call("check", [context.const(False, step), *message], step)
        self._builder.jump(holds, context.loc(step))
        self._builder.start(holds)

    def _raise(self, step: ast.Raise) -> None:
        context, error = self._context, step.exc
        name = error.func.id if isinstance(error, ast.Call) and isinstance(error.func, ast.Name) else ""
        if step.cause is not None or name not in ("ValueError", "TypeError", "KeyError", "IndexError", "RuntimeError"):
            raise Unfit(step, "only the common errors are raised in a program", 'raise ValueError("what happened")')
        assert isinstance(error, ast.Call)
        args = [context.expressions.value(arg) for arg in error.args[:1]]
        context.call("fail", [context.const(name, step), *args], step)

    # contexts

    def _enter(self, item: ast.withitem) -> None:
        """`with s.user():`, `with s.var_scope("name"):`, `with s.copy() as c:`."""
        call, context, conversations = item.context_expr, self._context, self._context.conversations
        method = call.func.attr if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else ""
        place = conversations.place(call.func.value) if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else None
        if place is None or not isinstance(call, ast.Call):
            raise Unfit(
                call, "this context manager does not compile", 'with s.user():, s.assistant():, s.var_scope("name"): or s.copy() as c:'
            )
        if method in ("system", "user", "assistant") and not call.args:
            begin, end = (self._border(f"{border}:{method}", place, call) for border in ("begin", "end"))
            begin()
            self._open_contexts[item] = end
        elif method == "var_scope" and len(call.args) == 1:
            self._open_contexts[item] = self._var_scope(place, call)
        elif method == "copy" and isinstance(item.optional_vars, ast.Name):
            group = context.fresh("group")
            conversations.open_group(group, place, None, call)
            conversations.member(item.optional_vars.id, group, context.const(0, call), call)
            self._open_contexts[item] = lambda: None
            return
        else:
            raise Unfit(
                call, "this context manager does not compile", 'with s.user():, s.assistant():, s.var_scope("name"): or s.copy() as c:'
            )
        if isinstance(item.optional_vars, ast.Name) and place.index is None:
            context.bind(item.optional_vars.id, "state", call)
            context.aliases[item.optional_vars.id] = place.variable

    def _border(self, shape: str, place: Place, node: ast.Call) -> Callable[[], None]:
        def append() -> None:
            self._context.conversations.append(place, [Piece(shape, node)], node)

        return append

    def _var_scope(self, place: Place, node: ast.Call) -> Callable[[], None]:
        context, conversations = self._context, self._context.conversations
        mark, name = context.fresh("mark"), context.fresh("name")
        self._builder.write(name, context.expressions.value(node.args[0]))
        self._builder.write(mark, conversations.inspect(conversations.read(place, node), "mark", node))

        def leave() -> None:
            said = conversations.inspect(conversations.read(place, node), "since", node, self._builder.read(mark))
            conversations.set_var(place, self._builder.read(name), said, node)

        return leave
