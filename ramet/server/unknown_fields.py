"""What to say of a field that a body does not have: the field that was probably meant, or what does the same here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

from ramet.runtime.sampling_params import ELSEWHERE
from ramet.runtime.sampling_params import FIELDS as SAMPLING_FIELDS

OF_OTHERS = {
    "response_format": "use text.format on /v1/responses, sampling_params.json_schema on /generate",
    "guided_json": "use response_format or json_schema",
    "guided_regex": "use regex",
    "guided_choice": "use regex: (one|other)",
    "guided_grammar": "use ebnf",
    "structured_outputs": "use response_format, json_schema, regex, ebnf or structural_tag",
    "include_stop_str_in_output": "use no_stop_trim",
    "request_id": "use rid",
    "add_special_tokens": "a chat template writes the special tokens itself",
    "truncate_prompt_tokens": "prompts that are too long are refused, never cut",
    "prompt_logprobs": "use return_logprob with logprob_start_len on /generate, or echo with logprobs on /v1/completions",
    "use_beam_search": "there is no beam search; use n, and rank the choices",
    "logits_processors": "code from a request never runs here; use a grammar or logit_bias",
}
"""Names that other routes or servers have → what to do instead."""

SAME_THING = (
    ("max_tokens", "max_output_tokens", "max_new_tokens", "max_completion_tokens"),
    ("messages", "input", "prompt", "text"),
)
"""Names of one thing on different routes."""

Location = Sequence[str | int]


def unknown_fields(found: Mapping[str, Location], body: type[BaseModel] | None) -> str:
    """One message about all of them. `found`: each one's name in words, and the steps to it (FastAPI's begin with "body")."""
    hints = {path: _hint([str(step) for step in location if step != "body"], body) for path, location in found.items()}
    if len(hints) == 1:
        [(path, hint)] = hints.items()
        return f"{path}: this field is not known" + (f"; {hint}" if hint else "")
    named = [path + (f" ({hint})" if hint else "") for path, hint in hints.items()]
    return f"fields that are not known: {', '.join(named)}"


def body_model(endpoint: Callable[..., Any] | None) -> type[BaseModel] | None:
    """What a route takes as its body."""
    hints = get_type_hints(endpoint).values() if endpoint is not None else ()
    return next((hint for hint in hints if inspect.isclass(hint) and issubclass(hint, BaseModel)), None)


def _hint(steps: Sequence[str], body: type[BaseModel] | None) -> str:
    *way, name = steps
    model = _model_at(body, way)
    known = _names(model)
    native = ELSEWHERE.get(name, name)
    if not way and "sampling_params" in known and native in SAMPLING_FIELDS:
        return f"use sampling_params.{native}"
    if not way and name in OF_OTHERS and name not in known:
        return OF_OTHERS[name]
    for names in SAME_THING:
        if not way and name in names and (here := next((other for other in names if other in known), None)):
            return f"use {here}"
    inside = next((field for field, within in _parts(model) if name in _names(within)), None)
    if inside is not None:
        return f"it belongs into {inside}"
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else ""


def _model_at(model: type[BaseModel] | None, way: Sequence[str]) -> type[BaseModel] | None:
    """The body's part that these steps lead to. A step that is no field counts the items of a list, or names a branch of a union."""
    for step in way:
        field = next((field for name, field in model.model_fields.items() if step in (name, field.alias)), None) if model else None
        if field is not None:
            model = next(_models_in(field.annotation), None)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _parts(model: type[BaseModel] | None) -> Iterator[tuple[str, type[BaseModel]]]:
    """Fields that are bodies themselves, or lists of them."""
    for name, field in model.model_fields.items() if model else ():
        for within in _models_in(field.annotation):
            yield field.alias or name, within


def _names(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []
