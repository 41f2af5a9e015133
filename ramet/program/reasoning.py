"""Thoughts and answer of a reasoning model, told apart by its markers."""

from __future__ import annotations

from dataclasses import dataclass

from ramet.errors import InvalidRequest

REASONING_SUFFIX = "_reasoning_content"
"""Of the variable that holds the thoughts."""


@dataclass(frozen=True, slots=True)
class Markers:
    """`implied`: the model's template opens the thoughts, so its text may begin inside them."""

    begin: str
    end: str
    implied: bool = False


def markers_of(model_type: str) -> Markers:
    match model_type:
        case "qwen3" | "glm45":
            return Markers("<think>", "</think>")
        case "deepseek-r1" | "qwen3-thinking":
            return Markers("<think>", "</think>", implied=True)
        case "kimi":
            return Markers("◁think▷", "◁/think▷")
    raise InvalidRequest(
        f"no reasoning markers for {model_type!r}; known: deepseek-r1, glm45, kimi, qwen3, qwen3-thinking", param="model_type"
    )


def check_model_type(model_type: str | None) -> str:
    found = model_type or "qwen3"
    markers_of(found)
    return found


def split_reasoning(text: str, model_type: str) -> tuple[str, str]:
    """(thoughts, answer). Unfinished thoughts are all thoughts: an answer never holds half a thought."""
    markers = markers_of(model_type)
    body = text.lstrip()
    if body.startswith(markers.begin):
        body = body[len(markers.begin) :]
    elif not markers.implied:
        return "", text
    thoughts, _, answer = body.partition(markers.end)
    return thoughts.strip(), answer.lstrip("\n")
