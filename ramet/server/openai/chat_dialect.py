"""How the served model writes tool calls and thoughts, found once from the launch flags and from what its chat template does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from ramet.errors import UserError
from ramet.runtime.config import ApiConfig
from ramet.runtime.engine.generation_engine import ChatTemplate, GenerationEngine, Tokenizer
from ramet.server.parsers.formats import think_tags, tool_format
from ramet.server.parsers.think_tags import ThinkTags
from ramet.server.parsers.tool_format import ToolFormat

TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string"}}},
    },
}
CALL = {"id": "probe0001", "type": "function", "function": {"name": "probe_tool", "arguments": {"probe_key": "probe_value"}}}
QUESTION = {"role": "user", "content": "probe question"}
ANSWER = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "probe_tool", "tool_call_id": "probe0001", "content": "probe result"}
WRITTEN = {
    "hermes": re.compile(r'<tool_call>\s*\{"name": ?"probe_tool"'),
    "mistral": re.compile(r"\[TOOL_CALLS\]"),
    "deepseekv3": re.compile(r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>probe_tool\n```json"),
    "llama3": re.compile(r'\{"name": ?"probe_tool", ?"parameters": ?'),
    "pythonic": re.compile(r"\[probe_tool\("),
}
"""How a template that was trained on a format writes the probe's call."""
DEFAULT_FORMAT = "hermes"
"""For models whose template knows nothing of tools: the format is then explained in the prompt."""


@dataclass(frozen=True, slots=True)
class ChatDialect:
    """`tools` None: calls stay in the text. `thoughts` None: so do thoughts. `knows_*`: what the template writes by itself. `special_ids`:
    markers that the tokenizer has as one special token each, which neither text nor a grammar's text can spell."""

    tools: ToolFormat | None = None
    thoughts: ThinkTags | None = None
    knows_tools: bool = False
    knows_calls: bool = False
    knows_results: bool = False
    special_ids: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, engine: GenerationEngine, api: ApiConfig) -> ChatDialect:
        template = engine.chat_template
        if template is None:
            return cls()
        knows_tools = "probe_tool" in _rendered(template, [QUESTION], tools=[TOOL])
        called = _rendered(template, [QUESTION, ANSWER], tools=[TOOL])
        tools = _tool_format(api.tool_call_parser, called, knows_tools)
        thoughts = _think_tags(api.reasoning_parser, template)
        markers = [*(tools.wire.markers if tools else ()), *((thoughts.begin, thoughts.end) if thoughts else ())]
        return cls(
            tools=tools,
            thoughts=thoughts,
            knows_tools=knows_tools,
            knows_calls="probe_tool" in called.replace(_rendered(template, [QUESTION], tools=[TOOL]), "") and "probe_value" in called,
            knows_results="probe result" in _rendered(template, [QUESTION, ANSWER, RESULT], tools=[TOOL]),
            special_ids=_special_ids(engine.tokenizer, markers),
        )


def _tool_format(wanted: str, called: str, knows_tools: bool) -> ToolFormat | None:
    if wanted == "none":
        return None
    if wanted != "auto":
        return tool_format(wanted)
    found = [name for name, pattern in WRITTEN.items() if pattern.search(called)]
    if len(found) == 1:
        return tool_format(found[0])
    return None if knows_tools else tool_format(DEFAULT_FORMAT)


def _think_tags(wanted: str, template: ChatTemplate) -> ThinkTags | None:
    if wanted == "none":
        return None
    if wanted != "auto":
        return think_tags(wanted)
    tags = think_tags("think")
    prompts = (_rendered(template, [QUESTION]), _rendered(template, [QUESTION], variables={"enable_thinking": False}))
    return tags if any(tags.begin in prompt for prompt in prompts) else None


def _rendered(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """ "" where the template refuses these messages."""
    try:
        return template.render(messages, add_generation_prompt="tools" not in options, **options)
    except UserError:
        return ""


def _special_ids(tokenizer: Tokenizer, markers: Sequence[str]) -> dict[str, int]:
    found = {marker: tokenizer.encode(marker, add_special_tokens=False) for marker in markers}
    return {marker: ids[0] for marker, ids in found.items() if len(ids) == 1 and ids[0] in tokenizer.special_ids}


async def get_dialect(request: Request) -> ChatDialect:
    dialect: ChatDialect = request.app.state.chat_dialect
    return dialect


Dialect = Annotated[ChatDialect, Depends(get_dialect)]
