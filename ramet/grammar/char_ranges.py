"""Sets of characters as sorted, disjoint ranges of code points, and how text spells them: UTF-8, and the insides of a JSON string.

A *word* is a sequence of byte sets (bit b of a mask: byte b is in it); a set of characters is a few words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

Ranges = tuple[tuple[int, int], ...]
Word = tuple[int, ...]

LAST = 0x10FFFF
SURROGATES: Ranges = ((0xD800, 0xDFFF),)
ALL: Ranges = ((0, 0xD7FF), (0xE000, LAST))
MUST_ESCAPE: Ranges = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
SHORT_ESCAPES = {0x22: '"', 0x5C: "\\", 0x2F: "/", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
_UTF8_ENDS = (0x7F, 0x7FF, 0xFFFF, LAST)


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """Among the characters that text can hold: surrogates are none."""
    gaps, at = [], 0
    for low, high in union((*ranges, *SURROGATES)):
        if at < low:
            gaps.append((at, low - 1))
        at = high + 1
    return (*gaps, (at, LAST)) if at <= LAST else tuple(gaps)


def intersect(one: Ranges, other: Ranges) -> Ranges:
    return complement((*complement(one), *complement(other)))


@lru_cache(maxsize=1024)
def least_len(ranges: Ranges, quoted: bool) -> int:
    """Bytes of the shortest spelling."""
    return min(map(len, json_words(ranges) if quoted else utf8_words(ranges)))


@lru_cache(maxsize=1024)
def utf8_words(ranges: Ranges) -> list[Word]:
    words: list[Word] = []
    for low, high in intersect(ranges, ALL):
        start = low
        for end in _UTF8_ENDS:
            if start <= min(high, end):
                stop = min(high, end)
                words += _aligned(tuple(chr(start).encode()), tuple(chr(stop).encode()), 0x80, 0xBF)
                start = stop + 1
    return words


@lru_cache(maxsize=256)
def json_words(ranges: Ranges) -> list[Word]:
    """Every spelling inside a JSON string: as it is, short escapes, \\uXXXX, surrogate pairs."""
    return utf8_words(intersect(ranges, complement(MUST_ESCAPE))) + escape_words(ranges)


def escape_words(ranges: Ranges) -> list[Word]:
    backslash = 1 << 0x5C
    short = sum(1 << ord(letter) for code, letter in SHORT_ESCAPES.items() if any(low <= code <= high for low, high in ranges))
    words: list[Word] = [(backslash, short)] if short else []
    head = (backslash, 1 << ord("u"))
    for low, high in intersect(ranges, ALL):
        if low <= 0xFFFF:
            words += [head + word for word in _hex_words(low, min(high, 0xFFFF))]
        if high > 0xFFFF:
            for first, second in _pairs(max(low, 0x10000), high):
                words += [head + a + head + b for a in _hex_words(*first) for b in _hex_words(*second)]
    return words


def _aligned(low: tuple[int, ...], high: tuple[int, ...], first: int, last: int) -> Iterator[Word]:
    """Words between two digit strings of equal length, whose digits after the first run from `first` to `last`."""
    if len(low) == 1:
        yield (_mask(low[0], high[0]),)
        return
    if low[0] == high[0]:
        yield from ((1 << low[0], *rest) for rest in _aligned(low[1:], high[1:], first, last))
        return
    least, most = (first,) * (len(low) - 1), (last,) * (len(low) - 1)
    start, stop = low[0], high[0]
    if low[1:] != least:
        yield from ((1 << start, *rest) for rest in _aligned(low[1:], most, first, last))
        start += 1
    if high[1:] != most:
        yield from ((1 << stop, *rest) for rest in _aligned(least, high[1:], first, last))
        stop -= 1
    if start <= stop:
        yield (_mask(start, stop), *[_mask(first, last)] * len(least))


@lru_cache(maxsize=4096)
def edges(mask: int) -> frozenset[int]:
    """Bytes at which a run of bytes that are in the set, or are not, begins; 256 after its last."""
    found, changes = [], mask ^ mask << 1
    while changes:
        found.append((changes & -changes).bit_length() - 1)
        changes &= changes - 1
    return frozenset(found)


def _mask(low: int, high: int) -> int:
    return (1 << (high + 1)) - (1 << low)


def _hex_words(low: int, high: int) -> list[Word]:
    digits = [tuple((code >> shift) & 15 for shift in (12, 8, 4, 0)) for code in (low, high)]
    return [tuple(_hex_digits(mask) for mask in word) for word in _aligned(digits[0], digits[1], 0, 15)]


def _hex_digits(values: int) -> int:
    """Mask of the values 0 … 15 → mask of the characters that write them."""
    found = 0
    for value in range(16):
        if values >> value & 1:
            found |= (1 << ord(f"{value:x}")) | (1 << ord(f"{value:X}"))
    return found


def _pairs(low: int, high: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges of surrogate pairs that spell low … high."""
    (a, b), (c, d) = _pair(low), _pair(high)
    if a == c:
        yield (a, a), (b, d)
        return
    yield (a, a), (b, 0xDFFF)
    if a + 1 < c:
        yield (a + 1, c - 1), (0xDC00, 0xDFFF)
    yield (c, c), (0xDC00, d)


def _pair(code: int) -> tuple[int, int]:
    return 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + ((code - 0x10000) & 0x3FF)
