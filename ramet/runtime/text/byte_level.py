"""GPT-2's alphabet: byte-level BPE writes every byte as one printable character, so that a vocabulary is plain text."""

from __future__ import annotations

from functools import cache


@cache
def byte_to_char() -> dict[int, str]:
    """Printable Latin-1 bytes stand for themselves; the other 68 are numbered upwards from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(0x100 + index) for index, byte in enumerate(others)}


@cache
def char_to_byte() -> dict[str, int]:
    return {char: byte for byte, char in byte_to_char().items()}


@cache
def _to_latin1() -> tuple[frozenset[str], dict[int, int]]:
    return frozenset(char_to_byte()), {ord(char): byte for char, byte in char_to_byte().items()}


def piece_bytes(piece: str) -> bytes:
    """The bytes of a byte-level vocabulary entry. A character outside the alphabet (an entry stored as plain text) is its own UTF-8."""
    alphabet, table = _to_latin1()
    return piece.translate(table).encode("latin-1") if alphabet.issuperset(piece) else piece.encode("utf-8")
