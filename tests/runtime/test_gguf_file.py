"""The GGUF reader against files that the gguf package wrote, and its quantisation formats against the package's arithmetic."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import InvalidRequest, RametError, Unsupported
from ramet.runtime.gguf_file import BLOCK_TYPES, REFUSED_TYPES, BlockType, GgufTensor, Strings, open_gguf, read_metadata
from ramet.runtime.gguf_quants import DEQUANTISE, dequantise

TYPES = {block.name: block for block in BLOCK_TYPES.values()}
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "F16": [0]}
HALVES |= {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
HALVES |= {"IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64]}
"""Where a block has its float16 scales: random bytes would often not be numbers there."""


def written(path: Path, *, tensors: dict[str, np.ndarray] | None = None, numbers: Mapping[str, int] | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, number in (numbers or {}).items():
        writer.add_uint32(name, number)
    writer.add_uint32("a.count", 7)
    writer.add_int32("a.negative", -3)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "naïve 汉字 🙂")
    writer.add_array("a.words", ["", "Ġthe", "🙂", "x" * 300])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [0.5, -1.5])
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    _finish(writer)
    return path


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_metadata_are_python_values(tmp_path: Path) -> None:
    metadata = read_metadata(written(tmp_path / "m.gguf"))
    assert metadata["general.architecture"] == "llama"
    assert (metadata["a.count"], metadata["a.negative"], metadata["a.float"], metadata["a.flag"]) == (7, -3, 0.5, True)
    assert metadata["a.flag"] is True
    assert metadata["a.text"] == "naïve 汉字 🙂"
    words = ["", "Ġthe", "🙂", "x" * 300]
    assert metadata["a.words"].tolist() == list(metadata["a.words"]) == words and len(metadata["a.words"]) == 4
    assert (metadata["a.words"][-1], metadata["a.words"][1:3]) == (words[-1], words[1:3])
    with pytest.raises(IndexError):
        metadata["a.words"][4]
    assert metadata["a.numbers"].tolist() == [1, 2, 3] and metadata["a.floats"].tolist() == [0.5, -1.5]


def test_tensors_have_torch_shapes_and_their_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.standard_normal((3, 5), np.float32), "b": rng.standard_normal(7, np.float32)}
    tensors["c.weight"] = rng.standard_normal((4, 6)).astype(np.float16)
    file = open_gguf(written(tmp_path / "m.gguf", tensors=tensors))
    for name, values in tensors.items():
        assert file.tensors[name].shape == values.shape
        np.testing.assert_array_equal(dequantise(file.tensors[name]).reshape(values.shape), values.astype(np.float32))
    np.testing.assert_array_equal(dequantise(file.tensors["a.weight"], 1, 2), tensors["a.weight"][1:2])


def test_every_type_has_a_dequantiser() -> None:
    assert set(DEQUANTISE) == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_blocks_have_the_package_size(name: str) -> None:
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (TYPES[name].num_values, TYPES[name].num_bytes) == (values, size)


@pytest.mark.parametrize("name", TYPES)
def test_dequantised_blocks_equal_the_package(name: str) -> None:
    """On random bytes, so that every bit of a block matters; scales are kept finite."""
    block = TYPES[name]
    rows = _random_rows(block, num_rows=6, blocks_per_row=3)
    wanted = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    found = dequantise(GgufTensor("t", (6, 3 * block.num_values), block, rows))
    assert found.dtype == np.float32 and found.flags.writeable
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", TYPES)
def test_columns_are_cut_out_on_block_borders(name: str) -> None:
    block = TYPES[name]
    size = block.num_values
    tensor = GgufTensor("t", (6, 5 * size), block, _random_rows(block, num_rows=6, blocks_per_row=5))
    whole = dequantise(tensor)
    for first, last in [(0, 2), (1, 4), (4, 5)]:
        columns = range(first * size, last * size)
        np.testing.assert_array_equal(dequantise(tensor, 2, 5, columns), whole[2:5, columns.start : columns.stop])


def test_a_file_of_every_type_is_read(tmp_path: Path) -> None:
    rows = {name: _random_rows(block, num_rows=4, blocks_per_row=2) for name, block in TYPES.items()}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, values in rows.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[name])
    _finish(writer)
    tensors = open_gguf(tmp_path / "m.gguf").tensors
    assert set(tensors) == set(TYPES)
    for name, tensor in tensors.items():
        assert (tensor.type.name, tensor.shape) == (name, (4, 2 * TYPES[name].num_values))
        np.testing.assert_array_equal(dequantise(tensor), gguf.quants.dequantize(rows[name], gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_numbers_come_back(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    rows = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    found = dequantise(GgufTensor("t", values.shape, TYPES[name], rows))
    assert np.abs(found - values).max() < {"Q8": 0.02, "Q5": 0.15, "Q4": 0.3}[name[:2]]


def _random_rows(block: BlockType, num_rows: int, blocks_per_row: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (num_rows * blocks_per_row, block.num_bytes), np.uint8)
    for start in HALVES.get(block.name, []):
        blocks[:, start : start + 2] = rng.standard_normal((len(blocks), 1)).astype(np.float16).view(np.uint8)
    if block.name == "MXFP4":
        blocks[:, 0] %= 160
    if block.name in ("F32", "BF16"):
        size = block.num_bytes
        blocks = np.ascontiguousarray(rng.standard_normal((len(blocks), 1), np.float32).view(np.uint8)[:, 4 - size :])
    return blocks.reshape(num_rows, -1)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(InvalidRequest, match=r"m\.gguf is not a GGUF file"):
        read_metadata(tmp_path / "m.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(InvalidRequest, match="empty"):
        read_metadata(tmp_path / "empty.gguf")


def test_every_cut_of_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    whole = written(tmp_path / "m.gguf", tensors={"a": np.ones((2, 3), np.float32)}).read_bytes()
    end_of_data = whole.rindex(np.float32(1).tobytes()) + 4
    for length in range(4, end_of_data, 7):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(InvalidRequest, match=r"cut\.gguf is cut short"):
            open_gguf(tmp_path / "cut.gguf")


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    whole = bytearray(written(tmp_path / "m.gguf").read_bytes())
    whole[4:8] = (9).to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(whole)
    with pytest.raises(Unsupported, match="version 9"):
        read_metadata(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", [*REFUSED_TYPES, 77])
def test_a_tensor_type_that_is_not_read_is_refused_by_name(kind: int, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", tensors={"odd": np.ones((2, 3), np.int32)})
    whole = bytearray(path.read_bytes())
    place = whole.index(b"odd") + len(b"odd") + 4 + 2 * 8
    assert whole[place : place + 4] == (26).to_bytes(4, "little")
    whole[place : place + 4] = kind.to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(
        Unsupported, match=r"m\.gguf: tensor odd is stored (.+), which this build does not read; .* Q4_K_M.*MXFP4"
    ) as refusal:
        open_gguf(path)
    assert f" {REFUSED_TYPES.get(kind, '(GGML type 77)')}," in str(refusal.value)


def test_types_have_the_package_names() -> None:
    named = {kind: block.name for kind, block in BLOCK_TYPES.items()} | REFUSED_TYPES
    assert len(named) == len(BLOCK_TYPES) + len(REFUSED_TYPES)
    gone = {31, 32, 33}  # Q4_0 in the order of ARM's kernels: such files are about, the package has forgotten them
    assert all(gguf.GGMLQuantizationType(kind).name == name for kind, name in named.items() if kind not in gone)


def repacked(whole: bytes, name: str, at: int, value: int, size: int = 8) -> bytes:
    """With another number at this place behind a tensor's name in the table."""
    place = whole.index(name.encode()) + len(name) + at
    return whole[:place] + value.to_bytes(size, "little") + whole[place + size :]


NUM_DIMS, FIRST_DIM, OFFSET = 0, 4, 4 + 2 * 8 + 4
"""Places behind the name of a tensor of two dimensions."""


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda whole: repacked(whole, "aa", NUM_DIMS, 0, 4), "tensor aa has no dimensions"),
        (lambda whole: repacked(whole, "aa", FIRST_DIM, 0), "tensor aa has no values"),
        (lambda whole: repacked(whole, "aa", FIRST_DIM, 2**63), "tensor bb begins inside of tensor aa|ends behind the file's end"),
        (lambda whole: repacked(whole, "bb", OFFSET, 0), "tensor (bb|aa) begins inside of tensor (aa|bb)"),
        (lambda whole: repacked(whole, "bb", OFFSET, 2**64 - 32), "tensor bb ends behind"),
        (lambda whole: whole.replace(b"bb", b"aa"), "it names 'aa' twice"),
        (lambda whole: whole.replace(b"a.count", b"a.float"), "it names 'a.float' twice"),
        (lambda whole: whole[:8] + (2**60).to_bytes(8, "little") + whole[16:], "near byte"),
        (lambda whole: whole[:16] + (2**60).to_bytes(8, "little") + whole[24:], "near byte"),
        (lambda whole: whole.replace(b"general.xlignment", b"general.alignment"), "alignment is 0"),
        (lambda whole: whole[:24] + (2**64 - 1).to_bytes(8, "little") + whole[32:], "near byte 2"),
    ],
)
def test_a_header_that_cannot_be_is_refused(damage: Callable[[bytes], bytes], complaint: str, tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray] = {"aa": np.ones((2, 3), np.float32), "bb": np.ones((2, 16), np.float32)}
    path = written(tmp_path / "m.gguf", tensors=tensors, numbers={"general.xlignment": 0})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidRequest, match=rf"m\.gguf is cut short or damaged \(.*({complaint})"):
        open_gguf(path)


def test_arrays_in_arrays_without_end_are_refused(tmp_path: Path) -> None:
    nested = b"".join((9).to_bytes(4, "little") + (1).to_bytes(8, "little") for _ in range(5000))
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    (tmp_path / "m.gguf").write_bytes(head + (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little") + nested)
    with pytest.raises(InvalidRequest, match="arrays in arrays"):
        read_metadata(tmp_path / "m.gguf")


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tensors: dict[str, np.ndarray] = {"a": np.ones((2, 3), np.float32), "b.weight": np.ones(32, np.float16)}
    return written(tmp_path_factory.mktemp("whole") / "m.gguf", tensors=tensors).read_bytes()


ODD = [0, 1, 7, 8, 9, 255, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
CHANGES = st.tuples(st.floats(0, 1), st.sampled_from([1, 4, 8]), st.one_of(st.sampled_from(ODD), st.integers(0, 255)))


@settings(max_examples=400, deadline=None)
@given(st.lists(CHANGES, max_size=3), st.one_of(st.just(1.0), st.floats(0, 1)))
def test_any_damage_is_our_own_error(whole_file: bytes, changes: list[tuple[float, int, int]], kept: float) -> None:
    """What still opens can be read to the last byte."""
    damaged = bytearray(whole_file)
    for place, size, value in changes:
        at = int(place * (len(damaged) - size))
        damaged[at : at + size] = (value % 256**size).to_bytes(size, "little")
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(damaged[: int(kept * len(damaged))])
        file.flush()
        try:
            found = open_gguf(Path(file.name))
        except RametError as error:
            assert file.name in error.message
            return
        for tensor in found.tensors.values():
            assert len(tensor.blocks.tobytes()) == np.prod(tensor.shape, dtype=object) // tensor.type.num_values * tensor.type.num_bytes
        for value in found.metadata.values():
            assert not isinstance(value, Strings) or len(value.tolist()) == len(value)
