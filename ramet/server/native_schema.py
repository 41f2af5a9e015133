"""Bodies of the native routes, field for field as SGLang's clients send them; what is not listed is refused."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GenerateRequest(Body):
    """Exactly one of `text` and `input_ids`; lists of them are a batch, over which other list-valued fields are distributed."""

    text: str | list[str] | None = None
    add_special_tokens: bool = Field(True, description="of a text: let the tokenizer add its own special tokens, usually a BOS")
    input_ids: list[int] | list[list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = Field(None, description="first prompt position with a logprob; -1: output only")
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: list[int] | list[list[int]] | None = None
    return_text_in_logprobs: bool = False
    stream: bool = False
    incremental: bool = Field(False, description="stream deltas instead of the text so far")
    rid: str | list[str] | None = None
    priority: int | None = None
    extra_key: str | list[str] | None = Field(None, description="requests with different keys never share cached KV")
    cache_salt: str | list[str] | None = Field(None, description="the same under OpenAI's name")
    group: str = Field("", description="generations of one program run carry one id")
    lora_path: str | list[str | None] | None = Field(None, description="refused: no LoRA yet")
    image_data: Any = Field(None, description="refused on a text model")
    video_data: Any = Field(None, description="refused on a text model")
    audio_data: Any = Field(None, description="refused on a text model")
    custom_logit_processor: Any = Field(None, description="refused: code from a request never runs")
    return_hidden_states: Any = Field(None, description="refused, but for false")
    session_params: Any = Field(None, description="refused: the prefix cache knows a conversation again without a session")
    log_metrics: bool = Field(True, description="accepted, without effect")


class MetaInfo(BaseModel):
    id: str
    finish_reason: dict[str, Any] | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    forced_tokens: int
    num_retractions: int
    queue_time: float
    first_token_latency: float
    e2e_latency: float
    spec_verify_ct: int | None = Field(None, description="steps that verified guesses; like the next four, only where there were any")
    spec_draft_token_num: int | None = None
    spec_accept_token_num: int | None = None
    spec_accept_rate: float | None = None
    spec_accept_length: float | None = None
    input_token_logprobs: list[tuple[float | None, int, str | None]] | None = None
    output_token_logprobs: list[tuple[float | None, int, str | None]] | None = None
    input_top_logprobs: list[list[tuple[float, int, str | None]] | None] | None = None
    output_top_logprobs: list[list[tuple[float, int, str | None]] | None] | None = None
    input_token_ids_logprobs: list[list[tuple[float, int, str | None]] | None] | None = None
    output_token_ids_logprobs: list[list[tuple[float, int, str | None]] | None] | None = None


class GenerateReply(BaseModel):
    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | None = None


class AbortRequest(Body):
    rid: str | None = None
    abort_all: bool = False


class TokenizeRequest(Body):
    prompt: str | list[str]
    add_special_tokens: bool = True
    model: str | None = None


class TokenizeReply(BaseModel):
    tokens: list[int] | list[list[int]]
    count: int | list[int]
    max_model_len: int


class DetokenizeRequest(Body):
    tokens: list[int] | list[list[int]]
    skip_special_tokens: bool = True
    model: str | None = None


class DetokenizeReply(BaseModel):
    text: str | list[str]
