"""What a template does with tools is found by trying it; what it does not do is written for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ramet.errors import InvalidRequest, Unsupported
from ramet.runtime.config import ApiConfig
from ramet.runtime.text.chat_template import JinjaChatTemplate
from ramet.server.openai.chat_dialect import ChatDialect
from ramet.server.openai.chat_prompt import thinking_of
from ramet.server.openai.schema import ChatRequest
from ramet.server.openai.tool_prompt import described
from ramet.server.parsers.formats import tool_format
from ramet.server.parsers.reply_parser import ReplyParser, parse_reply
from tests.server.scripted_engine import ScriptedEngine

TEMPLATES = Path(__file__).parents[1] / "runtime" / "text" / "templates"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
DEEPSEEK = """{% for m in messages %}{% if m.tool_calls %}<｜Assistant｜><｜tool▁calls▁begin｜>{% for c in m.tool_calls %}\
<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```<｜tool▁call▁end｜>\
{% endfor %}<｜tool▁calls▁end｜>{% else %}{{ m.role }}{{ m.content }}{% endif %}{% endfor %}{{ tools }}\
{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"""
MISTRAL = """{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}]\
{% else %}{{ m.content }}{% endif %}{% endfor %}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"""
PYTHONIC = """{% for m in messages %}{% for c in m.tool_calls or [] %}[{{ c.function.name }}({% for k, v in c.function.arguments.items() %}\
{{ k }}={{ v }}{% endfor %})]{% endfor %}{{ m.content }}{% endfor %}{{ tools | tojson }}"""
XML = """{% for m in messages %}{% for c in m.tool_calls or [] %}<tool_call>\n<function={{ c.function.name }}>{{ c.function.arguments }}\
{% endfor %}{{ m.content }}{% endfor %}{{ tools | tojson }}"""
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
CALLS: list[Any] = [
    {"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "a\\nb", "on": true}'}},
    {"id": "2", "type": "function", "function": {"name": "clock", "arguments": {}}},
]


def template(text: str) -> JinjaChatTemplate:
    path = TEMPLATES / f"{text}.jinja"
    return JinjaChatTemplate({"default": path.read_text() if "\n" not in text and path.is_file() else text}, SPECIAL)


def dialect(text: str, **api: Any) -> ChatDialect:
    engine = ScriptedEngine()
    engine.chat_template = template(text)  # type: ignore[assignment]
    return ChatDialect.of(engine, ApiConfig(**{"reasoning_parser": "auto"} | api))


@pytest.mark.parametrize(
    ("text", "name", "knows", "thinks"),
    [
        ("qwen3", "hermes", True, True),
        ("llama3", "llama3", True, False),
        (MISTRAL, "mistral", True, False),
        (DEEPSEEK, "deepseekv3", True, True),
        (PYTHONIC, "pythonic", True, False),
        (XML, None, True, False),
        ("chatml", "hermes", False, False),
        ("gemma", "hermes", False, False),
        ("mistral", "hermes", False, False),
    ],
)
def test_auto_finds_what_the_template_was_trained_on(text: str, name: str | None, knows: bool, thinks: bool) -> None:
    found = dialect(text)
    assert (found.tools.name if found.tools else None) == name
    assert found.knows_tools == knows
    assert (found.thoughts is not None) == thinks


def test_flags_overrule_what_is_found() -> None:
    assert dialect("qwen3", tool_call_parser="none").tools is None
    assert dialect("qwen3", reasoning_parser="none").thoughts is None
    given = dialect("chatml", tool_call_parser="pythonic", reasoning_parser="kimi")
    assert given.tools and given.tools.name == "pythonic"
    assert given.thoughts and given.thoughts.begin == "◁think▷"


def test_without_a_template_there_is_no_dialect() -> None:
    assert ChatDialect.of(ScriptedEngine(chat_template=None), ApiConfig()) == ChatDialect()


@pytest.mark.parametrize("name", ["hermes", "llama3", "mistral", "deepseekv3", "pythonic"])
def test_history_is_written_as_the_parser_reads_it(name: str) -> None:
    """A template that knows nothing of tools still shows tools, calls and results, in the format of the replies."""
    found = dialect("chatml", tool_call_parser=name)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {"role": "tool", "tool_call_id": "2", "content": "one"},
    ]
    system, user, assistant, *results = described(messages, [TOOL], found)
    assert system["content"].startswith("Be brief.\n\n") and '"name": "clock"' in system["content"]
    assert (user, results) == (messages[1], messages[3:])
    reply = parse_reply(ReplyParser(tool_format=found.tools, tools={"clock"}), assistant["content"])
    assert [call.arguments for call in reply.calls] == ['{"zone": "a\\nb", "on": true}', "{}"]
    example = system["content"].replace("function_name", "clock").replace("argument=value", "a=1").replace('"argument": value', '"a": 1')
    told = parse_reply(ReplyParser(tool_format=found.tools, tools={"clock"}), example.split("nothing after it:\n")[1])
    assert [call.arguments.replace(" ", "") for call in told.calls] == ['{"a":1}']


def test_a_template_that_knows_tools_gets_them_as_they_are() -> None:
    messages = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "", "tool_calls": CALLS}]
    assert described(messages, [TOOL], dialect("qwen3")) == messages


def test_results_become_turns_where_a_template_refuses_them() -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    written = described(messages, [], dialect(strict))
    text = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert written == [messages[0], {"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("text", "variables", "thinking"),
    [("qwen3", {}, None), ("qwen3", {"enable_thinking": False}, False), (DEEPSEEK, {}, True), ("chatml", {}, False)],
)
def test_the_prompt_says_whether_thoughts_are_open(text: str, variables: dict[str, Any], thinking: bool | None) -> None:
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "<think>"}], "chat_template_kwargs": variables})
    prompt = template(text).render([{"role": "user", "content": "<think>"}], variables=variables)
    assert thinking_of(body, dialect(text), prompt) is thinking


def test_history_without_a_format_is_refused_by_name() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": CALLS}]
    with pytest.raises(Unsupported) as caught:
        described(messages, [], dialect("chatml", tool_call_parser="none"))
    assert caught.value.param == "messages[1].tool_calls"
    broken = [messages[0], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]
    with pytest.raises(InvalidRequest) as wrong:
        described(broken, [], dialect("chatml", tool_call_parser="pythonic"))
    assert wrong.value.param == "messages[1].tool_calls[0].function.arguments"


def test_ids_have_the_length_that_templates_insist_on() -> None:
    from ramet.server.openai.chat_reply import ReplyShape
    from ramet.server.openai.tool_use import ToolUse

    for name, length in (("hermes", 29), ("mistral", 9)):
        call_id = ReplyShape(ChatDialect(tools=tool_format(name)), ToolUse(), None, True, True).new_call_id()
        assert len(call_id) == length
