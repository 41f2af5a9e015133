"""The messages of a chat request in the model's own template, which writes its special tokens itself."""

from __future__ import annotations

import asyncio
from typing import Any

from ramet.errors import InvalidRequest, Unsupported
from ramet.server.openai.chat_dialect import ChatDialect
from ramet.server.openai.schema import ChatRequest, Message
from ramet.server.openai.tool_prompt import described
from ramet.server.server_context import ServerContext


async def prompt_text(context: ServerContext, body: ChatRequest, dialect: ChatDialect) -> str:
    template = context.engine.chat_template
    if template is None:
        raise Unsupported(
            "the served model has no chat template; use /v1/completions, or start the server with --chat-template", param="messages"
        )
    variables = dict(body.chat_template_kwargs or {})
    for name in ("reasoning_effort", "verbosity"):
        if getattr(body, name) is not None:
            variables.setdefault(name, getattr(body, name))
    shown = [] if body.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    messages = [_template_message(message, index) for index, message in enumerate(body.messages)]
    return await asyncio.to_thread(
        template.render,
        described(messages, shown, dialect),
        tools=shown if shown and dialect.knows_tools else None,
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        variables=variables or None,
    )


def thinking_of(body: ChatRequest, dialect: ChatDialect, prompt: str) -> bool | None:
    """Whether the reply begins inside of thoughts (True), behind them (False), or as the model likes (None)."""
    tags = dialect.thoughts
    if tags is None:
        return False
    if not body.continue_final_message:
        return tags.state_after(prompt)
    begun = prompt.rpartition(tags.begin)
    return bool(begun[1]) and tags.end not in begun[2] and tags.begin in _text(body.messages[-1])


def _text(message: Message) -> str:
    return message.content if isinstance(message.content, str) else ""


def _template_message(message: Message, index: int) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True)
    fields["role"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, list):
        fields["content"] = "".join(_text_of(part, f"messages[{index}].content[{p}]") for p, part in enumerate(message.content))
    elif message.content is None:
        if message.role != "assistant":
            place = f"messages[{index}].content"
            raise InvalidRequest(f"{place} is missing; only an assistant's message may have none", param=place)
        fields["content"] = ""
    return fields


def _text_of(part: dict[str, Any], place: str) -> str:
    kind = part.get("type")
    if kind != "text":
        raise Unsupported(f"{place}: content of type '{kind}' needs a multimodal model; the served model reads text only", param=place)
    if not isinstance(part.get("text"), str):
        raise InvalidRequest(f"{place}: 'text' is missing", param=place)
    return str(part["text"])
