"""Lowering of what the language adds to Python: verbs, roles, conversations, forks, calls of other programs."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ramet.compiler.context import Context, Member
from ramet.compiler.diagnostics import Unfit, meant
from ramet.compiler.scope import MISSING, ProgramObject
from ramet.ir.ops import Append, Fork, Gen, GetVar, Inspect, Join, Open, ProgramCall, Put, Select, SetVar, Take
from ramet.ir.types import Type, Value

ROLE_VERBS = ("system", "user", "assistant")
GEN_POSITIONS = (
    *("name", "max_tokens", "min_tokens", "n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p"),
    *("frequency_penalty", "presence_penalty", "ignore_eos", "return_logprob", "logprob_start_len", "top_logprobs_num"),
    *("return_text_in_logprobs", "dtype", "choices", "choices_method", "regex", "json_schema"),
)
GEN_KEYWORDS = frozenset(
    {
        *GEN_POSITIONS,
        *("ebnf", "structural_tag", "tools", "repetition_penalty", "seed", "logit_bias", "no_stop_trim", "skip_special_tokens"),
        *("spaces_between_special_tokens", "token_ids_logprob"),
    }
)
SELECT_POSITIONS = ("name", "choices", "temperature", "choices_method")
DEFAULT_MARKERS = "qwen3"
METHOD_VERBS = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text, or the border of a turn: `shape` as in `ir.ops.Append`."""

    shape: str
    node: ast.AST
    text: Value | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A gen, or with `choices` a select."""

    node: ast.AST
    name: Value | None
    args: tuple[Value, ...]
    keys: tuple[str, ...]
    choices: Value | None = None
    method: str = METHOD_VERBS[0]


Content = Piece | Generation


@dataclass(frozen=True, slots=True)
class Place:
    """Where a conversation lives: a variable, or (with `index`) one branch of the group in it."""

    variable: str
    index: str | None = None


class ConversationLowering:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._builder = context.builder

    # places

    def place(self, node: ast.expr) -> Place | None:
        """The conversation that an expression names, if it names one."""
        context = self._context
        if isinstance(node, ast.Name):
            kind = context.kind(node.id)
            if isinstance(kind, Member):
                return Place(kind.group, kind.index)
            return Place(context.aliases.get(node.id, node.id)) if kind == "state" else None
        if isinstance(node, ast.Subscript) and self.group(node.value) is not None and not _is_text(node.slice):
            index = context.fresh("index")
            self._builder.write(index, context.expressions.value(node.slice))
            return Place(str(self.group(node.value)), index)
        return None

    def group(self, node: ast.expr) -> str | None:
        return node.id if isinstance(node, ast.Name) and self._context.kind(node.id) == "group" else None

    def read(self, place: Place, node: ast.AST) -> Value:
        held = self._builder.read(place.variable)
        if place.index is None:
            return held
        out = self._builder.values.new(Type.STATE)
        self._builder.emit(Take(group=held, index=self._builder.read(place.index), out=out, loc=self._context.loc(node)))
        return out

    def write(self, place: Place, state: Value, node: ast.AST) -> None:
        if place.index is not None:
            out = self._builder.values.new(Type.GROUP)
            group, index = self._builder.read(place.variable), self._builder.read(place.index)
            self._builder.emit(Put(group=group, index=index, state=state, out=out, loc=self._context.loc(node)))
            state = out
        self._builder.write(place.variable, state)

    # expressions of the language

    def verb(self, node: ast.expr) -> str | None:
        """The verb that a call's function names."""
        found = self._context.scope.lookup(node) if isinstance(node, ast.Name | ast.Attribute) else MISSING
        return None if found is MISSING else self._context.verbs.names.get(id(found))

    def is_content(self, node: ast.expr) -> bool:
        """Does the expression build something to append (a verb, or text joined with one)?"""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.is_content(node.left) or self.is_content(node.right)
        verb = self.verb(node.func) if isinstance(node, ast.Call) else None
        return verb is not None and verb not in METHOD_VERBS and not (self._context.ambient and verb in ROLE_VERBS)

    def content(self, node: ast.expr) -> list[Content]:
        """Evaluates an expression to append, left to right; nothing is appended yet."""
        if isinstance(node, ast.BinOp) and self.is_content(node):
            return [*self.content(node.left), *self.content(node.right)]
        if isinstance(node, ast.Call) and self.is_content(node):
            return self._verb_content(str(self.verb(node.func)), node)
        if isinstance(node, ast.IfExp) and (self.is_content(node.body) or self.is_content(node.orelse)):
            raise Unfit(node, "a conditional expression cannot choose between generations", "use an if statement")
        return [Piece("text", node, self._context.expressions.value(node))]

    def _verb_content(self, verb: str, node: ast.Call) -> list[Content]:
        if verb in ROLE_VERBS:
            return self.turn(verb, node)
        if verb in ("gen", "gen_int", "gen_string"):
            return [self._gen(verb, node)]
        if verb == "select":
            return [self._select(node, self._arguments(node, SELECT_POSITIONS, frozenset({*SELECT_POSITIONS, "seed"})))]
        if verb == "separate_reasoning":
            return self._separate_reasoning(node)
        role, _, border = verb.partition("_")
        if border in ("begin", "end"):
            return [Piece(f"{border}:{role}", node)]
        raise Unfit(node, f"{verb}() does not compile: no backend takes images, and it is refused when it runs", "describe it in words")

    def _separate_reasoning(self, node: ast.Call) -> list[Content]:
        """Each gen inside is told which markers its thoughts have."""
        given = self._arguments(node, ("expr", "model_type"), frozenset({"expr", "model_type"}))
        inner = self.content(given["expr"]) if "expr" in given and not _is_none(given["expr"]) else []
        named = "model_type" in given and not _is_none(given["model_type"])
        markers = self._context.expressions.value(given["model_type"]) if named else self._context.const(DEFAULT_MARKERS, node)
        return [
            replace(item, args=(*item.args, markers), keys=(*item.keys, "reasoning"))
            if isinstance(item, Generation) and item.choices is None
            else item
            for item in inner
        ]

    def turn(self, role: str, node: ast.Call) -> list[Content]:
        """`user(expr)` and its siblings, as function or method; an assistant turn without content is generated."""
        given = self._arguments(node, ("expr",), frozenset({"expr"}))
        inner = self.content(given["expr"]) if "expr" in given and not _is_none(given["expr"]) else []
        if not inner and role == "assistant" and self.verb(node.func):
            inner = [Generation(node, None, (), ())]
        return [Piece(f"begin:{role}", node), *inner, Piece(f"end:{role}", node)]

    def _arguments(self, node: ast.Call, positions: Sequence[str], known: frozenset[str]) -> dict[str, ast.expr]:
        if len(node.args) > len(positions):
            raise Unfit(node, f"at most {len(positions)} positional arguments are known", "name the arguments")
        given = dict(zip(positions, node.args, strict=False))
        for keyword in node.keywords:
            if keyword.arg is None:
                raise Unfit(keyword.value, "** does not compile in a verb", "write the arguments out")
            if keyword.arg not in known:
                raise Unfit(keyword, f"the argument {keyword.arg!r} is not known here", meant(keyword.arg, known))
            if keyword.arg in given:
                raise Unfit(keyword, f"the argument {keyword.arg!r} is given twice", "leave one out")
            given[keyword.arg] = keyword.value
        return given

    def _gen(self, verb: str, node: ast.Call) -> Generation:
        given = self._arguments(node, GEN_POSITIONS if verb == "gen" else GEN_POSITIONS[:2], GEN_KEYWORDS)
        given = {key: value for key, value in given.items() if not _is_none(value)}
        if "choices" in given:
            if extra := sorted(given.keys() - {"name", "choices", "choices_method", "temperature", "seed"}):
                raise Unfit(node, "gen(choices=…) scores the choices and samples no tokens", f"drop {', '.join(extra)}")
            return self._select(node, given)
        name = self._context.expressions.value(given.pop("name")) if "name" in given else None
        pairs = [(key, self._gen_argument(key, value)) for key, value in given.items()]
        if "json_schema" in given and self._model_schema(given["json_schema"]) is not None:
            pairs.append(("model", self._context.const(ast.unparse(given["json_schema"]), node)))
        if verb != "gen":
            pairs = [(k, v) for k, v in pairs if k != "dtype"]
            pairs.append(("dtype", self._context.const("int" if verb == "gen_int" else "str", node)))
        return Generation(node, name, tuple(value for _, value in pairs), tuple(key for key, _ in pairs))

    def _gen_argument(self, key: str, node: ast.expr) -> Value:
        if key == "dtype":
            found = self._context.scope.lookup(node)
            if isinstance(found, type):
                return self._context.const(found.__name__, node)
        schema = self._model_schema(node) if key == "json_schema" else None
        return self._context.expressions.value(node) if schema is None else self._context.const(schema, node)

    def _model_schema(self, node: ast.expr) -> Any:
        """Of a model class (pydantic's, or one that quacks like it), which the client makes instances of."""
        found = self._context.scope.lookup(node)
        describe = getattr(found, "model_json_schema", None) if isinstance(found, type) else None
        return None if describe is None else describe()

    def _select(self, node: ast.Call, given: dict[str, ast.expr]) -> Generation:
        if "choices" not in given:
            raise Unfit(node, "select() needs choices", 'select("name", choices=["yes", "no"])')
        values = {
            key: self._context.expressions.value(value) for key, value in given.items() if key != "choices_method" and not _is_none(value)
        }
        method = METHOD_VERBS[0]
        if "choices_method" in given and not _is_none(given["choices_method"]):
            method = self.verb(given["choices_method"]) or ""
            if method not in METHOD_VERBS:
                raise Unfit(
                    given["choices_method"], "this choices_method is no constant of the language", f"use one of {', '.join(METHOD_VERBS)}"
                )
        rest = {key: value for key, value in values.items() if key not in ("name", "choices")}
        return Generation(node, values.get("name"), tuple(rest.values()), tuple(rest), values["choices"], method)

    # appending

    def append(self, place: Place, content: Sequence[Content], node: ast.AST) -> list[Value]:
        """Returns the values generated, in order."""
        state, values = self.extend(self.read(place, node), content)
        self.write(place, state, node)
        return values

    def extend(self, state: Value, content: Sequence[Content]) -> tuple[Value, list[Value]]:
        values: list[Value] = []
        for item in content:
            out = self._builder.values.new(state.type)
            if isinstance(item, Piece):
                texts = (item.text,) if item.text is not None else ()
                self._builder.emit(Append(state=state, texts=texts, shape=(item.shape,), out=out, loc=self._context.loc(item.node)))
            else:
                values.append(self._generate(state, item, out))
            state = out
        return state, values

    def _generate(self, state: Value, item: Generation, out: Value) -> Value:
        value = self._builder.values.new(Type.LIST if state.type is Type.GROUP else Type.JSON)
        loc = self._context.loc(item.node)
        if item.choices is None:
            self._builder.emit(Gen(state=state, name=item.name, args=item.args, keys=item.keys, out=out, value=value, loc=loc))
        else:
            op = Select(
                state=state,
                choices=item.choices,
                name=item.name,
                args=item.args,
                keys=item.keys,
                method=item.method,
                out=out,
                value=value,
                loc=loc,
            )
            self._builder.emit(op)
        return value

    def speaks(self, node: ast.expr) -> bool:
        """Does the expression stand for turns of the ambient conversation: spoken here, kept in a name, or several added up?"""
        if not self._context.ambient:
            return False
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.speaks(node.left) and self.speaks(node.right)
        if isinstance(node, ast.Name):
            return self._context.kind(node.id) == "turn"
        return isinstance(node, ast.Call) and self.verb(node.func) in ROLE_VERBS

    def speak(self, role: str, node: ast.Call) -> Value:
        """A turn in the ambient conversation; its value is what was said."""
        begin, *inner, end = self.turn(role, node)
        place = Place(self._context.conversation)
        self.append(place, [begin], node)
        if all(isinstance(item, Piece) and item.shape == "text" for item in inner):
            texts = [item.text for item in inner if isinstance(item, Piece) and item.text is not None]
            self.append(place, [*inner, end], node)
            return self._context.call("concat", texts, node)
        mark = self.inspect(self.read(place, node), "mark", node)
        self.append(place, inner, node)
        said = self.inspect(self.read(place, node), "since", node, mark)
        self.append(place, [end], node)
        return said

    def broadcast(self, group: str, node: ast.expr) -> None:
        """`forks += …` on every branch."""
        if isinstance(node, ast.Lambda):
            self._context.loops.broadcast_lambda(group, node)
        elif isinstance(node, ast.List | ast.Tuple | ast.ListComp):
            raise Unfit(node, "a list of expressions for a group does not compile", "for f, x in zip(forks, items): f += x")
        else:
            self.append(Place(group), self.content(node), node)

    # reading

    def inspect(self, state: Value, what: str, node: ast.AST, arg: Value | None = None) -> Value:
        kinds = {
            "text": Type.TEXT,
            "since": Type.TEXT,
            "mark": Type.INT,
            "size": Type.INT,
            "has": Type.BOOL,
            "messages": Type.LIST,
            "meta": Type.JSON,
        }
        out = self._builder.values.new(kinds[what])
        self._builder.emit(Inspect(state=state, what=what, arg=arg, out=out, loc=self._context.loc(node)))
        return out

    def get_var(self, state: Value, name: Value, node: ast.AST) -> Value:
        out = self._builder.values.new(Type.JSON)
        self._builder.emit(GetVar(state=state, name=name, out=out, loc=self._context.loc(node)))
        return out

    def set_var(self, place: Place, name: Value, value: Value, node: ast.AST) -> None:
        out = self._builder.values.new(Type.STATE)
        self._builder.emit(SetVar(state=self.read(place, node), name=name, value=value, out=out, loc=self._context.loc(node)))
        self.write(place, out, node)

    # methods of a conversation and of a group

    def method(self, place: Place, name: str, node: ast.Call) -> Value:
        evaluate = self._context.expressions.value
        if name in ROLE_VERBS:
            self.append(place, self.turn(name, node), node)
            return self._context.const(None, node)
        for keyword in node.keywords:
            raise Unfit(keyword, f"{name}() of a conversation takes no argument by name here", "give it by position")
        if name in ("text", "messages") and not node.args:
            return self.inspect(self.read(place, node), name, node)
        elif name == "get_meta_info" and len(node.args) == 1:
            return self.inspect(self.read(place, node), "meta", node, evaluate(node.args[0]))
        elif name == "get_var" and len(node.args) == 1:
            return self.get_var(self.read(place, node), evaluate(node.args[0]), node)
        elif name == "set_var" and len(node.args) == 2:
            self.set_var(place, evaluate(node.args[0]), evaluate(node.args[1]), node)
        elif name == "sync" and not node.args:
            self.inspect(self.read(place, node), "has", node, self._context.const("", node))
        else:
            raise Unfit(
                node, f"{name}() of a conversation does not compile here", 'read s["name"] or s.text(); fork into a variable of its own'
            )
        return self._context.const(None, node)

    def fork(self, node: ast.expr) -> tuple[Place, ast.expr | None] | None:
        """For `P.fork(n)` and `P.copy()`: the conversation that is forked, and n (None: 1)."""
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("fork", "copy")):
            return None
        place = self.place(node.func.value)
        if place is None:
            return None
        positions = ("size", "position_ids_offset") if node.func.attr == "fork" else ()
        return place, self._arguments(node, positions, frozenset(positions)).get("size")

    def open_group(self, group: str, place: Place, size: ast.expr | None, node: ast.AST) -> None:
        count = self._context.const(1, node) if size is None else self._context.expressions.value(size)
        out, made = self._builder.values.new(Type.STATE), self._builder.values.new(Type.GROUP)
        state = self.read(place, node)
        self._builder.emit(Fork(state=state, count=count, out=out, group=made, loc=self._context.loc(node)))
        self.write(place, out, node)
        self._context.bind(group, "group", node)
        self._builder.write(group, made)
        self._context.parents[group] = place.variable if place.index is None else ""

    def join(self, group: str, node: ast.Call) -> Value:
        given = self._arguments(node, ("mode",), frozenset({"mode"})).get("mode", ast.Constant("gather_variable"))
        mode = given.value if isinstance(given, ast.Constant) else None
        parent = self._context.parents.get(group)
        if not parent or mode not in ("gather_variable", "concate_and_append"):
            raise Unfit(
                node,
                "this join does not compile",
                'fork from a conversation with a name; join("gather_variable") or join("concate_and_append")',
            )
        out = self._builder.values.new(Type.STATE)
        state, members = self._builder.read(parent), self._builder.read(group)
        self._builder.emit(Join(state=state, group=members, mode=mode, out=out, loc=self._context.loc(node)))
        self._builder.write(parent, out)
        return self._context.const(None, node)

    def member(self, name: str, group: str, index: Value, node: ast.AST) -> None:
        """Bind a name to one branch of a group."""
        slot = f"{name}$index"
        self._context.bind(name, Member(group, slot), node)
        self._builder.write(slot, index)

    # other programs

    def called_program(self, node: ast.expr) -> ProgramObject | None:
        """For `f(…)` and `f.run(…)` where f is a program."""
        if not isinstance(node, ast.Call):
            return None
        target = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "run" else node.func
        found = self._context.scope.lookup(target)
        return None if found is MISSING else self._context.verbs.program_of(found)

    def run_program(self, program: ProgramObject, node: ast.Call) -> tuple[Value, Value]:
        """Returns the conversation of the call and what the function returned; a conversation given as first argument goes on in it."""
        place = self.place(node.args[0]) if node.args and not program.ambient else None
        name = self._context.callee(program, node)
        arguments, options = self._context.expressions.program_arguments(program, node, skip=place is not None)
        out, value = self._builder.values.new(Type.STATE), self._builder.values.new(Type.JSON)
        loc = self._context.loc(node)
        if place is not None:
            state = self.read(place, node)
        else:
            state = self._builder.values.new(Type.STATE)
            self._builder.emit(Open(args=tuple(options.values()), keys=tuple(options), out=state, loc=loc))
        self._builder.emit(ProgramCall(function=name, state=state, args=tuple(arguments), out=out, value=value, loc=loc))
        if place is not None:
            self.write(place, out, node)
        return out, value


def _is_text(node: ast.expr) -> bool:
    return (isinstance(node, ast.Constant) and isinstance(node.value, str)) or isinstance(node, ast.JoinedStr)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
