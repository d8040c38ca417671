"""Safe reading of torch's `.pt` files: nothing in them runs, and large ones are mapped."""

from __future__ import annotations

import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from .atomic import storage_errors
from .errors import ContentTypeError, FormatError
from .failures import Noted
from .mapping import Bytes, map_private, tensor_at
from .pickled import Unpickler
from .regular import open_regular
from .saved import SavedTensor
from .threads import second_core

_ZIP_MAGIC: Final = b"PK\x03\x04"
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
"""Its magic, and the lengths of the two fields between it and the record's data."""
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_BAD_ARCHIVE: Final = (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error)
"""What the zipfile module raises over one, by seeking to before its beginning among others."""
_HEAD_BYTES: Final = 64
"""Enough for the first pickle of that format: no other file is read whole to be refused."""
_LEGACY_COUNT: Final = struct.Struct("<q")
_OTHERS: Final = {
    b"version https://git-lfs": "a Git LFS pointer, whose file was not fetched (git lfs pull)",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"\x93numpy": "a NumPy file (torch.save(torch.from_numpy(numpy.load(...)), ...) makes a .pt)",
    b"\x89hdf": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
}
"""First bytes, in small letters, of what is taken for a `.pt` file now and then."""
_BYTE_ORDERS: Final = {b"little": "little", b"big": "big"}


@dataclass(frozen=True)
class Stamp:
    """What tells one state of a source file from another without reading it."""

    name: str
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        with storage_errors(path, "read"):
            status = path.stat()
        return cls(path.name, status.st_size, status.st_mtime_ns)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.bytes, "mtime_ns": self.mtime_ns}


@dataclass(frozen=True)
class Seal:
    """The CRC-32 with which a file vouches for the bytes that a tensor is a view of."""

    where: str
    data: Bytes
    begin: int
    end: int
    crc32: int
    first: int | None
    """Where the first row begins, if the rows follow one another from there on."""

    def checked(self, rows: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The tensor's rows, in pieces, as they come; the file is read along with them, once.

        Raises `FormatError` after the last one where the bytes are not those that were saved.
        """
        at, crc, reached = self.begin, 0, self.first
        with memoryview(self.data) as data, second_core("jasper-crc32") as pool:
            reading: Future[int] | None = None
            for piece in rows:
                if reached is not None:
                    reached += piece.nbytes
                    # On a second core, as it releases the GIL, while the piece is worked on.
                    crc = reading.result() if reading else 0
                    reading = pool.submit(_crc32, data, at, reached, crc)
                    at = reached
                yield piece
            crc = reading.result() if reading else 0
            crc = _crc32(data, at, self.end, crc)
        if crc != self.crc32:
            raise FormatError(_damaged(self.where, "its CRC-32 is not the one that was saved"))

    def check(self) -> None:
        """Read all of it now; raises `FormatError`."""
        for _ in self.checked(()):
            pass


def read_pt(path: Path, *, at: Path | None = None) -> Any:
    """The object that `path` holds: a strided CPU tensor, or lists, tuples, dicts and numbers.

    Where `at` is given (the name of a descriptor), the file is opened there, `path` only says what
    errors are to call it.
    Tensors of the zip format are views of a private mapping of the file, so that a file larger
    than memory can be read by rows; the pre-zip format is read whole. A lazy negative bit of a
    float tensor stays on: pieces of it have to be resolved (`tensorfile.chunks` does).
    Raises `UnsafeFileError` where the pickle wants anything beyond plain tensors and containers
    (it is not run), `FormatError` where the file is of neither format, is damaged or truncated, or
    of a size that its pickle does not say.
    """
    value, seal = open_pt(path, at=at)
    if seal is not None:
        seal.check()
    return value


def open_pt(path: Path, *, at: Path | None = None) -> tuple[Any, Seal | None]:
    """As `read_pt`, but the bytes of a mapped tensor are not checked yet: the seal does that."""
    with storage_errors(path, "read"), open_regular(path, at=at) as file:
        if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
            return _read_archive(file, str(path))
        file.seek(0)
        _must_be_legacy(file.read(_HEAD_BYTES), str(path))
        file.seek(0)
        return _read_legacy(bytearray(file.read()), str(path)), None


def _crc32(data: memoryview, begin: int, end: int, crc: int) -> int:
    with data[begin:end] as part:
        return zlib.crc32(part, crc)


def _damaged(where: str, reason: str) -> str:
    return f"{where}: damaged, truncated or no torch file at all ({reason}); copy or save it again."


class _Archive:
    """The records of a zip archive as torch writes it: whole, and not compressed."""

    def __init__(self, file: BufferedReader, where: str) -> None:
        self._file = file
        self._where = where
        self.size = os.fstat(file.fileno()).st_size
        noted = Noted(file)
        try:
            records = zipfile.ZipFile(noted).infolist()
        except _BAD_ARCHIVE as error:
            if noted.failure is not None:
                raise noted.failure from None
            raise FormatError(_damaged(where, str(error))) from None
        self._records = {record.filename: record for record in records}
        if not records or len(records) > len(self._records):
            raise FormatError(_damaged(where, "its list of records is empty or names one twice"))
        self._folder = records[0].filename.partition("/")[0]

    def extent(self, name: str) -> tuple[int, int, int]:
        """Where the data of a record begins and ends, and its CRC-32 (0 where there is none)."""
        record = self._records.get(f"{self._folder}/{name}")
        if record is None:
            raise FormatError(_damaged(self._where, f"it has no record {name!r:.80}"))
        self._file.seek(record.header_offset)
        header = self._file.read(_LOCAL_HEADER.size)
        magic, *lengths = _LOCAL_HEADER.unpack(header.ljust(_LOCAL_HEADER.size, b"\0"))
        begin = record.header_offset + _LOCAL_HEADER.size + sum(lengths)
        stored = record.compress_type == zipfile.ZIP_STORED and not record.flag_bits & 1
        if magic != _ZIP_MAGIC or not stored or record.file_size != record.compress_size:
            raise FormatError(_damaged(self._where, f"its record {name!r} is no stored one"))
        end = begin + record.file_size
        if end > self.size:
            raise FormatError(_damaged(self._where, f"its record {name!r} ends after the file"))
        return begin, end, record.CRC

    def read(self, name: str) -> bytes:
        begin, end, crc = self.extent(name)
        self._file.seek(begin)
        data = self._file.read(end - begin)
        if len(data) < end - begin or (crc and zlib.crc32(data) != crc):
            raise FormatError(_damaged(self._where, f"the CRC-32 of its record {name!r} differs"))
        return data

    @property
    def byte_order(self) -> str:
        if f"{self._folder}/byteorder" not in self._records:
            return "little"
        order = self.read("byteorder")
        if order not in _BYTE_ORDERS:
            raise FormatError(_damaged(self._where, f"its byte order is {order[:20]!r}"))
        return _BYTE_ORDERS[order]


def _read_archive(file: BufferedReader, where: str) -> tuple[Any, Seal | None]:
    archive = _Archive(file, where)
    saved = Unpickler(archive.read("data.pkl"), where).load()
    if not isinstance(saved, SavedTensor):
        return saved, None
    begin, end, crc = archive.extent(f"data/{saved.storage.key}")
    _check_size(saved, end - begin, where)
    mapping = map_private(file.fileno(), archive.size)
    flat = tensor_at(mapping, saved.dtype, ((end - begin) // saved.dtype.itemsize,), begin)
    first = begin + saved.offset * saved.dtype.itemsize if saved.ordered else None
    seal = Seal(where, mapping, begin, end, crc, first) if crc else None
    if archive.byte_order != sys.byteorder:
        if seal is not None:
            seal.check()
        return _view(_swapped(flat), saved, where), None
    return _view(flat, saved, where), seal


def _must_be_legacy(head: bytes, where: str) -> None:
    """Say what a file is instead that begins with `head`, if that shows."""
    for magic, kind in _OTHERS.items():
        if head[: len(magic)].lower() == magic:
            raise FormatError(f"{where}: is {kind}; put the .pt file there.")
    if head[8:9] == b"{":
        raise FormatError(f"{where}: is a safetensors file; save its tensor with torch.save.")
    if not head or Unpickler(head, where).load() != _LEGACY_MAGIC:
        raise FormatError(_damaged(where, "it does not begin like one" if head else "it is empty"))


def _read_legacy(data: bytearray, where: str) -> Any:
    """What a file in the format before torch 1.6 holds: five pickles, then the storages."""
    unpickler = Unpickler(data, where)
    _magic, _protocol, _system = (unpickler.load() for _ in range(3))
    saved, keys = unpickler.load(), unpickler.load()
    extents: dict[str, tuple[int, int]] = {}
    at = unpickler.at
    for key in keys if isinstance(keys, list) else ():
        storage = unpickler.storages.get(key) if isinstance(key, str) else None
        begin = at + _LEGACY_COUNT.size
        if storage is None or begin > len(data):
            raise FormatError(_damaged(where, "its storages are not those of its pickle"))
        (count,) = _LEGACY_COUNT.unpack_from(data, at)
        at = begin + storage.bytes
        if count * storage.dtype.itemsize != storage.bytes or at > len(data):
            raise FormatError(_damaged(where, "a storage is not as long as its pickle says"))
        extents[key] = begin, at
    if not isinstance(saved, SavedTensor):
        return saved
    begin, end = extents.get(saved.storage.key, (0, 0))
    _check_size(saved, end - begin, where)
    flat = torch.empty(0, dtype=saved.dtype, device="cpu")
    if count := (end - begin) // saved.dtype.itemsize:
        flat = torch.frombuffer(data, dtype=saved.dtype, count=count, offset=begin)
    # The format is little-endian wherever it was written.
    return _view(flat if sys.byteorder == "little" else _swapped(flat), saved, where)


def _check_size(saved: SavedTensor, n_bytes: int, where: str) -> None:
    """Raise unless the storage has exactly the size that the pickle says, as torch wants it."""
    if n_bytes != saved.storage.bytes:
        reason = f"its pickle claims {saved.storage.bytes} bytes of data, the file has {n_bytes}"
        raise FormatError(_damaged(where, reason))
    if saved.end > n_bytes:
        raise FormatError(_damaged(where, "the tensor reaches past its storage"))


def _view(flat: torch.Tensor, saved: SavedTensor, where: str) -> torch.Tensor:
    """The tensor over its storage; without strides of its own where they say nothing."""
    try:
        if 0 in saved.shape:
            return torch.empty(saved.shape, dtype=saved.dtype, device="cpu")
        if saved.ordered:
            count = torch.Size(saved.shape).numel()
            table = flat[saved.offset : saved.offset + count].view(saved.shape)
        else:
            table = flat.as_strided(saved.shape, saved.strides, saved.offset)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise FormatError(_damaged(where, str(error).partition("\n")[0][:100])) from None
    if not saved.negated:
        return table
    if table.is_floating_point():
        return torch._neg_view(table)
    try:
        return table.neg()
    except RuntimeError:
        kind = str(table.dtype).removeprefix("torch.")
        raise ContentTypeError(
            f"{where}: holds {kind} with a negative sign; save it again after resolve_neg()."
        ) from None


def _swapped(flat: torch.Tensor) -> torch.Tensor:
    """A copy with the bytes of each number the other way round."""
    parts = 2 if flat.is_complex() else 1
    size = flat.dtype.itemsize // parts
    swapped = flat.view(torch.uint8).numpy().view(f"u{size}").byteswap()
    return torch.from_numpy(swapped.view(np.uint8)).view(flat.dtype)
