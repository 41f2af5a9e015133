"""The grammar of a whole reply: what it lets through is exactly what the parser reads as calls that keep the tools' schemas."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from ramet.errors import GrammarError, Unsupported
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.lowering import lower
from ramet.grammar.matcher import Matcher, Vocabulary
from ramet.server.openai.chat_dialect import ChatDialect
from ramet.server.openai.grammar_complaints import blamed
from ramet.server.openai.reply_grammar import ReplyConstraint, reply_constraint
from ramet.server.openai.schema import ChatRequest
from ramet.server.openai.tool_use import CallableTool, ToolUse
from ramet.server.parsers.formats import think_tags, tool_format
from ramet.server.parsers.reply_parser import ReplyParser, parse_reply

EOS, SPECIAL = 256, 257
VOCABULARY = Vocabulary((*(bytes([i]) for i in range(256)), b"", b"", b"", b"", b"", b"", b""), frozenset(range(256, 263)), (EOS,), 263)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = CallableTool("get_weather", CITY, "tools[0].function.parameters", True)
CLOCK = CallableTool("clock", {"type": "object", "properties": {}, "additionalProperties": False}, "tools[1].function.parameters", True)
ANY = CallableTool("clock", {"type": "object"}, "tools[1].function.parameters", False)
FORMATS = ("hermes", "llama3", "mistral", "deepseekv3", "pythonic")


@pytest.fixture(scope="module")
def compiler() -> LlguidanceCompiler:
    return LlguidanceCompiler(VOCABULARY)


def tokens(text: str, special_ids: dict[str, int]) -> list[int]:
    for marker, token in special_ids.items():
        before, found, after = text.partition(marker)
        if found:
            return [*tokens(before, special_ids), token, *tokens(after, special_ids)]
    return list(text.encode())


def accepts(compiler: LlguidanceCompiler, constraint: ReplyConstraint, text: str, special_ids: dict[str, int] | None = None) -> bool:
    ((kind, source),) = constraint.sampling.items()
    matcher = compiler.compile(kind, source).matcher()
    ids = tokens(text, special_ids or {})
    return matcher.accept(ids) == len(ids) and matcher.complete


def written(name: str, *calls: tuple[str, dict[str, Any]], mode: str = "required") -> str:
    """As the grammar has it: where the calls are structural tags, their JSON is compact."""
    wire = tool_format(name).wire
    separators = (",", ":") if name == "hermes" and mode == "auto" else (", ", ": ")
    if wire.python_arguments:
        texts = [
            wire.call(tool, ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()))
            for tool, values in calls
        ]
    else:
        texts = [wire.call(tool, json.dumps(values, ensure_ascii=False, separators=separators)) for tool, values in calls]
    return wire.calls(texts)


Calls = list[tuple[str, dict[str, Any]]]
GOOD: list[Calls] = [
    [("get_weather", {"city": "Bern"})],
    [("get_weather", {"city": 'a"b\\ü\n', "days": 3}), ("clock", {})],
]
BAD: list[Calls] = [
    [("get_weather", {"days": 3})],
    [("get_weather", {"city": 3})],
    [("get_weather", {"city": "Bern", "days": 0})],
    [("nobody", {})],
]


@pytest.mark.parametrize("name", FORMATS)
def test_required_calls_follow_the_schema(compiler: LlguidanceCompiler, name: str) -> None:
    dialect, use = ChatDialect(tools=tool_format(name)), ToolUse("required", (WEATHER, CLOCK))
    constraint = reply_constraint(dialect, use, False, {})
    for calls in GOOD:
        text = written(name, *calls)
        assert accepts(compiler, constraint, text)
        reply = parse_reply(ReplyParser(tool_format=dialect.tools, tools=use.names), text)
        assert [(call.name, json.loads(call.arguments)) for call in reply.calls] == calls
        assert reply.text == ""
    assert not any(accepts(compiler, constraint, written(name, *calls)) for calls in BAD)
    assert not accepts(compiler, constraint, "no call at all")
    assert not accepts(compiler, constraint, "")


@pytest.mark.parametrize("name", FORMATS)
def test_without_parallel_calls_one_is_the_end(compiler: LlguidanceCompiler, name: str) -> None:
    for mode in ("required", "auto"):
        use = ToolUse(mode, (WEATHER, CLOCK), parallel=False)
        constraint = reply_constraint(ChatDialect(tools=tool_format(name)), use, False, {})
        assert accepts(compiler, constraint, written(name, *GOOD[0]))
        assert not accepts(compiler, constraint, written(name, *GOOD[1]))


@pytest.mark.parametrize("name", FORMATS)
def test_auto_lets_text_through_and_no_wrong_call(compiler: LlguidanceCompiler, name: str) -> None:
    dialect, use = ChatDialect(tools=tool_format(name)), ToolUse("auto", (WEATHER, ANY))
    constraint = reply_constraint(dialect, use, False, {})
    for text in ("", "Hello {there} [1](x) <b>", "line\nline"):
        assert accepts(compiler, constraint, text)
    for calls in GOOD:
        assert accepts(compiler, constraint, written(name, *calls, mode="auto"))
    for calls in BAD:
        text = written(name, *calls, mode="auto")
        reply = parse_reply(ReplyParser(tool_format=dialect.tools, tools=use.names), text)
        assert not accepts(compiler, constraint, text) or reply.calls == []
    if tool_format(name).wire.trigger:
        assert accepts(compiler, constraint, "Let me see.\n" + written(name, *GOOD[0], mode="auto"))
        assert not accepts(compiler, constraint, "Let me see.\n" + written(name, *BAD[0], mode="auto"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_tool_that_is_not_exact_takes_any_object(compiler: LlguidanceCompiler, name: str) -> None:
    constraint = reply_constraint(ChatDialect(tools=tool_format(name)), ToolUse("auto", (WEATHER, ANY)), False, {})
    calls = [("clock", {"anything": [1, {"x": "a)"}]})]
    assert accepts(compiler, constraint, written(name, *calls, mode="auto"))


@pytest.mark.parametrize("name", FORMATS)
def test_required_calls_are_whole_however_few_tokens_there_are(compiler: LlguidanceCompiler, name: str) -> None:
    fmt, use = tool_format(name), ToolUse("required", (WEATHER, CLOCK))
    special_ids = {marker: SPECIAL + index for index, marker in enumerate(fmt.wire.markers)}
    constraint = reply_constraint(ChatDialect(tools=fmt, special_ids=special_ids), use, False, {})
    lowered = lower("ebnf", constraint.sampling["ebnf"])
    language = lowered.read()
    least = len(compiler._spelling.spell(language.walker.witness(language.start)))
    markers = {token: marker for marker, token in special_ids.items()}
    for budget in (least, least + 1, least + 13, least + 60):
        text = longest_reply(compiler.assemble(lowered).matcher(budget), budget, markers)
        reply = parse_reply(ReplyParser(tool_format=fmt, tools=use.names), text)
        assert reply.calls and not reply.text, text
        for call in reply.calls:
            jsonschema.validate(json.loads(call.arguments), {"get_weather": WEATHER, "clock": CLOCK}[call.name].schema)


def longest_reply(matcher: Matcher, budget: int, markers: dict[int, str]) -> str:
    """Ends only where nothing else may come."""
    rng, text = random.Random(budget), b""
    row = np.zeros(-(-VOCABULARY.size // 32), np.uint32)
    for _ in range(budget):
        matcher.fill_mask(row)
        choices = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
        if not (texts := [token for token in choices if token != EOS]):
            break
        token = rng.choice(texts)
        assert matcher.accept([token]) == 1
        text += markers[token].encode() if token in markers else bytes([token])
    assert matcher.complete
    return text.decode()


def test_auto_without_exact_tools_is_free() -> None:
    use = ToolUse("auto", (ANY,))
    tags = {"structural_tag": "{}"}
    assert reply_constraint(ChatDialect(tools=tool_format("hermes")), use, False, tags) == ReplyConstraint(tags)
    assert reply_constraint(ChatDialect(tools=tool_format("hermes")), use, False, {}) == ReplyConstraint({})


@pytest.mark.parametrize("name", ["mistral", "deepseekv3"])
def test_markers_that_are_special_tokens(compiler: LlguidanceCompiler, name: str) -> None:
    fmt = tool_format(name)
    special_ids = {marker: SPECIAL + index for index, marker in enumerate(fmt.wire.markers)}
    for mode in ("required", "auto"):
        constraint = reply_constraint(ChatDialect(tools=fmt, special_ids=special_ids), ToolUse(mode, (WEATHER, CLOCK)), False, {})
        for calls in GOOD:
            assert accepts(compiler, constraint, written(name, *calls), special_ids)
        assert not any(accepts(compiler, constraint, written(name, *calls), special_ids) for calls in BAD)
        assert accepts(compiler, constraint, "Hm.", special_ids) == (mode == "auto")


ANSWERS = [
    ({"json_schema": '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'}, '{"a":1}', '{"a":"x"}'),
    ({"regex": r"^(yes|n/o)\d$"}, "n/o7", "yes"),
    ({"regex": "a\\\nb[/\n]"}, "a\nb/", "a\\nb/"),
    ({"ebnf": 'start: "a" start | B // start\nB: /[st]art/'}, "aatart", "aax"),
]


@pytest.mark.parametrize(("answer", "good", "bad"), ANSWERS)
@pytest.mark.parametrize("special", [False, True])
def test_thoughts_come_before_a_constrained_answer(
    compiler: LlguidanceCompiler, answer: dict[str, str], good: str, bad: str, special: bool
) -> None:
    special_ids = {"<think>": SPECIAL, "</think>": SPECIAL + 1} if special else {}
    dialect = ChatDialect(thoughts=think_tags("qwen3"), special_ids=special_ids)

    def check(thinking: bool | None, text: str) -> bool:
        return accepts(compiler, reply_constraint(dialect, ToolUse(), thinking, answer), text, special_ids)

    assert check(True, f"hm {{\n</think>\n\n{good}")
    assert not check(True, good)
    assert not check(True, f"hm</think>{bad}")
    assert check(None, f"<think>hm</think>\n{good}")
    assert check(None, good)
    assert not check(None, f"hm{good}")
    assert check(False, good)
    assert not check(False, f"<think>hm</think>\n{good}")


WRONG_REGEXES = ["(a", "ab/(c", "x$y", "[z-a]", r"a\q", "a|*", "/\n\t(//", "a{3,1}", "a(?=b)", "[a"]


@pytest.mark.parametrize("regex", WRONG_REGEXES)
def test_a_wrong_regex_is_blamed_alike_with_thoughts_before_it(compiler: LlguidanceCompiler, regex: str) -> None:
    with pytest.raises(GrammarError, match=r"^regex: .+ \(at char \d+\)$") as alone:
        compiler.compile("regex", regex)
    body = ChatRequest(model="default", messages=[{"role": "user", "content": "a"}], regex=regex)
    with pytest.raises(GrammarError) as caught:
        constraint = reply_constraint(ChatDialect(thoughts=think_tags("qwen3")), ToolUse(), True, {"regex": regex})
        try:
            compiler.compile("ebnf", constraint.sampling["ebnf"])
        except GrammarError as error:
            raise blamed(body, constraint, error) from error
    assert (caught.value.message, caught.value.param) == (alone.value.message, "regex")


def test_a_broken_regex_inside_an_ebnf_says_why(compiler: LlguidanceCompiler) -> None:
    with pytest.raises(GrammarError, match=r"ebnf: in /\(b/: unclosed group \(at line 2, column \d+, char 0\)"):
        compiler.compile("ebnf", 'start: "a" b\nb: /(b/')


def test_thoughts_before_calls(compiler: LlguidanceCompiler) -> None:
    dialect = ChatDialect(tools=tool_format("hermes"), thoughts=think_tags("qwen3"))
    constraint = reply_constraint(dialect, ToolUse("required", (WEATHER,)), True, {})
    assert accepts(compiler, constraint, "perhaps <tool_call></think>\n\n" + written("hermes", *GOOD[0]))
    assert not accepts(compiler, constraint, "hm</think>\n\nBern!")


@pytest.mark.parametrize(
    "schema", ['{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}', '{"type": "object"}']
)
@pytest.mark.parametrize("name", FORMATS)
def test_calls_or_a_constrained_answer(compiler: LlguidanceCompiler, name: str, schema: str) -> None:
    tools = (replace(WEATHER, exact=False), replace(CLOCK, exact=False)) if name == "llama3" else (WEATHER, CLOCK)
    constraint = reply_constraint(ChatDialect(tools=tool_format(name)), ToolUse("auto", tools), False, {"json_schema": schema})
    assert accepts(compiler, constraint, '{"a":1}')
    assert accepts(compiler, constraint, written(name, *GOOD[1]))
    assert not accepts(compiler, constraint, "free text")


def test_bare_calls_and_answers_cannot_be_told_apart() -> None:
    with pytest.raises(Unsupported, match=r"tools\[0\].function.strict"):
        reply_constraint(ChatDialect(tools=tool_format("llama3")), ToolUse("auto", (WEATHER,)), False, {"json_schema": "{}"})


def test_what_cannot_be_combined_is_refused_by_name() -> None:
    dialect = ChatDialect(thoughts=think_tags("qwen3"))
    with pytest.raises(Unsupported, match="GBNF") as caught:
        reply_constraint(dialect, ToolUse(), None, {"ebnf": 'root ::= "a"'})
    assert caught.value.param == "ebnf"
    with pytest.raises(Unsupported) as caught:
        reply_constraint(dialect, ToolUse(), None, {"structural_tag": "{}"})
    assert caught.value.param == "structural_tag"
    unsayable = CallableTool("f", {"type": "object", "properties": {"my-key": {}}}, "tools[0].function.parameters", True)
    with pytest.raises(Unsupported, match="properties/my-key"):
        reply_constraint(ChatDialect(tools=tool_format("pythonic")), ToolUse("required", (unsayable,)), False, {})
    limited = CallableTool("f", {"type": "object", "minProperties": 2}, "tools[0].function.parameters", True)
    with pytest.raises(Unsupported, match=r"tools\[0\].function.parameters/minProperties"):
        reply_constraint(ChatDialect(tools=tool_format("pythonic")), ToolUse("required", (limited,)), False, {})


@pytest.mark.parametrize("name", FORMATS)
def test_a_complaint_finds_its_tool(compiler: LlguidanceCompiler, name: str) -> None:
    wrong = CallableTool("g", {"type": "object", "properties": {"x": {"type": "nonsense"}}}, "tools[1].function.parameters", True)
    constraint = reply_constraint(ChatDialect(tools=tool_format(name)), ToolUse("required", (WEATHER, wrong)), False, {})
    with pytest.raises(GrammarError, match=r"line (\d+)") as caught:
        compiler.compile("ebnf", constraint.sampling["ebnf"])
    line = int(caught.value.message.split("line ")[1].split(",")[0].rstrip(")"))
    assert constraint.tools[line] is wrong
