"""Lowering of Python expressions to values. Each kind of node has its method; what has none is refused with its place."""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

from ramet.compiler.context import Context
from ramet.compiler.diagnostics import Unfit, meant
from ramet.compiler.lower_conversations import GEN_KEYWORDS, ROLE_VERBS, Place
from ramet.compiler.scope import MISSING, ProgramObject, is_plain, uses_language
from ramet.ir.builtins import BUILTINS
from ramet.ir.ops import HostCall, Index, MakeDict, MakeList
from ramet.ir.types import Type, Value

OPERATORS: Mapping[type[ast.AST], str] = MappingProxyType(
    {
        ast.Add: "add",
        ast.Sub: "sub",
        ast.Mult: "mul",
        ast.Div: "truediv",
        ast.FloorDiv: "floordiv",
        ast.Mod: "mod",
        ast.Pow: "pow",
        ast.Not: "not",
        ast.USub: "neg",
        ast.UAdd: "pos",
        ast.Eq: "eq",
        ast.NotEq: "ne",
        ast.Lt: "lt",
        ast.LtE: "le",
        ast.Gt: "gt",
        ast.GtE: "ge",
        ast.Is: "is",
        ast.IsNot: "is_not",
        ast.In: "in",
        ast.NotIn: "not_in",
    }
)
_CALLABLES: Mapping[int, str] = MappingProxyType(
    {
        **{
            id(function): function.__name__
            for function in (
                *(
                    len,
                    int,
                    float,
                    str,
                    bool,
                    list,
                    tuple,
                    dict,
                    min,
                    max,
                    sum,
                    sorted,
                    reversed,
                    any,
                    all,
                    abs,
                    round,
                    divmod,
                    repr,
                    format,
                ),
                *(ord, chr, range, enumerate, zip),
            )
        },
        **{id(function): f"json.{function.__name__}" for function in (json.loads, json.dumps)},
        **{id(function): f"re.{function.__name__}" for function in (re.fullmatch, re.match, re.search, re.findall, re.sub)},
        **{id(function): f"math.{function.__name__}" for function in (math.sqrt, math.floor, math.ceil, math.log, math.exp)},
    }
)
RUN_OPTIONS = (GEN_KEYWORDS | {"max_new_tokens", "min_new_tokens"}) - {
    "name",
    "dtype",
    "choices",
    "choices_method",
    "regex",
    "json_schema",
    "tools",
}


class ExpressionLowering:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._builder = context.builder
        self._methods: dict[type[ast.AST], Callable[[Any], Value]] = {
            ast.Constant: lambda node: context.const(node.value, node),
            ast.Name: self._name,
            ast.BinOp: self._binary,
            ast.UnaryOp: self._unary,
            ast.BoolOp: self._bool,
            ast.Compare: self._compare,
            ast.IfExp: self._conditional,
            ast.JoinedStr: self._fstring,
            ast.List: self._list,
            ast.Tuple: self._tuple,
            ast.Dict: self._dict,
            ast.Set: self._set,
            ast.SetComp: self._set,
            ast.Subscript: self._subscript,
            ast.Attribute: self._attribute,
            ast.Call: self._call,
            ast.ListComp: lambda node: context.loops.comprehension(node),
            ast.GeneratorExp: lambda node: context.loops.comprehension(node),
            ast.DictComp: lambda node: context.loops.comprehension(node),
            ast.NamedExpr: self._walrus,
            ast.Await: lambda node: self.value(node.value),
        }

    def value(self, node: ast.expr) -> Value:
        """Evaluate `node` here; the blocks that it needs are made on the way."""
        lower = self._methods.get(type(node))
        if lower is None:
            raise Unfit(node, f"{type(node).__name__} does not compile", "use a host function, or simpler Python")
        return lower(node)

    def _name(self, node: ast.Name) -> Value:
        context = self._context
        if not context.scope.is_local(node.id):
            return self._captured(node)
        if context.kind(node.id) not in ("value", "turn"):
            raise Unfit(node, f"the conversation {node.id!r} is not a value", f'read {node.id}["name"], {node.id}.text(), or append to it')
        found = self._builder.read(node.id)
        if found.type.linear:
            raise Unfit(
                node, f"{node.id!r} is the result of a program, not a value", f'read {node.id}["name"], {node.id}.value or {node.id}.text()'
            )
        if context.may_be_unbound(node):
            return context.call("bound", [found, context.const(node.id, node)], node)
        return found

    def _captured(self, node: ast.expr) -> Value:
        found = self._context.scope.lookup(node)
        if found is MISSING:
            raise Unfit(node, f"{ast.unparse(node)!r} is not defined", "define it before the program, or pass it as an argument")
        value = self._context.scope.constant(node, found)
        out = self._context.const(value, node)
        return self._context.call("tuple", [out], node) if isinstance(value, tuple) else out

    def _binary(self, node: ast.BinOp) -> Value:
        if self._context.conversations.is_content(node):
            raise Unfit(node, "a generation has no value before it is appended", 's += …, then read s["name"]')
        if self._context.conversations.speaks(node):
            turns = [self.value(node.left), self._context.const("\n", node), self.value(node.right)]
            return self._context.call("concat", turns, node)
        return self._context.call(OPERATORS[type(node.op)], [self.value(node.left), self.value(node.right)], node)

    def _unary(self, node: ast.UnaryOp) -> Value:
        return self._context.call(OPERATORS[type(node.op)], [self.value(node.operand)], node)

    def _bool(self, node: ast.BoolOp) -> Value:
        return self._bool_of(node, node.values)

    def _bool_of(self, node: ast.BoolOp, values: list[ast.expr]) -> Value:
        first = self.value(values[0])
        if len(values) == 1:
            return first
        rest = lambda: self._bool_of(node, values[1:])  # noqa: E731
        if isinstance(node.op, ast.And):
            return self._context.choose(first, node, rest, lambda: first)
        return self._context.choose(first, node, lambda: first, rest)

    def _compare(self, node: ast.Compare) -> Value:
        return self._compare_rest(node, self.compared(node.left), 0)

    def _compare_rest(self, node: ast.Compare, left: Value, index: int) -> Value:
        conversations = self._context.conversations
        operator, right_node = node.ops[index], node.comparators[index]
        if isinstance(operator, ast.In | ast.NotIn) and self.is_conversation(right_node) and not self._is_turn(right_node):
            result = conversations.inspect(self.state(right_node), "has", node, left)
            return result if isinstance(operator, ast.In) else self._context.call("not", [result], node)
        right = self.value(right_node)
        result = self._context.call(OPERATORS[type(operator)], [left, right], node)
        if index + 1 == len(node.ops):
            return result
        return self._context.choose(result, node, lambda: self._compare_rest(node, right, index + 1), lambda: result)

    def _is_turn(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and self._context.kind(node.id) == "turn"

    def compared(self, node: ast.expr) -> Value:
        return self.value(node)

    def _conditional(self, node: ast.IfExp) -> Value:
        return self._context.choose(self.value(node.test), node, lambda: self.value(node.body), lambda: self.value(node.orelse))

    def _fstring(self, node: ast.JoinedStr) -> Value:
        return self._context.call("concat", [self._fstring_part(part) for part in node.values], node)

    def _fstring_part(self, part: ast.expr) -> Value:
        if not isinstance(part, ast.FormattedValue):
            return self.value(part)
        value = self.value(part.value)
        if part.conversion in (ord("r"), ord("a")):
            value = self._context.call("repr", [value], part)
        elif part.conversion == ord("s"):
            value = self._context.call("str", [value], part)
        spec = [self.value(part.format_spec)] if part.format_spec is not None else []
        return value if value.type is Type.TEXT and not spec else self._context.call("format", [value, *spec], part)

    def _list(self, node: ast.List | ast.Tuple | ast.Set) -> Value:
        items = tuple(self.value(item) for item in node.elts)
        out = self._builder.values.new(Type.LIST)
        self._builder.emit(MakeList(items=items, out=out, loc=self._context.loc(node)))
        return out

    def _set(self, node: ast.Set | ast.SetComp) -> Value:
        """An object of the host: it has no order that could travel."""
        if isinstance(node, ast.SetComp):
            items = self._context.loops.comprehension(ast.copy_location(ast.ListComp(elt=node.elt, generators=node.generators), node))
        else:
            items = self._list(node)
        return self._ask_host("~set", [items], (), node)

    def _tuple(self, node: ast.Tuple) -> Value:
        return self._context.call("tuple", [self._list(node)], node)

    def _dict(self, node: ast.Dict) -> Value:
        items: list[Value] = []
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                raise Unfit(node, "** inside a dict does not compile", "use d.update(other)")
            items += [self.value(key), self.value(value)]
        out = self._builder.values.new(Type.DICT)
        self._builder.emit(MakeDict(items=tuple(items), out=out, loc=self._context.loc(node)))
        return out

    def _walrus(self, node: ast.NamedExpr) -> Value:
        value = self.value(node.value)
        self._context.bind(node.target.id, "value", node)
        self._builder.write(node.target.id, value)
        return value

    # conversations in expressions

    def is_conversation(self, node: ast.expr) -> bool:
        """Does the expression name a conversation, a turn of the ambient one, or the result of a program?"""
        context = self._context
        if isinstance(node, ast.Name):
            kind = context.kind(node.id)
            return kind in ("state", "turn") or not isinstance(kind, str)
        if isinstance(node, ast.Subscript):
            text = isinstance(node.slice, ast.JoinedStr) or (isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str))
            return context.conversations.group(node.value) is not None and not text
        return context.conversations.called_program(node) is not None

    def state(self, node: ast.expr) -> Value:
        """The conversation itself, to look at."""
        context = self._context
        if isinstance(node, ast.Name) and context.kind(node.id) == "turn":
            return self._builder.read(context.conversation)
        place = context.conversations.place(node)
        if place is not None:
            return context.conversations.read(place, node)
        program = context.conversations.called_program(node)
        assert program is not None and isinstance(node, ast.Call)
        return context.conversations.run_program(program, node)[0]

    def _subscript(self, node: ast.Subscript) -> Value:
        context = self._context
        if context.conversations.group(node.value) is not None and not self.is_conversation(node):
            return context.loops.gather(str(context.conversations.group(node.value)), node)
        if self.is_conversation(node):
            raise Unfit(node, "a fork is not a value", 'read forks[i]["name"], or append to it')
        if self.is_conversation(node.value):
            state = self.state(node.value)
            return context.conversations.get_var(state, self.value(node.slice), node)
        target = self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            bounds = [
                self.value(each) if each else context.const(None, node) for each in (node.slice.lower, node.slice.upper, node.slice.step)
            ]
            return context.call("slice", [target, *bounds], node)
        out = self._builder.values.new(Type.JSON)
        self._builder.emit(Index(object=target, key=self.value(node.slice), out=out, loc=context.loc(node)))
        return out

    def _attribute(self, node: ast.Attribute) -> Value:
        context = self._context
        if node.attr in ("value", "ret_value"):
            program = context.conversations.called_program(node.value)
            if program is not None and isinstance(node.value, ast.Call):
                return context.conversations.run_program(program, node.value)[1]
            if isinstance(node.value, ast.Name) and context.kind(node.value.id) == "state":
                return self._builder.read(f"{node.value.id}$value")
        if context.scope.lookup(node) is not MISSING:
            return self._captured(node)
        self._refuse_missing(node)
        if node.attr.startswith("_"):
            raise Unfit(node, f"the attribute {node.attr!r} does not compile", "use a host function that takes the value")
        return self._ask_host(f"~@{node.attr}", [self.value(node.value)], (), node)

    def _refuse_missing(self, node: ast.Attribute) -> None:
        module = self._context.scope.lookup(node.value)
        if isinstance(module, ModuleType):
            names = getattr(module, "__all__", None) or [name for name in dir(module) if not name.startswith("_")]
            raise Unfit(node, f"the module {module.__name__!r} has no {node.attr!r}", meant(node.attr, names))

    # calls

    def _call(self, node: ast.Call) -> Value:
        context, conversations = self._context, self._context.conversations
        verb = conversations.verb(node.func)
        if verb in ROLE_VERBS and context.ambient:
            return conversations.speak(str(verb), node)
        if conversations.is_content(node):
            raise Unfit(node, "a generation has no value before it is appended", 's += …, then read s["name"]')
        program = conversations.called_program(node)
        if program is not None:
            _, value = conversations.run_program(program, node)
            if not program.ambient and node.args and self.is_conversation(node.args[0]):
                return value
            raise Unfit(node, "the result of a program is a conversation, not a value", 'use .value, ["name"] or .text() of it')
        if isinstance(node.func, ast.Attribute) and self.is_conversation(node.func.value):
            return self._conversation_method(node.func, node)
        if isinstance(node.func, ast.Attribute) and conversations.group(node.func.value) is not None:
            return self._group_method(node.func, node)
        return self._builtin_or_host(node)

    def _conversation_method(self, function: ast.Attribute, node: ast.Call) -> Value:
        conversations = self._context.conversations
        if isinstance(function.value, ast.Name) and self._context.kind(function.value.id) == "turn":
            return self._turn_method(function, node)
        place = conversations.place(function.value)
        if place is not None:
            return conversations.method(place, function.attr, node)
        hidden = self._context.fresh("result")
        self._builder.write(hidden, self.state(function.value))
        return conversations.method(Place(hidden), function.attr, node)

    def _turn_method(self, function: ast.Attribute, node: ast.Call) -> Value:
        if function.attr != "text" or node.args:
            raise Unfit(node, f"{function.attr}() of a turn does not compile", "str(turn) is its text")
        assert isinstance(function.value, ast.Name)
        return self._builder.read(function.value.id)

    def _group_method(self, function: ast.Attribute, node: ast.Call) -> Value:
        if function.attr != "join":
            raise Unfit(node, f"{function.attr}() of a group of forks does not compile", "join(), forks[i], for f in forks, len(forks)")
        return self._context.conversations.join(str(self._context.conversations.group(function.value)), node)

    def _builtin_or_host(self, node: ast.Call) -> Value:
        context = self._context
        found = context.scope.lookup(node.func)
        if found is not MISSING and id(found) in _CALLABLES:
            return self._builtin(_CALLABLES[id(found)], node)
        if found is not MISSING and callable(found):
            return self._host_call(node)
        if isinstance(node.func, ast.Attribute) and found is MISSING:
            self._refuse_missing(node.func)
            if f".{node.func.attr}" in BUILTINS:
                return self._method_call(node.func, node)
            return self._host_method(node.func, node)
        raise Unfit(node, f"{ast.unparse(node.func)} cannot be called", "call a function of the module, a builtin or another program")

    def _method_call(self, function: ast.Attribute, node: ast.Call) -> Value:
        target = function.value
        if isinstance(target, ast.Name) and not self._context.scope.is_local(target.id) and BUILTINS[f".{function.attr}"].writes:
            raise Unfit(node, f"the captured {target.id!r} cannot be changed by a program", f"copy it first: mine = list({target.id})")
        _refuse_key(node)
        receiver = self.value(target)
        args, keys = self._arguments(node)
        return self._context.call(f".{function.attr}", [receiver, *args], node, keys)

    def _host_method(self, function: ast.Attribute, node: ast.Call) -> Value:
        """A method that is no builtin, of an object that only the host has."""
        if function.attr == "popitem" or function.attr.startswith("_"):
            raise Unfit(node, f"the method {function.attr}() does not compile", "use a host function that takes the value")
        receiver = self.value(function.value)
        args, keys = self._arguments(node)
        return self._ask_host(f"~.{function.attr}", [receiver, *args], keys, node)

    def _ask_host(self, name: str, args: Sequence[Value], keys: Sequence[str], node: ast.AST) -> Value:
        out = self._builder.values.new(Type.JSON)
        self._builder.emit(HostCall(function=name, args=tuple(args), keys=tuple(keys), out=out, loc=self._context.loc(node)))
        return out

    def _builtin(self, name: str, node: ast.Call) -> Value:
        group = self._context.conversations.group(node.args[0]) if name == "len" and len(node.args) == 1 else None
        if group is not None:
            return self._context.conversations.inspect(self._builder.read(group), "size", node)
        if name in ("any", "all") and len(node.args) == 1 and isinstance(node.args[0], ast.GeneratorExp):
            return self._context.loops.any_or_all(name, node.args[0])
        _refuse_key(node)
        args, keys = self._arguments(node)
        return self._context.call(name, args, node, keys)

    def _host_call(self, node: ast.Call) -> Value:
        if uses_language(self._context.scope.lookup(node.func), self._context.verbs):
            raise Unfit(
                node,
                f"{ast.unparse(node.func)}() builds expressions of the language, which a host function cannot",
                "make it a @sgl.function and call it with the conversation: name(s, …)",
            )
        args, keys = self._arguments(node)
        return self._ask_host(ast.unparse(node.func), args, keys, node)

    def _arguments(self, node: ast.Call) -> tuple[list[Value], list[str]]:
        args = [self.value(arg) for arg in node.args]
        keys: list[str] = []
        for keyword in node.keywords:
            if keyword.arg is None:
                raise Unfit(keyword.value, "** does not compile in a call", "write the arguments out")
            args.append(self.value(keyword.value))
            keys.append(keyword.arg)
        return args, keys

    def program_arguments(self, program: ProgramObject, node: ast.Call, *, skip: bool) -> tuple[list[Value], dict[str, Value]]:
        """Values for the parameters of another program, in order, and the run options given in the call."""
        signature = inspect.signature(program.function)
        parameters = list(signature.parameters.values())[0 if program.ambient else 1 :]
        names = [parameter.name for parameter in parameters]
        positional, keywords = [self.value(arg) for arg in node.args[1 if skip else 0 :]], {}
        for keyword in node.keywords:
            if keyword.arg not in names and (keyword.arg not in RUN_OPTIONS or skip):
                raise Unfit(
                    keyword.value,
                    f"{keyword.arg!r} is neither a parameter nor a sampling option",
                    "pass control options to the outer run()",
                )
            keywords[str(keyword.arg)] = self.value(keyword.value)
        given = dict(zip(names, positional, strict=False))
        if len(positional) > len(names) or given.keys() & keywords.keys():
            raise Unfit(node, "wrong number of arguments", f"{program.function.__name__}{signature}")
        given |= {name: value for name, value in keywords.items() if name in names}
        values = [given[p.name] if p.name in given else self._default(program, p, node) for p in parameters]
        return values, {name: value for name, value in keywords.items() if name not in names}

    def _default(self, program: ProgramObject, parameter: inspect.Parameter, node: ast.Call) -> Value:
        value = program.bound.get(parameter.name, parameter.default)
        if value is parameter.empty:
            raise Unfit(
                node, f"the argument {parameter.name!r} is missing", f"{program.function.__name__}{inspect.signature(program.function)}"
            )
        if not is_plain(value):
            raise Unfit(node, f"the default of {parameter.name!r} cannot travel", "pass plain values")
        return self._context.const(value, node)


def _refuse_key(node: ast.Call) -> None:
    for keyword in node.keywords:
        if keyword.arg == "key":
            raise Unfit(
                keyword.value,
                "key= takes a function, which cannot become part of the program",
                "order pairs instead, max([(len(w), w) for w in words]), or do it in a host function",
            )
