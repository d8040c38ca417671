"""The parts that read a `.pt` file, each alone: the archive, its pickle, the tensor it claims."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jasper_mmap.errors import FormatError, UnsafeFileError
from jasper_mmap.files.pt.archive import Archive
from jasper_mmap.files.pt.tensors import MOST_DIMENSIONS, LimitError, Name, SavedTensor, Storage
from jasper_mmap.files.pt.tensors import rebuilt as rebuild
from jasper_mmap.files.pt.unpickler import Unpickler

LEAVES = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False)
VALUES = st.recursive(
    LEAVES | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner, inner, inner)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(VALUES, VALUES)
def test_pickles_are_read_as_python_reads_them(first: Any, second: Any) -> None:
    """Numbers, text and containers of any depth, one pickle after another, in torch's protocol."""
    unpickler = Unpickler(pickle.dumps(first, 2) + pickle.dumps(second, 2), "here")
    assert [unpickler.load(), unpickler.load()] == [first, second]


@given(VALUES, st.data())
def test_a_truncated_pickle_is_damaged(value: Any, data: st.DataObject) -> None:
    """Wherever it ends."""
    pickled = pickle.dumps(value, 2)
    end = data.draw(st.integers(0, len(pickled) - 1))
    with pytest.raises(FormatError, match="damaged, truncated or not a torch file"):
        Unpickler(pickled[:end], "here").load()


@pytest.mark.parametrize("name", ["os system", "torch FloatTensor", "builtins getattr"])
def test_a_name_that_no_tensor_needs_is_refused(name: str) -> None:
    """Before anything is done with it, and without importing it."""
    module, attribute = name.split()
    with pytest.raises(UnsafeFileError, match=f"{module}.{attribute}"):
        Unpickler(f"c{module}\n{attribute}\n.".encode(), "here").load()


def tensor(shape: Any, strides: Any, offset: int = 0) -> Any:
    """Return what the call that rebuilds a tensor describes."""
    storage = Storage("0", torch.float32, 4000)
    return rebuild(Name("torch._utils._rebuild_tensor_v2"), (storage, offset, shape, strides))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=4), st.integers(0, 9))
def test_the_end_of_a_tensor_is_that_of_its_last_element(
    axes: list[tuple[int, int]], offset: int
) -> None:
    """By torch's own view of as many elements, in the order of memory or not."""
    shape, strides = [n for n, _ in axes], [step for _, step in axes]
    saved = tensor(tuple(shape), tuple(strides), offset)
    places = torch.arange(1000).as_strided(shape, strides, offset)
    assert saved.end == (0 if not places.numel() else (int(places.max()) + 1) * 4)
    if places.numel():
        assert saved.ordered == places.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "strides", "error"),
    [
        ((2, 3), (3,), ValueError),
        ((2, -3), (3, 1), ValueError),
        ((2, True), (3, 1), ValueError),
        ([2, 3], (3, 1), TypeError),
        ((1,) * (MOST_DIMENSIONS + 1), (1,) * (MOST_DIMENSIONS + 1), LimitError),
    ],
)
def test_an_impossible_tensor_is_refused(shape: Any, strides: Any, error: type[Exception]) -> None:
    """Of as many strides as sizes, none below 0, not without limit."""
    with pytest.raises(error):
        tensor(shape, strides)


def test_a_lazily_negated_tensor_says_so() -> None:
    """The bit is in the seventh argument."""
    arguments: Any = (Storage("0", torch.float32, 8), 0, (2,), (1,), False, {}, {"neg": True})
    saved = rebuild(Name("torch._utils._rebuild_tensor_v2"), arguments)
    assert isinstance(saved, SavedTensor)
    assert saved.negated
    assert not tensor((2,), (1,)).negated


def archive(path: Path, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    """Write a zip archive as torch names its records."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in records.items():
            file.writestr(f"archive/{name}", data)
    return path


def test_a_record_is_where_the_zip_module_finds_it(tmp_path: Path) -> None:
    """Its bytes, its limit, its checksum, and its end inside the file."""
    path = archive(tmp_path / "t.pt", data=b"x" * 1000, byteorder=b"big")
    with path.open("rb") as file:
        read = Archive(file, "here")
        begin, end, crc = read.extent("data")
        assert path.read_bytes()[begin:end] == b"x" * 1000
        assert crc == zipfile.ZipFile(path).getinfo("archive/data").CRC
        assert read.read("data", 1000) == b"x" * 1000
        assert read.byte_order == "big"
        with pytest.raises(FormatError, match="has 1000 bytes; at most 999 are allowed"):
            read.read("data", 999)
        with pytest.raises(FormatError, match="has no record 'other'"):
            read.read("other", 10)


def test_a_record_that_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    """Compressed, or one whose bytes or header were altered."""
    packed = archive(tmp_path / "packed.pt", zipfile.ZIP_DEFLATED, data=b"x" * 1000)
    altered = archive(tmp_path / "altered.pt", data=b"x" * 1000)
    content = bytearray(altered.read_bytes())
    content[content.index(b"x" * 1000) + 500] = 0
    altered.write_bytes(content)
    for path, reason in ((packed, "compressed or encrypted"), (altered, "CRC-32")):
        with path.open("rb") as file, pytest.raises(FormatError, match=reason):
            Archive(file, "here").read("data", 1000)


def test_a_directory_of_records_that_is_not_one_is_refused(tmp_path: Path) -> None:
    """Empty, cut, or an unknown byte order."""
    empty = archive(tmp_path / "empty.pt")
    cut = archive(tmp_path / "cut.pt", data=b"x" * 100)
    cut.write_bytes(cut.read_bytes()[:-8])
    for path in (empty, cut):
        with path.open("rb") as file, pytest.raises(FormatError, match="zip directory"):
            Archive(file, "here")
    mixed = archive(tmp_path / "mixed.pt", data=b"x", byteorder=b"middle")
    with mixed.open("rb") as file, pytest.raises(FormatError, match="unknown byte order"):
        _ = Archive(file, "here").byte_order


def test_numbers_of_every_width_are_exact() -> None:
    """At the limits of each opcode."""
    numbers = [0, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, 2**63, -(2**63), 2**100]
    assert Unpickler(pickle.dumps(numbers, 2), "here").load() == numbers
    assert Unpickler(b"G" + struct.pack(">d", -0.0) + b".", "here").load().hex() == "-0x0.0p+0"
