"""One grammar for a whole reply: thoughts, then calls in the model's own format, or free text, or a constrained answer.

Written in Lark, a rule per line, so that a complaint about a line is a complaint about one tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any

from ramet.errors import GrammarError, Unsupported
from ramet.grammar.regex_dialect import translate
from ramet.runtime.sampling_params import GRAMMAR_FIELDS
from ramet.server.openai.chat_dialect import ChatDialect
from ramet.server.openai.tool_use import CallableTool, ToolUse
from ramet.server.parsers.think_tags import ThinkTags
from ramet.server.parsers.tool_format import Wire

COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
AS_TEMPLATES_WRITE = COMPACT | {"item_separator": ", ", "key_separator": ": "}
"""Arguments as templates write them back into later prompts, so that those find the reply in the cache."""
MAX_PARALLEL = 32
"""Calls in one reply: a model that repeats itself comes to an end."""
ANY_JSON = "$$ANY$$"
TEXT = r"R_TEXT: /(.|\n)*/"
LARK_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|/(?:\\.|\[(?:\\.|[^\]\\])*\]|[^/\\])+/|//[^\n]*|\bstart\b')
JSON_TOKEN = re.compile(r'"[^"]*"|[\[\]{}]|[:,] ?|[^"\[\]{}:,]+|"')
PYTHON = (
    'r_python: (R_OTHER | R_STRING | "(" r_python ")" | "[" r_python "]" | "{" r_python "}")*',
    r"R_OTHER: /[^()\[\]{}'\"]+/",
    r"""R_STRING: /"([^"\\\n]|\\.)*"|'([^'\\\n]|\\.)*'/""",
)
"""Arguments without a promise, up to the parenthesis that closes them."""
LINES_PER_KEYWORD = 3
"""Of `keyword_rules`; the value's is the first of them."""
PROPERTY_KEYWORDS = {"type", "properties", "required", "additionalProperties", "title", "description", "$defs", "definitions", "$schema"}

Rules = list[str]


@dataclass(frozen=True, slots=True)
class ReplyConstraint:
    """`sampling`: at most one of json_schema, regex, ebnf, structural_tag, with its source. `tools`: which tool a line of the ebnf, or a
    structure of the structural_tag, is about. `pointers`: where in that tool's schema the schema on a line of the ebnf stands."""

    sampling: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[int, CallableTool] = field(default_factory=dict)
    pointers: Mapping[int, str] = field(default_factory=dict)


def reply_constraint(dialect: ChatDialect, use: ToolUse, thinking: bool | None, answer: Mapping[str, str]) -> ReplyConstraint:
    """`answer`: what the request wants its answer to follow, as in `ReplyConstraint.sampling`. `thinking`: where the reply begins
    (`ThinkTags.state_after`)."""
    may_think = dialect.thoughts is not None and thinking is not False
    excludes_calls = bool(answer) and "structural_tag" not in answer  # which is free text, where it says nothing
    may_call = dialect.tools is not None and (use.is_constrained or (use.mode == "auto" and excludes_calls))
    if not may_call and not (may_think and answer):
        return ReplyConstraint(answer)
    if dialect.tools is not None and not (answer or may_think) and _is_structural(dialect, use):
        return ReplyConstraint({"structural_tag": structural_tag(dialect.tools.wire, use)}, dict(enumerate(use.tools)))
    rules = Grammar(dialect.special_ids)
    answers = [] if use.mode == "required" else answer_rules(answer)
    if answers and dialect.tools is not None:
        _check_apart(dialect.tools.wire, use)
    if may_call and dialect.tools is not None:
        rules.add_calls(dialect.tools.wire, use, answers)
    else:
        rules.lines += ["r_body: r_answer", *answers]
    rules.add_start(dialect.thoughts if may_think else None, bool(thinking))
    return ReplyConstraint({"ebnf": "\n".join(rules.lines) + "\n"}, rules.tools_by_line, rules.pointers_by_line)


def structural_tag(wire: Wire, use: ToolUse) -> str:
    """Free text in which every call is exact: what `structural_tag` is for. It knows its schemas to the last keyword and can close them
    in time."""
    structures = [{"begin": wire.head + tool.name + wire.body, "schema": tool.schema, "end": wire.tail} for tool in use.tools]
    return json.dumps({"triggers": [wire.trigger], "structures": structures}, ensure_ascii=False)


def _is_structural(dialect: ChatDialect, use: ToolUse) -> bool:
    """Each call carries its own marks, as plain text."""
    assert dialect.tools is not None
    wire = dialect.tools.wire
    return use.mode == "auto" and use.parallel and bool(wire.trigger) and not wire.opening and wire.trigger not in dialect.special_ids


class Grammar:
    """Lines of Lark under construction."""

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        self._special_ids = special_ids
        self.lines: Rules = []
        self.tools_by_line: dict[int, CallableTool] = {}
        self.pointers_by_line: dict[int, str] = {}

    def literal(self, text: str) -> str:
        """`text`, its special markers as the tokens they are. It is cut where JSON's own tokens end: a lexer does not go back, so that
        beside a JSON answer one long literal would shut that answer out."""
        pattern = "|".join(re.escape(marker) for marker in self._special_ids) or r"(?!)"
        parts: list[str] = []
        for piece in re.split(f"({pattern})", text):
            if piece in self._special_ids:
                parts.append(f"<[{self._special_ids[piece]}]>")
            else:
                parts += [json.dumps(token, ensure_ascii=False) for token in JSON_TOKEN.findall(piece)]
        return " ".join(parts) or '""'

    def add_start(self, thoughts: ThinkTags | None, inside: bool) -> None:
        """Thoughts end with their tag; what follows is the body."""
        if thoughts is None:
            start = "start: r_body"
        else:
            start = "start: r_think r_body" if inside else f"start: ({self.literal(thoughts.begin)} r_think)? r_body"
            self.lines += self._up_to("r_think", thoughts.end, gap=r" /\n{0,2}/")
        if any("R_TEXT" in line for line in self.lines):
            self.lines.append(TEXT)
        self.lines.append(start)

    def add_calls(self, wire: Wire, use: ToolUse, answers: Rules) -> None:
        """The body: calls, or where they need not be, an answer or free text without calls."""
        for index, tool in enumerate(use.tools):
            self._add_arguments(index, tool, wire)
        for index, tool in enumerate(use.tools):
            self.lines += [f"r_tool_{index}: {self._call(index, tool, wire.head, wire)}"]
        self.lines += ["r_call: " + _any_of("r_tool", use)]
        more = f" ({self.literal(wire.separator)} r_call){{0,{MAX_PARALLEL - 1}}}" if use.parallel else ""
        rest = f"{more} {self.literal(wire.closing)}"
        calls = f"{self.literal(wire.opening)} r_call{rest}"
        if use.mode == "required" or answers:
            self.lines += [f"r_body: {calls}" + (" | r_answer" if answers else ""), *answers]
        elif wire.python_arguments:
            self._add_python_body(wire, use, rest)
        elif wire.trigger:
            self._add_triggered_body(wire, use, rest)
        else:
            self.lines += [f"r_body: R_PLAIN | {calls}", r"R_PLAIN: /\s*([^\s{](.|\n)*)?/"]

    def _call(self, index: int, tool: CallableTool, head: str, wire: Wire) -> str:
        return f"{self.literal(head + tool.name + wire.body)} r_arguments_{index} {self.literal(wire.tail)}"

    def _add_triggered_body(self, wire: Wire, use: ToolUse, rest: str) -> None:
        """Text up to the trigger, from which on everything is as it must be."""
        opening, head = wire.opening.removeprefix(wire.trigger), wire.head
        if not wire.opening:
            head = head.removeprefix(wire.trigger)
        for index, tool in enumerate(use.tools):
            self.lines += [f"r_first_{index}: {self._call(index, tool, head, wire)}"]
        self.lines += self._up_to("r_before", wire.trigger)
        self.lines += [f"r_body: R_TEXT | r_before {self.literal(opening)} ({_any_of('r_first', use)}){rest}"]

    def _add_python_body(self, wire: Wire, use: ToolUse, rest: str) -> None:
        """Each tool's name behind a bracket is a trigger of its own."""
        for index, tool in enumerate(use.tools):
            self.lines += [
                f"r_first_{index}: r_before_{index} r_arguments_{index} {self.literal(wire.tail)}",
                rf"r_before_{index}[lazy]: /(.|\n)*\[\s*{re.escape(tool.name)}\(/",
            ]
        self.lines += [f"r_body: R_TEXT | ({_any_of('r_first', use)}){rest}"]

    def _add_arguments(self, index: int, tool: CallableTool, wire: Wire) -> None:
        first = len(self.lines)
        if not wire.python_arguments:
            self.lines += [f"r_arguments_{index}: %json {_styled(tool.schema, AS_TEMPLATES_WRITE)}"]
        elif tool.exact:
            self.lines += [f"r_arguments_{index}: r_given_{index}_0", *keyword_rules(index, tool)]
            pointers = [f"/properties/{name}" for name in tool.schema.get("properties", {})]
            self.pointers_by_line |= zip(range(first + 2, len(self.lines) + 1, LINES_PER_KEYWORD), pointers, strict=False)
        else:
            self.lines += [f"r_arguments_{index}: r_python", *(PYTHON if PYTHON[0] not in self.lines else ())]
        self.tools_by_line |= dict.fromkeys(range(first + 1, len(self.lines) + 1), tool)

    def _up_to(self, rule: str, marker: str, gap: str = "") -> Rules:
        """`rule`: any text up to the first `marker`, with it, and then `gap`."""
        if marker in self._special_ids:
            return [f"{rule}: R_TEXT? {self.literal(marker)}{gap}"]
        return [f"{rule}: {rule}_text{gap}", f"{rule}_text[lazy]: R_TEXT {self.literal(marker)}"]


def answer_rules(answer: Mapping[str, str]) -> Rules:
    """The rule r_answer and what belongs to it; none where the answer is free."""
    for kind in GRAMMAR_FIELDS:
        if kind not in answer:
            continue
        source = answer[kind]
        if kind == "json_schema":
            return [f"r_answer: %json {_styled(_schema_of(source), COMPACT)}"]
        if kind == "regex":
            return [f"r_answer: /{translate(source).text}/"]
        if kind == "ebnf" and "::=" not in source:
            return LARK_TOKEN.sub(lambda found: "r_answer" if found[0] == "start" else found[0], source).splitlines()
        what = "an ebnf in GBNF (write it in Lark)" if kind == "ebnf" else "a structural_tag"
        raise Unsupported(f"{kind}: {what} cannot be combined with tools, nor with thoughts before the answer", param=kind)
    return []


def keyword_rules(index: int, tool: CallableTool) -> Rules:
    """Arguments as `key=value, …` in the order of the schema's properties; what is required must be there. r_given_I_N: from property N
    on, nothing before it; r_more_I_N: something before it."""
    schema = tool.schema
    unknown = sorted(schema.keys() - PROPERTY_KEYWORDS)
    if unknown:
        raise Unsupported(f"{tool.place}/{unknown[0]}: not enforceable where arguments are Python keywords", param=tool.place)
    properties: Mapping[str, Any] = schema.get("properties", {})
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rules: Rules = []
    for n, (name, value) in enumerate(properties.items()):
        if not name.isidentifier() or iskeyword(name):
            raise Unsupported(f"{tool.place}/properties/{name}: not a name that a Python call can give", param=tool.place)
        given_as = f"{json.dumps(name + '=', ensure_ascii=False)} r_value_{index}_{n}"
        value_schema = value | definitions if isinstance(value, dict) else value
        rules += [f"r_value_{index}_{n}: %json {_styled(value_schema, AS_TEMPLATES_WRITE)}"]
        left_out = name not in schema.get("required", ())
        given = f"{given_as} r_more_{index}_{n + 1}"
        rules += [f"r_given_{index}_{n}: {given}" + (f" | r_given_{index}_{n + 1}" if left_out else "")]
        rules += [f'r_more_{index}_{n}: ", " {given}' + (f" | r_more_{index}_{n + 1}" if left_out else "")]
    return [*rules, f'r_given_{index}_{len(properties)}: ""', f'r_more_{index}_{len(properties)}: ""']


def _check_apart(wire: Wire, use: ToolUse) -> None:
    """Where calls are bare JSON, an answer might be one by accident, and would keep no promise about its arguments."""
    bare = not (wire.opening or wire.trigger)
    exact = next((tool for tool in use.tools if tool.exact), None)
    if bare and exact is not None:
        what = "strict: in this model's format a call looks like a constrained answer"
        raise Unsupported(f"{exact.place.removesuffix('parameters')}{what}; leave out strict or the answer's format", param=exact.place)


def _any_of(rule: str, use: ToolUse) -> str:
    return " | ".join(f"{rule}_{index}" for index in range(len(use.tools)))


def _styled(schema: Any, style: Mapping[str, Any]) -> str:
    """A schema with its layout of JSON, on one line."""
    return json.dumps({"x-guidance": style} | schema if isinstance(schema, dict) else schema, ensure_ascii=False)


def _schema_of(source: str) -> Any:
    if source.strip() == ANY_JSON:
        return {}
    try:
        schema = json.loads(source)
    except ValueError as error:
        raise GrammarError(f"json_schema is not JSON: {error}", param="json_schema") from error
    if not isinstance(schema, dict):
        raise GrammarError("json_schema must be a JSON object", where="#", param="json_schema")
    return schema
