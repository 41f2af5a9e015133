"""The table of pre-tokenizers: every pattern compiles, and the families differ where their models do."""

from __future__ import annotations

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

from ramet.errors import Unsupported
from ramet.runtime.text.byte_level import byte_to_char, piece_bytes
from ramet.runtime.text.pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer

TEXT = "I'M fine, 12345 x\n\n  you're  ПривеТ你好"


def pieces(name: str, text: str) -> list[str]:
    splits = [Split(Regex(pattern), "isolated") for pattern in pre_tokenizer(name).patterns]
    return [piece for piece, _ in Sequence(splits).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_rule_cuts_without_loss(name: str) -> None:
    assert "".join(pieces(name, TEXT)) == TEXT


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("gpt-2", "I'm 12345", ["I", "'m", " 12345"]),
        ("gpt-2", "I'M", ["I", "'", "M"]),
        ("smollm", "a 123", ["a", " ", "1", "2", "3"]),
        ("llama-bpe", "I'M 12345", ["I", "'M", " ", "123", "45"]),
        ("llama-bpe", "a\n\n  b", ["a", "\n\n", " ", " b"]),
        ("qwen2", "x 123", ["x", " ", "1", "2", "3"]),
        ("tekken", "camelCase", ["camel", "Case"]),
        ("gpt-4o", "I'll camelCase 1234", ["I'll", " camel", "Case", " ", "123", "4"]),
        ("deepseek-v3", "12345你好 a", ["123", "45", "你好", " a"]),
        ("deepseek-llm", "ab 12\n", ["ab", " ", "12", "\n"]),
        ("bloom", "a, b", ["a", ",", " b"]),
    ],
)
def test_known_cuts(name: str, text: str, wanted: list[str]) -> None:
    assert pieces(name, text) == wanted


def test_unknown_names_are_refused_with_near_ones() -> None:
    with pytest.raises(Unsupported, match=r"'qwen22'.*qwen2"):
        pre_tokenizer("qwen22")


def test_byte_alphabet_is_a_bijection() -> None:
    table = byte_to_char()
    assert len(set(table.values())) == 256
    assert all(piece_bytes(table[byte]) == bytes([byte]) for byte in range(256))
    assert piece_bytes("Ġhé") == b" h\xe9"
    assert piece_bytes("中") == "中".encode()
