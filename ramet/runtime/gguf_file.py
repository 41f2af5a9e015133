"""GGUF files: metadata as Python values, tensors as memory-mapped quantised blocks.

The format: header, key-values, tensor table, padding, tensor data (github.com/ggml-org/ggml, docs/gguf.md). The parser is ours because
start-up time counts: the `gguf` package takes seconds for a vocabulary of 49k strings, this one a tenth of one.
`ramet.runtime.gguf_quants` turns blocks into numbers.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

from ramet.errors import InvalidRequest, Unsupported

_T = TypeVar("_T")

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"}
"""Value type in the file → its numpy type."""


class BlockType(NamedTuple):
    """How a tensor type is stored: `num_values` numbers in `num_bytes` bytes."""

    name: str
    num_values: int
    num_bytes: int


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
    30: BlockType("BF16", 1, 2),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
}
"""Tensor type in the file → its storage; a type that is not here is refused."""

REFUSED_TYPES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    40: "NVFP4",
    41: "Q1_0",
}
"""What the refusal calls them; a type that is not here either is refused by its number."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file. `shape` is in torch's order (rows first); `blocks` is [rows, bytes of a row], a read-only view of the
    mapped file, where the last dimension of `shape` makes a row."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    blocks: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class GgufFile:
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    buffer: mmap.mmap

    def drop_pages(self) -> None:
        """Give back the memory that what was read of the file takes; what is read again comes from the system's cache, or the disk."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED)


class Strings(Sequence[str]):
    """An array of strings in the mapped file, decoded where they are read: who loads a model has little use for its vocabulary."""

    def __init__(self, buffer: mmap.mmap, places: array[int]) -> None:
        """`places`: of each string its first byte and the one behind it."""
        self._buffer, self._places = buffer, places

    def __len__(self) -> int:
        return len(self._places) // 2

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first = range(0, len(self._places), 2)[index]
        start, end = self._places[first], self._places[first + 1]
        return self._buffer[start:end].decode("utf-8", "replace")

    def tolist(self) -> list[str]:
        buffer, places = self._buffer, self._places
        return [buffer[start:end].decode("utf-8", "replace") for start, end in zip(places[::2], places[1::2], strict=True)]


Entry = tuple[str, tuple[int, ...], int, int]
"""Of the table: a tensor's name, shape, type, and its first byte behind where the data begin."""


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-values of the file: ints, floats, bools, strings, `Strings`, numpy arrays of numbers. Unmapped with the last of them."""
    return _Reader(_mapped(path), path).metadata()


def open_gguf(path: Path) -> GgufFile:
    """Metadata and tensors. The tensors stay in the mapped file; it is unmapped with the last of them."""
    buffer = _mapped(path)
    reader = _Reader(buffer, path)
    metadata = reader.metadata()
    return GgufFile(metadata, reader.tensors(metadata.get("general.alignment", DEFAULT_ALIGNMENT)), buffer)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            raise InvalidRequest(f"{path} is empty, not a GGUF file; download it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Reader:
    """A cursor over the file. Made for one pass: header, `metadata()`, `tensors()`, in this order."""

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer, self.path, self.at = buffer, path, 0
        if buffer[:4] != MAGIC:
            raise InvalidRequest(f"{path} is not a GGUF file (it starts with {buffer[:4]!r})")
        self.at = 4
        self.num_tensors, self.num_keys = self.guarded(self.header)

    def header(self) -> tuple[int, int]:
        version = self.number("<I")
        if version not in VERSIONS:
            raise Unsupported(f"{self.path} is GGUF version {version}; this build reads versions 2 and 3 (little-endian)")
        return self.number("<Q"), self.number("<Q")

    def metadata(self) -> dict[str, Any]:
        return self.once(self.guarded(lambda: [(self.string(), self.value(self.number("<I"))) for _ in range(self.num_keys)]))

    def tensors(self, alignment: object) -> dict[str, GgufTensor]:
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damaged(f"general.alignment is {alignment!r:.40}")
        table = self.guarded(lambda: [self.tensor_entry() for _ in range(self.num_tensors)])
        data_start = -(-self.at // alignment) * alignment
        self.check_apart(table)
        return self.once([(name, self.tensor(name, shape, kind, data_start + offset)) for name, shape, kind, offset in table])

    def once(self, pairs: Sequence[tuple[str, _T]]) -> dict[str, _T]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise self.damaged(f"it names {next(name for name in found if names.count(name) > 1)!r:.80} twice")
        return found

    def guarded(self, parse: Callable[[], _T]) -> _T:
        """Whatever bytes there are."""
        try:
            return parse()
        except (struct.error, ValueError, KeyError, OverflowError) as error:
            raise self.damaged(f"near byte {min(self.at, len(self.buffer))}: {error}") from error
        except RecursionError as error:
            raise self.damaged(f"near byte {self.at}: arrays in arrays without end") from error

    def damaged(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"{self.path} is cut short or damaged ({what}); download it again")

    def unread(self, name: str, kind: int) -> Unsupported:
        stored = f"as {REFUSED_TYPES[kind]}" if kind in REFUSED_TYPES else f"in a form unknown here (GGML type {kind})"
        known = ", ".join(sorted(block.name for block in BLOCK_TYPES.values()))
        return Unsupported(
            f"{self.path}: tensor {name} is stored {stored}, which this build does not read; take another file of this model, such as "
            f"Q4_K_M, IQ4_XS or Q2_K, or make one with llama-quantize (types that are read: {known})"
        )

    def number(self, fmt: str) -> int:
        (value,) = struct.unpack_from(fmt, self.buffer, self.at)
        self.at += struct.calcsize(fmt)
        return int(value)

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> Strings:
        places, at, buffer, unpack = array("Q"), self.at, self.buffer, struct.Struct("<Q").unpack_from
        keep = places.append
        for _ in range(count):
            keep(at + 8)
            at += 8 + unpack(buffer, at)[0]
            keep(at)
        self.at = at
        if at > len(buffer):
            raise ValueError("a string ends behind the file's end")
        return Strings(buffer, places)

    def numbers(self, value_type: int, count: int) -> npt.NDArray[Any]:
        values = np.frombuffer(self.buffer, SCALARS[value_type], count, self.at).copy()
        self.at += values.nbytes
        return values.astype(np.bool_) if value_type == BOOL else values

    def value(self, value_type: int) -> Any:
        if value_type == STRING:
            return self.string()
        if value_type != ARRAY:
            return self.numbers(value_type, 1)[0].item()
        item_type, count = self.number("<I"), self.number("<Q")
        if item_type == STRING:
            return self.strings(count)
        return [self.value(ARRAY) for _ in range(count)] if item_type == ARRAY else self.numbers(item_type, count)

    def tensor_entry(self) -> Entry:
        name = self.string()
        reversed_shape = [self.number("<Q") for _ in range(self.number("<I"))]
        if 0 in reversed_shape or not reversed_shape:
            raise ValueError(f"tensor {name} has {'no values' if reversed_shape else 'no dimensions'}")
        return name, tuple(reversed(reversed_shape)), self.number("<I"), self.number("<Q")

    def check_apart(self, table: Sequence[Entry]) -> None:
        end, before = 0, ""
        for name, shape, kind, offset in sorted(table, key=itemgetter(3)):
            if offset < end:
                raise self.damaged(f"tensor {name} begins inside of tensor {before}")
            end, before = offset + prod(shape[:-1]) * self.row_bytes(name, shape[-1], kind), name

    def row_bytes(self, name: str, num_values: int, kind: int) -> int:
        if kind not in BLOCK_TYPES:
            raise self.unread(name, kind)
        block = BLOCK_TYPES[kind]
        if num_values % block.num_values:
            raise self.damaged(f"tensor {name}: rows of {num_values} are not a multiple of {block.num_values}")
        return num_values // block.num_values * block.num_bytes

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        row_bytes, num_rows = self.row_bytes(name, shape[-1], kind), prod(shape[:-1])
        if offset + num_rows * row_bytes > len(self.buffer):
            raise self.damaged(f"tensor {name} ends behind the file's end")
        blocks = np.frombuffer(self.buffer, np.uint8, num_rows * row_bytes, offset).reshape(num_rows, row_bytes)
        return GgufTensor(name, shape, BLOCK_TYPES[kind], blocks)
