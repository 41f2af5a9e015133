"""Request bodies of the OpenAI routes, with the extensions that SGLang's users know.

A field that is not listed is refused. Fields listed under "accepted, without effect" say nothing about the generated tokens.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class StreamOptions(Strict):
    include_usage: bool = False
    continuous_usage_stats: bool = Field(False, description="usage on every chunk")
    include_obfuscation: bool | None = None


class JsonSchemaFormat(Strict):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="allow")  # a structural_tag carries its own grammar beside `type`

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None


class Sampling(Strict):
    """What all routes share."""

    model: str | None = None
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # extensions
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    no_stop_trim: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    regex: str | None = None
    ebnf: str | None = None
    json_schema: str | dict[str, Any] | None = None
    structural_tag: str | dict[str, Any] | None = None
    timeout_s: float | None = None
    rid: str | None = None
    priority: int = 0
    cache_salt: str | None = None
    extra_key: str | None = None
    lora_path: str | None = None
    # accepted, without effect
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None


class SamplingFields(Sampling):
    """What chat and text completions share."""

    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=0)
    response_format: ResponseFormat | None = None


class PastFunction(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    arguments: str | dict[str, Any] | None = None


class PastCall(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: str | None = None
    type: Literal["function"] = "function"
    function: PastFunction


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")  # templates may read further fields

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[PastCall] | None = None


class Function(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_no_misspelt_field(self) -> Function:
        """Templates may read further fields, but a schema under a wrong name would be a tool without one."""
        for name in self.model_extra or ():
            if near := get_close_matches(name, type(self).model_fields, n=1):
                raise ValueError(f"'{name}' is no field of a function; did you mean {near[0]}?")
        return self


class Tool(Strict):
    type: Literal["function"]
    function: Function


class Prediction(Strict):
    type: Literal["content"]
    content: str | list[dict[str, Any]]


class ChatRequest(SamplingFields):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = Field(None, description="handed to the chat template, as is verbosity")
    verbosity: Literal["low", "medium", "high"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    separate_reasoning: bool = Field(True, description="with a reasoning parser: thoughts as reasoning_content, not in the content")
    stream_reasoning: bool = Field(True, description="false: thoughts come in one piece, when they are complete")
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    modalities: list[str] | None = Field(None, description="text; others are refused")
    prediction: Prediction | None = Field(None, description="accepted, without effect: it could only save time, never change a token")
    audio: Any = Field(None, description="refused on a text model")
    web_search_options: Any = Field(None, description="refused: the server reaches no network")
    moderation: Any = Field(None, description="refused: there is no model for it")
    functions: Any = Field(None, description="refused: what tools were called once")
    function_call: Any = Field(None, description="refused: what tool_choice was called once")


class CompletionRequest(SamplingFields):
    prompt: str | list[int] | list[str] | list[list[int]] = Field(union_mode="left_to_right")
    echo: bool = False
    logprobs: int | None = Field(None, ge=0)
    suffix: str | None = None
    best_of: int | None = None
