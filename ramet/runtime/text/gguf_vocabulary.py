"""Is what a GGUF file says of its tokenizer whole? Asked once, so that what is made of it may trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, NoReturn

from ramet.errors import InvalidRequest

PREFIX = "tokenizer.ggml."
TOKEN_IDS = tuple(f"{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding"))


def check_vocabulary(metadata: Mapping[str, Any]) -> None:
    """`metadata`: with lists for arrays. Raises `InvalidRequest` that names the key."""
    tokens = _listed(metadata, "tokens", str)
    if not tokens:
        _refuse("tokens", "is empty")
    kinds = _listed(metadata, "token_type", int)
    scores = _listed(metadata, "scores", int | float) if metadata[PREFIX + "model"] == "llama" else tokens
    for key, values in (("token_type", kinds), ("scores", scores)):
        if len(values) != len(tokens):
            _refuse(key, f"has {len(values)} entries for {len(tokens)} tokens")
    if not isinstance(metadata.get(PREFIX + "pre", ""), str):
        _refuse("pre", "is no text")
    if PREFIX + "merges" in metadata:
        broken = next((merge for merge in _listed(metadata, "merges", str) if " " not in merge[1:]), None)
        if broken is not None:
            _refuse("merges", f"holds {broken!r:.40}, which is no pair")
    for key in TOKEN_IDS:
        found = metadata.get(PREFIX + key)
        if found is not None and (type(found) is not int or not 0 <= found < len(tokens)):
            _refuse(key, f"is {found!r:.40}, and there are {len(tokens)} tokens")


def _listed(metadata: Mapping[str, Any], key: str, kinds: type | UnionType) -> Sequence[Any]:
    values = metadata.get(PREFIX + key)
    if values is None:
        _refuse(key, "is missing")
    if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
        _refuse(key, "is not what it should be, a list of " + ("texts" if kinds is str else "numbers"))
    return values


def _refuse(key: str, what: str) -> NoReturn:
    raise InvalidRequest(f"the GGUF file's tokenizer cannot be read: {PREFIX}{key} {what}; download it again, or convert the model again")
