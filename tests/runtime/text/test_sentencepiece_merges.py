"""SPM vocabularies: merging by score equals SentencePiece's algorithm, written down plainly; prefix space, byte fallback, BOS."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ramet.runtime.model_files import ModelFiles
from ramet.runtime.text.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, convert
from ramet.runtime.text.tokenizer import HfTokenizer, load_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def metadata(pieces: list[str], **more: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *pieces, "<|tool|>"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces), USER_DEFINED]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces))] + [0.0]
    base = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores}
    base |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **more}
    return {f"tokenizer.ggml.{key}": value for key, value in base.items()}


def built(pieces: list[str], directory: Path, **more: Any) -> HfTokenizer:
    for name, content in convert(metadata(pieces, **more)).items():
        (directory / name).write_text(json.dumps(content))
    return load_tokenizer(ModelFiles("huggingface", directory, "test"))


def plain_sentencepiece(text: str, scores: dict[str, float]) -> list[str]:
    """Join the neighbours whose union scores best, the leftmost of equals, until no union is a piece."""
    symbols = list(text)
    while True:
        unions = [(-scores[a + b], at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not unions:
            return symbols
        at = min(unions)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def random_pieces(rng: random.Random) -> list[str]:
    """A vocabulary as training leaves it: every piece is a union of earlier ones, single characters come last."""
    characters = ["▁", *"abc"]
    pieces: list[str] = []
    while len(pieces) < 40:
        union = rng.choice(characters + pieces) + rng.choice(characters + pieces)
        if union not in pieces and len(union) <= 8:
            pieces.append(union)
    return pieces + characters


@pytest.mark.parametrize("seed", range(8))
def test_merges_equal_sentencepiece(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    pieces = random_pieces(rng)
    tokenizer = built(pieces, tmp_path)
    scores = {piece: -float(rank) for rank, piece in enumerate(pieces)}
    for _ in range(150):
        text = "".join(rng.choices("abc ", k=rng.randint(1, 24)))
        wanted = plain_sentencepiece("▁" + text.replace(" ", "▁"), scores)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert [tokenizer.backend.id_to_token(index) for index in ids] == wanted, text


def test_bytes_bos_and_prefix_space(tmp_path: Path) -> None:
    tokenizer = built(["▁a", "▁", "a", "b"], tmp_path)
    ids = tokenizer.encode("ab é")
    assert tokenizer.backend.id_to_token(ids[0]) == "<s>"
    assert [tokenizer.backend.id_to_token(index) for index in ids[-2:]] == ["<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "ab é"
    assert b"".join(tokenizer.token_bytes()[index] for index in ids) == " ab é".encode()


def test_without_prefix_space_and_bos(tmp_path: Path) -> None:
    tokenizer = built(["▁a", "▁", "a", "b"], tmp_path, add_space_prefix=False, add_bos_token=False)
    assert [tokenizer.backend.id_to_token(index) for index in tokenizer.encode("ab")] == ["a", "b"]
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"


def test_special_tokens_inside_text(tmp_path: Path) -> None:
    tokenizer = built(["▁a", "▁", "a", "b"], tmp_path)
    names = [tokenizer.backend.id_to_token(index) for index in tokenizer.encode("a</s>b<|tool|>", add_special_tokens=False)]
    assert names == ["▁a", "</s>", "▁", "b", "<|tool|>"]
    ids = tokenizer.encode("a<|tool|>", add_special_tokens=False)
    assert tokenizer.decode(ids) == "a<|tool|>"  # user-defined tokens are text, control tokens are not


def test_continuation_gets_no_space(tmp_path: Path) -> None:
    tokenizer = built(["▁a", "▁", "a", "b"], tmp_path)
    assert [tokenizer.backend.id_to_token(index) for index in tokenizer.encode_continuation("ab")] == ["a", "b"]
