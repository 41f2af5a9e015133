"""The verbs of the language: what to generate, what to choose, and whose turn it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ramet.errors import InvalidRequest
from ramet.lang.ambient import speak
from ramet.lang.argument_names import knows_its_arguments
from ramet.lang.decoding import shape_of
from ramet.lang.expressions import Expr, Gen, Image, RoleBegin, RoleEnd, Select, as_expr
from ramet.program.backend import Role
from ramet.program.reasoning import check_model_type
from ramet.program.selection import ChoicesMethod, token_length_normalized


@knows_its_arguments
def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesMethod | None = None,
    regex: str | None = None,
    json_schema: Any = None,
    *,
    ebnf: str | None = None,
    structural_tag: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    logit_bias: Mapping[int | str, float] | None = None,
    no_stop_trim: bool | None = None,
    skip_special_tokens: bool | None = None,
    spaces_between_special_tokens: bool | None = None,
    token_ids_logprob: Sequence[int] | None = None,
) -> Expr:
    """Generate text here and keep it as variable `name`.

    Every argument left None comes from `run(...)`, then from the server's defaults. At most one of `dtype`, `regex`, `ebnf`,
    `json_schema`, `tools` and `choices` constrains the text. With `dtype`, a dict or model class as `json_schema`, or `tools`, the
    variable is the Python value; with `n > 1` it is a list, and the first text goes into the conversation.
    """
    given = locals()
    _check_name(name)
    if choices is not None:
        _refuse_with_choices(given)
        return select(name, choices, temperature or 0.0, choices_method or token_length_normalized, seed=seed)
    shape = shape_of(dtype=dtype, json_schema=json_schema, tools=tools, regex=regex, ebnf=ebnf)
    sampling = {server: given[user] for user, server in SAMPLING_NAMES.items() if given[user] is not None}
    logprobs = {name: given[name] for name in LOGPROB_NAMES if given[name] is not None}
    return Expr((Gen(name, {**shape.sampling, **sampling}, logprobs, shape.parse),))


SAMPLING_NAMES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "seed": "seed",
    **{
        name: name
        for name in (
            *("n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p", "frequency_penalty"),
            *("presence_penalty", "repetition_penalty", "ignore_eos", "structural_tag", "logit_bias", "no_stop_trim"),
            *("skip_special_tokens", "spaces_between_special_tokens"),
        )
    },
}
"""gen()'s name → the server's name."""

LOGPROB_NAMES = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs", "token_ids_logprob")


def _check_name(name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise InvalidRequest(f"a variable's name is text, not {name!r:.60}", param="name")


def _refuse_with_choices(given: Mapping[str, Any]) -> None:
    """Arguments that a choice cannot honour are named, not dropped."""
    allowed = {"name", "choices", "choices_method", "temperature", "seed"}
    extra = [name for name, value in given.items() if value is not None and name not in allowed]
    if extra:
        raise InvalidRequest(f"gen(choices=…) scores the choices and samples no tokens; drop {', '.join(extra)}", param=extra[0])


def gen_int(name: str | None = None, max_tokens: int | None = None, **arguments: Any) -> Expr:
    """`gen(dtype=int)`: the variable is an int."""
    return gen(name, max_tokens, **{**arguments, "dtype": int})


def gen_string(name: str | None = None, max_tokens: int | None = None, **arguments: Any) -> Expr:
    """`gen(dtype=str)`: a quoted string; the variable is what stands between the quotes."""
    return gen(name, max_tokens, **{**arguments, "dtype": str})


@knows_its_arguments
def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesMethod = token_length_normalized,
    *,
    seed: int | None = None,
) -> Expr:
    """Append the choice that the model finds most fitting (temperature 0), or one drawn by fit. All are scored in one pass; the
    scores are in `s.get_meta_info(name)`: `probabilities` is the model's own distribution over the choices."""
    _check_name(name)
    if not choices or isinstance(choices, str) or set(map(type, choices)) != {str} or "" in choices:
        raise InvalidRequest(f"select() needs a list of non-empty texts as choices, got {choices!r:.80}", param="choices")
    if len(set(choices)) < len(choices):
        raise InvalidRequest("select() got the same choice twice", param="choices")
    if temperature < 0:
        raise InvalidRequest(f"temperature must be 0 or more, got {temperature}", param="temperature")
    return Expr((Select(name, tuple(choices), temperature, choices_method, seed),))


@knows_its_arguments
def system(expr: object = None) -> Any:
    """A system turn."""
    return _role("system", expr)


@knows_its_arguments
def user(expr: object = None) -> Any:
    """A user turn."""
    return _role("user", expr)


@knows_its_arguments
def assistant(expr: object = None) -> Any:
    """An assistant turn; without content, the model writes it."""
    return _role("assistant", gen() if expr is None else expr)


def _role(role: Role, content: object) -> Any:
    inner = Expr(()) if content is None else as_expr(content)
    turn = speak(role, inner)
    return turn if turn is not None else Expr((RoleBegin(role), *inner.ops, RoleEnd(role)))


def system_begin() -> Expr:
    return Expr((RoleBegin("system"),))


def system_end() -> Expr:
    return Expr((RoleEnd("system"),))


def user_begin() -> Expr:
    return Expr((RoleBegin("user"),))


def user_end() -> Expr:
    return Expr((RoleEnd("user"),))


def assistant_begin() -> Expr:
    return Expr((RoleBegin("assistant"),))


def assistant_end() -> Expr:
    return Expr((RoleEnd("assistant"),))


@knows_its_arguments
def image(expr: object) -> Expr:
    """An image (path or bytes). Text backends refuse it by name."""
    return Expr((Image(str(expr) if not isinstance(expr, bytes) else f"{len(expr)} bytes"),))


@knows_its_arguments
def separate_reasoning(expr: object = None, model_type: str | None = None) -> Expr:
    """Split the thoughts off the generations in `expr`: variable `name` keeps the answer, `name_reasoning_content` the thoughts; only
    the answer stays in the conversation. `model_type` names the markers: qwen3, deepseek-r1, kimi."""
    markers = check_model_type(model_type)
    return Expr(
        tuple(replace(op, reasoning=markers) if isinstance(op, Gen) else op for op in as_expr(expr if expr is not None else "").ops)
    )
