"""Every sampling parameter is known, typed and in range, or refused with its own name."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest

from ramet.errors import InvalidRequest
from ramet.runtime.request import GrammarSpec, SamplingParams
from ramet.runtime.sampling_params import FIELDS, grammar_of, parse_sampling_params


def refused(mapping: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_sampling_params(mapping)
    return caught.value


def test_nothing_given_is_the_default() -> None:
    assert parse_sampling_params({}) == SamplingParams()


def test_null_is_the_default_for_every_field() -> None:
    assert parse_sampling_params(dict.fromkeys([*FIELDS, "sampling_seed"])) == SamplingParams()


def test_every_field_of_the_dataclass_can_be_given() -> None:
    assert set(FIELDS) == {field.name for field in fields(SamplingParams)}


def test_defaults_are_accepted_when_written_out() -> None:
    given = {field.name: getattr(SamplingParams(), field.name) for field in fields(SamplingParams)}
    assert parse_sampling_params(given) == SamplingParams()


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"stop": "END"}, "stop", ("END",)),
        ({"stop": ["a", "b", "a"]}, "stop", ("a", "b")),
        ({"stop_regex": r"\d"}, "stop_regex", (r"\d",)),
        ({"stop_token_ids": [3, 3, 5]}, "stop_token_ids", (3, 5)),
        ({"logit_bias": {"12": -1, 7: 2.5}}, "logit_bias", {12: -1.0, 7: 2.5}),
        ({"sampling_seed": 5}, "seed", 5),
        ({"seed": 6}, "seed", 6),
        ({"sampling_seed": 5, "seed": 5}, "seed", 5),
        ({"max_new_tokens": 16.0}, "max_new_tokens", 16),
        ({"temperature": 1}, "temperature", 1.0),
        ({"top_k": 0}, "top_k", -1),
        ({"json_schema": {"type": "object", "title": "é"}}, "json_schema", '{"type": "object", "title": "é"}'),
        ({"json_schema": '{"type":"object"}'}, "json_schema", '{"type":"object"}'),
        ({"structural_tag": {"triggers": []}}, "structural_tag", '{"triggers": []}'),
        ({"timeout_s": 0.5}, "timeout_s", 0.5),
    ],
)
def test_accepted(given: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(parse_sampling_params(given), field) == value


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 2.5}, "repetition_penalty"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens"),
        ({"n": 0}, "n"),
        ({"stop": [1]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop_regex": [None]}, "stop_regex"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": "12"}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-3": 1}}, "logit_bias"),
        ({"logit_bias": {"3": "1"}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"regex": 5}, "regex"),
        ({"json_schema": [1]}, "json_schema"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1, "sampling_seed": 2}, "sampling_seed"),
        ({"sampling_seed": 2, "seed": 1}, "seed"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"regex": "a", "ebnf": "start: /a/"}, "ebnf"),
        ({"json_schema": {}, "structural_tag": "{}"}, "structural_tag"),
    ],
)
def test_refused_by_name(given: dict[str, Any], param: str) -> None:
    error = refused(given)
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize(
    ("given", "near"), [("temprature", "temperature"), ("max_tokens", "max_new_tokens"), ("stop_regexp", "stop_regex")]
)
def test_unknown_names_are_refused_with_near_ones(given: str, near: str) -> None:
    error = refused({given: 1})
    assert error.param == given
    assert near in error.message


@pytest.mark.parametrize("kind", ["regex", "ebnf", "json_schema", "structural_tag"])
def test_grammar_of(kind: str) -> None:
    source = json.dumps({"type": "object"})
    assert grammar_of(parse_sampling_params({kind: source})) == GrammarSpec(kind, source)  # type: ignore[arg-type]


def test_no_grammar() -> None:
    assert grammar_of(SamplingParams()) is None
