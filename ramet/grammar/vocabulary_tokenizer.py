"""A vocabulary as llguidance wants to see a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ramet.grammar.matcher import Vocabulary

Encode = Callable[[str], Sequence[int]]
"""Text in the middle of a generation → ids, as the model's tokenizer writes it."""
SPECIAL = re.compile(rb"\xff\[(\d+)\]")


def special_token(token_id: int) -> bytes:
    """How a special token, which stands for no text, is written in expressions: no text holds its first byte."""
    return b"\xff[%d]" % token_id


class VocabularyTokenizer:
    """What llguidance asks of a tokenizer, exactly as wide as the logits. Ids that stand for no bytes become special tokens, which no
    grammar text can match."""

    def __init__(self, vocabulary: Vocabulary, eos_ids: frozenset[int], encode: Encode | None) -> None:
        known = vocabulary.token_bytes[: vocabulary.size]
        pieces = [*known, *[b""] * (vocabulary.size - len(known))]
        closed = vocabulary.special_ids | eos_ids
        special = {index for index, piece in enumerate(pieces) if not piece or index in closed}
        self.eos_token_id = min(eos_ids)
        self.bos_token_id = None
        self.special_token_ids = sorted(special)
        self.tokens = [b"<|special %d|>" % index if index in special else piece for index, piece in enumerate(pieces)]
        self.pieces = [special_token(index) if index in special else piece for index, piece in enumerate(pieces)]
        self._encode = encode
        self._id_of = {piece: index for index, piece in enumerate(self.tokens) if index not in special}
        self._longest = max(map(len, self._id_of), default=1)

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("this tokenizer reads str")  # llguidance tries bytes first
        whole = text.encode("utf-8")
        return self._faithful(text, whole) or self._greedy(whole)

    def spell(self, text: bytes) -> list[int]:
        """Tokens for bytes that may begin in the middle of a character, and for special ones among them."""
        found: list[int] = []
        at = 0
        for special in SPECIAL.finditer(text):
            found += [*self._spell(text[at : special.start()]), int(special[1])]
            at = special.end()
        return found + self._spell(text[at:])

    def _spell(self, text: bytes) -> list[int]:
        start = next((at for at in range(min(4, len(text))) if text[at] & 0xC0 != 0x80), len(text))
        try:
            readable = text[start:].decode("utf-8")
        except UnicodeDecodeError:
            return self._greedy(text)
        return self._greedy(text[:start]) + (self(readable) if readable else [])

    def _faithful(self, text: str, whole: bytes) -> list[int]:
        """As the tokenizer writes it; [] when its tokens do not spell the text."""
        ids = list(self._encode(text)) if self._encode else []
        faithful = all(index < len(self.tokens) for index in ids) and b"".join([self.tokens[index] for index in ids]) == whole
        return ids if faithful else []

    def _greedy(self, text: bytes) -> list[int]:
        """Longest token first: for text that the tokenizer itself would write otherwise (special tokens spelled out)."""
        ids: list[int] = []
        at = 0
        while at < len(text):
            piece = next((text[at : at + n] for n in range(self._longest, 0, -1) if text[at : at + n] in self._id_of), None)
            if piece is None:
                return ids  # a byte without a token: llguidance treats the rest as not forced
            ids.append(self._id_of[piece])
            at += len(piece)
        return ids
