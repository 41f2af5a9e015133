"""The wire's sampling parameters → `SamplingParams`: every name known, every value in range, or an error that names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ramet.errors import InvalidRequest
from ramet.runtime.request import GrammarKind, GrammarSpec, SamplingParams

GRAMMAR_FIELDS: tuple[GrammarKind, ...] = ("json_schema", "regex", "ebnf", "structural_tag")
SAME_FIELD = {"sampling_seed": "seed"}
"""Further spelling → the field's name."""
ELSEWHERE = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
"""What other servers call it; only a hint in the error, as the meaning may differ."""
MAX_CHOICES = 1024
MAX_STOPS = 256

Parse = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Bounds:
    """`low ≤ value ≤ high`; with `above`, `value` is greater than `low`."""

    low: float
    high: float = math.inf
    above: bool = False

    def check(self, name: str, value: float) -> None:
        if value < self.low or value > self.high or (self.above and value == self.low):
            left = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
            right = "" if self.high == math.inf else f" and at most {self.high:g}"
            raise InvalidRequest(f"{name}={value:g} is out of range: it must be {left}{right}", param=name)


def parse_sampling_params(mapping: Mapping[str, Any]) -> SamplingParams:
    """Native names and defaults; null means the default. Raises `InvalidRequest` with `param` = the field."""
    values: dict[str, Any] = {}
    for given, value in mapping.items():
        name = SAME_FIELD.get(given, given)
        if name not in FIELDS:
            raise _unknown(given)
        if value is None:
            continue
        parsed = FIELDS[name](given, value)
        if values.setdefault(name, parsed) != parsed:
            raise InvalidRequest(f"{given}={parsed!r} contradicts the other spelling of {name}, {values[name]!r}", param=given)
    params = SamplingParams(**values)
    _check_together(params)
    return params


def grammar_of(params: SamplingParams) -> GrammarSpec | None:
    """The constraint that these parameters ask for."""
    for kind in GRAMMAR_FIELDS:
        source = getattr(params, kind)
        if source is not None:
            return GrammarSpec(kind, source)
    return None


def _check_together(params: SamplingParams) -> None:
    if params.min_new_tokens > params.max_new_tokens:
        message = f"min_new_tokens={params.min_new_tokens} is greater than max_new_tokens={params.max_new_tokens}"
        raise InvalidRequest(message, param="min_new_tokens")
    given = [kind for kind in GRAMMAR_FIELDS if getattr(params, kind) is not None]
    if len(given) > 1:
        raise InvalidRequest(f"{' and '.join(given)} are given; a generation follows one of them at most", param=given[1])


def _unknown(name: str) -> InvalidRequest:
    near = [ELSEWHERE[name]] if name in ELSEWHERE else get_close_matches(name, [*FIELDS, *SAME_FIELD], n=3)
    hint = f"; near ones: {', '.join(near)}" if near else f"; known: {', '.join(sorted(FIELDS))}"
    return InvalidRequest(f"unknown sampling parameter '{name}'{hint}", param=name)


def _wrong_type(name: str, value: Any, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"{name} must be {wanted}, not {type(value).__name__} ({str(value)[:60]})", param=name)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "true or false")
    return value


def _integer(bounds: Bounds) -> Parse:
    def parse(name: str, value: Any) -> int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            raise _wrong_type(name, value, "an integer")
        bounds.check(name, value)
        return int(value)

    return parse


def _number(bounds: Bounds) -> Parse:
    def parse(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(name, value, "a number")
        if not math.isfinite(value):
            raise InvalidRequest(f"{name}={value} is not a finite number", param=name)
        bounds.check(name, value)
        return float(value)

    return parse


def _top_k(name: str, value: Any) -> int:
    """-1 and 0 both mean "all tokens" on one server or another."""
    top_k: int = _integer(Bounds(-1))(name, value)
    return top_k or -1


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a string")
    return value


def _json_text(name: str, value: Any) -> str:
    """A JSON object, or its text."""
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a JSON object or its text")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise _wrong_type(name, value, "a string or a list of strings")
    if len(texts) > MAX_STOPS:
        raise InvalidRequest(f"{name} has {len(texts)} entries; at most {MAX_STOPS} are allowed", param=name)
    if "" in texts:
        raise InvalidRequest(f"{name} holds an empty string, which stands at every place of a text", param=name)
    return tuple(dict.fromkeys(texts))


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    ids = [value] if isinstance(value, int) else value
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise _wrong_type(name, value, "a list of token ids")
    return tuple(dict.fromkeys(_integer(Bounds(0))(name, index) for index in ids))


def _logit_bias(name: str, value: Any) -> dict[int, float]:
    """JSON has text keys; Python callers may write integers."""
    if not isinstance(value, Mapping):
        raise _wrong_type(name, value, "an object of token id → bias")
    bias: dict[int, float] = {}
    for key, amount in value.items():
        if not str(key).isdecimal():
            raise InvalidRequest(f"{name} has the key {key!r}, which is not a token id", param=name)
        bias[int(key)] = _number(Bounds(-math.inf))(name, amount)
    return bias


FIELDS: Mapping[str, Parse] = {
    "max_new_tokens": _integer(Bounds(0)),
    "min_new_tokens": _integer(Bounds(0)),
    "stop": _texts,
    "stop_token_ids": _token_ids,
    "stop_regex": _texts,
    "no_stop_trim": _boolean,
    "ignore_eos": _boolean,
    "temperature": _number(Bounds(0.0)),
    "top_p": _number(Bounds(0.0, 1.0, above=True)),
    "top_k": _top_k,
    "min_p": _number(Bounds(0.0, 1.0)),
    "frequency_penalty": _number(Bounds(-2.0, 2.0)),
    "presence_penalty": _number(Bounds(-2.0, 2.0)),
    "repetition_penalty": _number(Bounds(0.0, 2.0, above=True)),
    "n": _integer(Bounds(1, MAX_CHOICES)),
    "json_schema": _json_text,
    "regex": _text,
    "ebnf": _text,
    "structural_tag": _json_text,
    "skip_special_tokens": _boolean,
    "spaces_between_special_tokens": _boolean,
    "logit_bias": _logit_bias,
    "seed": _integer(Bounds(-(2**63), 2**64 - 1)),
    "timeout_s": _number(Bounds(0.0, above=True)),
}
