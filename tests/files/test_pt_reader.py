"""`.pt` files are read safely: nothing in them runs, nothing outside a saved tensor is served."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jasper_mmap.errors import ContentTypeError, FormatError, UnsafeFileError
from jasper_mmap.files.pt.reader import read_pt
from tests.files.test_files import same_bytes, sample


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.uint16]
)
def test_pt_tensor_is_read_as_it_was_saved(
    tmp_path: Path, dtype: torch.dtype, zipped: bool
) -> None:
    """Both formats; views whose whole storage was saved, strided, empty and 0-d ones."""
    base = sample(dtype, 20, 6)
    for table in (base, base[3:9], base[:, 2:4], base.t(), base[:0], base[0, 0]):
        torch.save(table, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
        assert same_bytes(read_pt(tmp_path / "t.pt"), table)


def test_pt_tensor_is_mapped_and_not_read(tmp_path: Path) -> None:
    """Of the zip format nothing is copied; writing to it leaves the file alone."""
    torch.save(sample(torch.float32, 1000, 100), tmp_path / "t.pt")
    before = (tmp_path / "t.pt").read_bytes()
    table = read_pt(tmp_path / "t.pt")
    assert str(tmp_path / "t.pt") in Path("/proc/self/maps").read_text()
    table.zero_()
    assert (tmp_path / "t.pt").read_bytes() == before


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("value", [[[1, 2], [], [3]], [], [[]], {"a": 1}, 5, (1, "x")])
def test_plain_containers_are_read(tmp_path: Path, value: Any, zipped: bool) -> None:
    """Keyword lists are Python lists."""
    torch.save(value, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    assert read_pt(tmp_path / "t.pt") == value


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, kind: str, nested: bool) -> None:
    """The error names what it asked for; nothing happened."""
    evil: Any = Evil(tmp_path / "trace")
    evil = [[1], evil] if nested else evil
    path = tmp_path / "t.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(FormatError if kind == "pickle" else UnsafeFileError) as caught:
        read_pt(path)
    assert str(path) in str(caught.value)
    assert kind == "pickle" or "needs 'posix.mkdir'" in str(caught.value)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated_pt_is_an_error_of_ours(tmp_path: Path, zipped: bool, share: float) -> None:
    """Cut anywhere."""
    path = tmp_path / "t.pt"
    torch.save(sample(torch.float32, 100, 10), path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(FormatError, match=r"t\.pt"):
        read_pt(path)


@pytest.mark.parametrize("told", [b"K\x7f\x85", b"J\xff\xff\xff\x7f\x85"])
@pytest.mark.parametrize("both", [False, True])
def test_tensor_that_claims_more_than_was_saved_is_refused(
    tmp_path: Path, told: bytes, both: bool
) -> None:
    """A pickle that says 127 elements, or two billion, where three were saved; of the tensor
    alone or of its storage too. What lies behind them in the file is not served as data."""
    torch.save(torch.ones(3), tmp_path / "good.pt")
    path = tmp_path / "t.pt"
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name.endswith("data.pkl"):
                assert b"K\x03\x85" in data
                assert b"K\x03tq" in data
                data = data.replace(b"K\x03\x85", told)
                data = data.replace(b"K\x03tq", told[:-1] + b"tq") if both else data
            bad.writestr(name, data)
    with pytest.raises(FormatError, match=r"t\.pt"):
        read_pt(path)


@pytest.mark.parametrize(
    "data", [b"x", b"\0" * 1000, b"PK\x03\x04" + b"junk" * 99, b"\x93NUMPY\x01\x00", b"{}"]
)
def test_file_of_no_torch_format_is_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    """Whatever it is instead."""
    (tmp_path / "t.pt").write_bytes(data)
    with pytest.raises(FormatError, match=r"t\.pt"):
        read_pt(tmp_path / "t.pt")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x93NUMPY\x01\x00", "NumPy file"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x40\0\0\0\0\0\0\0{", "safetensors"),
        (b"hello" * 99, "damaged, truncated or not a torch file"),
    ],
)
def test_file_of_another_kind_is_called_by_its_name(
    tmp_path: Path, data: bytes, words: str
) -> None:
    """As far as its first bytes tell, and without torch's advice."""
    (tmp_path / "t.pt").write_bytes(data)
    with pytest.raises(FormatError, match=words) as caught:
        read_pt(tmp_path / "t.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.eye(3).to_sparse(), "a sparse tensor"),
        (torch.ones(3, device="meta"), "meta device"),
        ([[np.arange(3)]], "a NumPy array"),
    ],
    ids=["sparse", "meta", "numpy"],
)
def test_what_is_not_dense_is_refused(tmp_path: Path, value: Any, words: str, zipped: bool) -> None:
    """Only dense tensors have rows to map; what it is instead is told."""
    torch.save(value, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ContentTypeError, match=words):
        read_pt(tmp_path / "t.pt")


def test_parameter_is_read_as_its_tensor(tmp_path: Path) -> None:
    """A table that a model learned carries a gradient flag; it is dropped."""
    torch.save(torch.ones(3, requires_grad=True), tmp_path / "t.pt")
    assert not read_pt(tmp_path / "t.pt").requires_grad
