"""Request body of /v1/responses. What needs a server that remembers, or that runs tools by itself, is refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ramet.errors import Unsupported
from ramet.server.openai.schema import Sampling, Strict
from ramet.server.refused_fields import refuse

KEEPS_NOTHING = "the server keeps no responses; send the whole conversation as input, what is cached of it is not computed again"
REFUSED = {
    "previous_response_id": KEEPS_NOTHING,
    "conversation": KEEPS_NOTHING,
    "store": f"{KEEPS_NOTHING}; leave it out",
    "background": f"{KEEPS_NOTHING}; wait for the reply, or stream it",
    "prompt": "there are no stored prompts; send instructions and input",
    "truncation": "input that is too long is refused, never cut",
    "context_management": "input that is too long is refused, never cut",
    "max_tool_calls": "the server runs no tools by itself",
    "moderation": "the server judges no text; ask a model that does",
    "top_logprobs": "use /v1/chat/completions with logprobs",
}
ASKS_NOTHING = (None, False, 0, "disabled")
TAKEN_INCLUDES = {"reasoning.encrypted_content"}
"""Without effect: thoughts come in plain text."""


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Strict):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Strict):
    effort: str | None = None
    summary: str | None = Field(None, description="accepted, without effect: thoughts come whole")
    generate_summary: str | None = Field(None, description="what summary was called once")


class FunctionTool(Strict):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, tool: Any) -> Any:
        if isinstance(tool, Mapping) and tool.get("type", "function") != "function":
            raise ValueError(f"the server runs no tool of type '{tool['type']}'; give functions, and answer their calls")
        return tool


class ResponseStreamOptions(Strict):
    include_obfuscation: bool | None = None


class ResponsesRequest(Sampling):
    input: str | list[dict[str, Any]] = Field(description="a text, or messages, function calls, their outputs and reasoning items")
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=0)
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    stream_options: ResponseStreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    previous_response_id: Any = Field(None, description="refused")
    conversation: Any = Field(None, description="refused")
    background: Any = Field(None, description="refused, but for false")
    prompt: Any = Field(None, description="refused")
    truncation: Any = Field(None, description="refused, but for disabled")
    context_management: Any = Field(None, description="refused")
    max_tool_calls: Any = Field(None, description="refused")
    moderation: Any = Field(None, description="refused")
    top_logprobs: Any = Field(None, description="refused, but for 0")

    def check(self) -> None:
        """Raises `Unsupported` naming the field."""
        refuse(self, REFUSED, asks_nothing=ASKS_NOTHING)
        for index, wanted in enumerate(self.include or ()):
            if wanted not in TAKEN_INCLUDES:
                raise Unsupported(f"include[{index}]: '{wanted}' is not part of what this server makes", param=f"include[{index}]")
