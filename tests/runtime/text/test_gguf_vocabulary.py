"""What a damaged file says of its tokenizer ends in the project's own error, which names the key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import InvalidRequest, RametError
from ramet.runtime.text.gguf_tokenizer import CONTROL, NORMAL, UNKNOWN, convert

TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "ab"]
SPM = {"model": "llama", "scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0]}
BPE = {"model": "gpt2", "pre": "smollm", "merges": ["a b"]}
BOTH = {"tokens": TOKENS, "token_type": [UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL, NORMAL]} | {
    f"{name}_token_id": index for index, name in enumerate(("unknown", "bos", "eos"))
}


def converted(said: dict[str, Any]) -> dict[str, Any]:
    return convert({f"tokenizer.ggml.{key}": value for key, value in said.items()})


@pytest.mark.parametrize("kind", [SPM, BPE])
def test_a_whole_vocabulary_converts(kind: dict[str, Any]) -> None:
    assert converted(BOTH | kind)["tokenizer.json"]["model"]["vocab"]["ab"] == 5


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("tokens", None, "tokens is missing"),
        ("tokens", [], "tokens is empty"),
        ("tokens", "abc", "tokens is not what it should be, a list of texts"),
        ("token_type", None, "token_type is missing"),
        ("token_type", [1, 2], "token_type has 2 entries for 6 tokens"),
        ("scores", [0.0], "scores has 1 entries for 6 tokens"),
        ("scores", None, "scores is missing"),
        ("eos_token_id", 6, "eos_token_id is 6, and there are 6 tokens"),
        ("padding_token_id", -1, "padding_token_id is -1"),
        ("bos_token_id", "1", "bos_token_id is '1'"),
        ("merges", ["ab"], "merges holds 'ab', which is no pair"),
        ("pre", 3, "pre is no text"),
    ],
)
def test_what_is_wrong_is_named(key: str, value: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"tokenizer\.ggml\.{complaint}.*convert the model again"):
        converted(BOTH | (SPM if key == "scores" else BPE) | {key: value})


VALUES = st.one_of(
    st.integers(-2, 2**40),
    st.floats(),
    st.booleans(),
    st.text(max_size=3),
    st.none(),
    st.lists(st.integers(-1, 9), max_size=7),
    st.lists(st.text(max_size=2), max_size=7),
    st.just([["a"]]),
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([SPM, BPE]), st.dictionaries(st.sampled_from(sorted({*BOTH, *SPM, *BPE, "add_bos_token"})), VALUES, min_size=1))
def test_any_damage_is_our_own_error(kind: dict[str, Any], damage: dict[str, Any]) -> None:
    try:
        json.dumps(converted(BOTH | kind | damage))
    except RametError as error:
        assert "GGUF" in error.message
