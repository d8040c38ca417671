"""safetensors files and durable writes: whole, exact, and read by nothing but their header."""

import errno
import json
import mmap
import os
import stat
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jasper_mmap.errors import AccessError, FormatError, JasperError, MissingFileError, StorageError
from jasper_mmap.files import atomic
from jasper_mmap.files import safetensors as safetensors_module
from jasper_mmap.files.pt.reader import read_pt
from jasper_mmap.files.safetensors import (
    ALIGNMENT,
    DTYPE_NAMES,
    chunks,
    file_sha256,
    map_tensors,
    writing,
)


def sample(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return a tensor of this dtype whose bytes all differ from zero somewhere."""
    n = torch.Size(shape).numel() * dtype.itemsize
    return (torch.arange(n) % 113 + 1).to(torch.uint8).view(dtype).view(shape)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compare dtype, shape and every byte."""
    raw = [t.contiguous().view(-1).view(torch.uint8) for t in (a, b)]
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*raw)


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Any:
    """Write whole tensors; return what is remembered of the file."""
    specs = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with writing(path, specs) as (writer, result):
        for tensor in tensors.values():
            writer.write(tensor)
    return result.written


# safetensors


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_written_file_is_what_any_reader_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every dtype, in pieces that are not contiguous; aligned data, and the stamp it returns."""
    table = sample(dtype, 7, 5)
    path = tmp_path / "t.safetensors"
    with writing(path, {"t": (dtype, (7, 5))}) as (writer, result):
        writer.write(table[:3])
        writer.write(table[3:].t().contiguous().t())
    assert same_bytes(load_file(path)["t"], table)
    assert same_bytes(map_tensors(path).tensors["t"], table)
    status = path.stat()
    assert status.st_size == ALIGNMENT + table.nbytes == result.written.bytes
    assert status.st_mtime_ns == result.written.mtime_ns == map_tensors(path).mtime_ns
    assert file_sha256(path) == result.written.sha256
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_several_and_empty_tensors_share_a_file(tmp_path: Path) -> None:
    """A ragged list's values and offsets, also where there are no values."""
    tensors = {"a": sample(torch.int64, 3), "b": torch.empty(0, 4), "c": sample(torch.uint8, 5)}
    write(tmp_path / "t.safetensors", tensors)
    for found in (
        load_file(tmp_path / "t.safetensors"),
        map_tensors(tmp_path / "t.safetensors").tensors,
    ):
        assert all(same_bytes(found[name], tensor) for name, tensor in tensors.items())


def test_unfinished_write_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """Fewer or more bytes than announced, or an error on the way: the old file stays."""
    path = tmp_path / "t.safetensors"
    write(path, {"t": sample(torch.float32, 4)})
    before = path.read_bytes()
    for wrong in (sample(torch.float32, 3), sample(torch.float32, 9)):
        with (
            pytest.raises(FormatError, match="announces"),
            writing(path, {"t": (torch.float32, (4,))}) as (writer, _),
        ):
            writer.write(wrong)
    with pytest.raises(KeyboardInterrupt), writing(path, {"t": (torch.float32, (4,))}):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    assert path.read_bytes() == before


def spoilt_headers() -> dict[str, Callable[[bytes], bytes]]:
    """Return ways to spoil a good file."""

    def header(text: bytes) -> Callable[[bytes], bytes]:
        return lambda good: struct.pack("<Q", len(text)) + text + good[ALIGNMENT:]

    def entry(**fields: Any) -> Callable[[bytes], bytes]:
        value = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **fields}
        return header(json.dumps({"t": value}).encode())

    return {
        "empty": lambda good: b"",
        "cut header": lambda good: good[:50],
        "cut data": lambda good: good[:-1],
        "huge header": lambda good: struct.pack("<Q", 1 << 60) + good[8:],
        "no json": header(b"{nonsense"),
        "a list": header(b"[1, 2]"),
        "offsets outside": entry(data_offsets=[0, 1 << 40]),
        "offsets reversed": entry(data_offsets=[16, 0]),
        "shape larger than data": entry(shape=[1 << 50]),
        "negative shape": entry(shape=[-4]),
        "unknown dtype": entry(dtype="F31"),
        "dtype without a torch one here": entry(dtype="BOOL", shape=[16]),
        "deep json": header(b'{"t":' + b"[" * 100_000),
    }


@pytest.mark.parametrize("way", spoilt_headers())
def test_spoilt_file_is_an_error_of_ours(tmp_path: Path, way: str) -> None:
    """Whatever was done to it, nothing is mapped and the file is named."""
    path = tmp_path / "t.safetensors"
    write(path, {"t": sample(torch.float32, 4)})
    path.write_bytes(spoilt_headers()[way](path.read_bytes()))
    with pytest.raises(FormatError, match=r"t\.safetensors"):
        map_tensors(path)


def test_file_of_another_writer_is_read(tmp_path: Path) -> None:
    """Data need not begin at a page."""
    tensors = {"x": sample(torch.float64, 3, 2), "y": sample(torch.int16, 5)}
    save_file(tensors, tmp_path / "t.safetensors")
    found = map_tensors(tmp_path / "t.safetensors").tensors
    assert all(same_bytes(found[name], tensor) for name, tensor in tensors.items())


def test_missing_file_and_folder_in_its_place_are_errors_of_ours(tmp_path: Path) -> None:
    """Reading either format."""
    (tmp_path / "folder.pt").mkdir()
    for read in (map_tensors, read_pt, file_sha256):
        with pytest.raises(MissingFileError, match=r"none\.pt"):
            read(tmp_path / "none.pt")
        with pytest.raises(JasperError, match=r"folder\.pt"):
            read(tmp_path / "folder.pt")


def test_mapping_leaves_the_filters_of_warnings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch maps files in its thread, and these filters are all threads'."""

    def refuse() -> None:
        raise AssertionError

    save_file({"a": torch.arange(4)}, tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(warnings, "catch_warnings", refuse)
        found = map_tensors(tmp_path / "a").tensors["a"]
    assert found.tolist() == [0, 1, 2, 3]


def test_mapping_where_only_a_read_only_one_is_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under strict accounting of memory: torch's warning of it is not passed on."""
    mapped = mmap.mmap

    def granted(fd: int, size: int, *, flags: int, prot: int) -> mmap.mmap:
        if prot & mmap.PROT_WRITE:
            raise OSError(errno.ENOMEM, "refused")
        return mapped(fd, size, flags=flags, prot=prot)

    save_file({"a": torch.arange(4)}, tmp_path / "a")
    monkeypatch.setattr(mmap, "mmap", granted)
    assert map_tensors(tmp_path / "a").tensors["a"].tolist() == [0, 1, 2, 3]


def test_chunks_are_all_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contiguous pieces of bounded size, also of wide, empty and strided tables."""
    monkeypatch.setattr(safetensors_module, "CHUNK_BYTES", 64)
    for table in (
        sample(torch.float32, 37, 3),
        sample(torch.float32, 5, 100),
        sample(torch.int64, 40).view(20, 2).t(),
        sample(torch.float32, 8, 6)[::3, ::2],
    ):
        pieces = list(chunks(table))
        assert torch.equal(torch.cat(pieces), table)
        assert all(piece.is_contiguous() for piece in pieces)
        assert all(len(piece) == 1 or piece.nbytes <= 64 for piece in pieces)
    assert list(chunks(torch.empty(0, 4))) == []


# Durable writes


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_file_has_the_permissions_the_umask_gives(tmp_path: Path, mask: int, mode: int) -> None:
    """Not 0600 for everything, as temporary files have."""
    before = os.umask(mask)
    try:
        atomic.write_json(tmp_path / "x.json", {"a": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == mode
    assert atomic.read_json(tmp_path / "x.json") == {"a": 1}


def test_file_is_on_disk_before_it_is_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the file, then the rename, then fsync of the folder."""
    done = []
    sync, rename = os.fsync, Path.replace

    def traced_sync(fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        done.append(("sync", Path(name).name, (tmp_path / "x").exists()))
        sync(fd)

    def traced_rename(path: Path, target: Path) -> Path:
        done.append(("rename", path.name, (tmp_path / "x").exists()))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", traced_sync)
    monkeypatch.setattr(Path, "replace", traced_rename)
    with atomic.replacing(tmp_path / "x") as file:
        file.write(b"whole")
    sibling = done[0][1]
    assert sibling.startswith(".x.")
    assert done == [
        ("sync", sibling, False),
        ("rename", sibling, False),
        ("sync", tmp_path.name, True),
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, StorageError),
        (errno.EDQUOT, StorageError),
        (errno.EIO, StorageError),
        (errno.EROFS, AccessError),
        (errno.EACCES, AccessError),
    ],
)
def test_failing_disk_is_an_error_of_ours_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[JasperError]
) -> None:
    """At the last moment, in fsync: the old content stays and no sibling is left."""
    path = tmp_path / "x.json"
    atomic.write_json(path, {"a": 1})

    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error, match=r"x\.json"):
        atomic.write_json(path, {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert atomic.read_json(path) == {"a": 1}


def test_leftovers_of_killed_writers_are_swept_alone(tmp_path: Path) -> None:
    """Nothing but siblings of this package's making is removed."""
    for name in (".x.0123456789ab.tmp", "x.tmp", ".hidden", "x"):
        (tmp_path / name).touch()
    atomic.sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"x.tmp", ".hidden", "x"}


def test_large_write_is_written_whole(tmp_path: Path) -> None:
    """A raw write that takes only a part is continued."""

    class Slow:
        """Takes three bytes at a time."""

        def __init__(self) -> None:
            self.taken = b""

        def write(self, data: memoryview) -> int:
            self.taken += bytes(data[:3])
            return min(3, len(data))

    slow = Slow()
    atomic.write_all(slow, b"0123456789")  # type: ignore[arg-type]
    assert slow.taken == b"0123456789"


def test_errors_name_the_file_and_not_its_sibling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling's name is another one each time, so no error would be like the one before."""
    path = tmp_path / "x.json"

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "not permitted", str(tmp_path / ".x.json.abc.tmp"))

    for patched, name in ((os, "open"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, fail)
            with pytest.raises(AccessError, match=r"x\.json: no permission") as caught:
                atomic.write_json(path, {})
        assert ".tmp" not in str(caught.value)
