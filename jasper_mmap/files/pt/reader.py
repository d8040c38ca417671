"""Safe reading of torch's `.pt` files: no code in them runs, and large ones are mapped."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ...errors import ContentTypeError, FormatError, UnsafeFileError
from ..atomic import storage_errors
from ..mapping import Bytes, map_private, tensor_at
from ..regular_files import open_regular
from ..threads import second_core
from .archive import MOST_PICKLED, ZIP_MAGIC, Archive, damaged
from .tensors import SavedTensor
from .unpickler import Unpickler

_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_HEAD_BYTES: Final = 64
"""Enough for the first pickle of that format, so that other files are refused early."""
_LEGACY_COUNT: Final = struct.Struct("<q")
_OTHERS: Final = {
    b"version https://git-lfs": "a Git LFS pointer to a file that was not fetched (git lfs pull)",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"\x93numpy": "a NumPy file (torch.save(torch.from_numpy(numpy.load(...)), ...) makes a .pt)",
    b"\x89hdf": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
}
"""First bytes, in lower case, of files that are mistaken for `.pt` files."""


@dataclass(frozen=True)
class Seal:
    """The recorded CRC-32 of the bytes that a tensor is a view of."""

    where: str
    data: Bytes
    begin: int
    end: int
    crc32: int
    first: int | None
    """Where the first row begins, if the rows are stored in order from there on."""

    def checked(self, rows: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the pieces of the tensor's rows; compute the checksum along with them, in one read.

        Raises `FormatError` after the last one if the checksum differs.
        """
        at, crc, reached = self.begin, 0, self.first
        with memoryview(self.data) as data, second_core("jasper-crc32") as pool:
            reading: Future[int] | None = None
            for piece in rows:
                if reached is not None:
                    reached += piece.nbytes
                    # zlib releases the GIL, so this runs on a second core while the piece is used.
                    crc = reading.result() if reading else 0
                    reading = pool.submit(_crc32, data, at, reached, crc)
                    at = reached
                yield piece
            crc = reading.result() if reading else 0
            crc = _crc32(data, at, self.end, crc)
        if crc != self.crc32:
            raise FormatError(damaged(self.where, "the CRC-32 of its data differs"))

    def check(self) -> None:
        """Read all of it now; raise `FormatError` if the checksum differs."""
        for _ in self.checked(()):
            pass


def read_pt(path: Path, *, at: Path | None = None, most_pickled: int = MOST_PICKLED) -> Any:
    """Return the object in `path`: a strided CPU tensor, or lists, tuples, dicts and numbers.

    With `at` (the name of a descriptor) that is opened, and errors name `path`.
    Tensors are views of a private mapping of the file, so a file larger than memory can be read by
    rows. A lazy negative bit of a float tensor stays set: resolve it piece by piece, as
    `safetensors.chunks` does. A pickle may have at most `most_pickled` bytes, since each may take
    64 bytes of memory.
    Raises `UnsafeFileError` if the pickle needs anything beyond plain tensors and containers (it is
    not run), `FormatError` if the file is of neither format, damaged, truncated, or of another size
    than its pickle states.
    """
    value, seal = open_pt(path, at=at, most_pickled=most_pickled)
    if seal is not None:
        seal.check()
    return value


def open_pt(
    path: Path, *, at: Path | None = None, most_pickled: int = MOST_PICKLED
) -> tuple[Any, Seal | None]:
    """Open a file as `read_pt` does, but leave the checksum of a mapped tensor to the seal."""
    with storage_errors(path, "read"), open_regular(path, at=at) as file:
        if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
            return _read_archive(file, str(path), most_pickled)
        file.seek(0)
        _must_be_legacy(file.read(_HEAD_BYTES), str(path))
        file.seek(0)
        return _read_legacy(file, str(path), most_pickled), None


def _crc32(data: memoryview, begin: int, end: int, crc: int) -> int:
    with data[begin:end] as part:
        return zlib.crc32(part, crc)


def _read_archive(file: BufferedReader, where: str, most_pickled: int) -> tuple[Any, Seal | None]:
    archive = Archive(file, where)
    saved = Unpickler(archive.read("data.pkl", most_pickled), where).load()
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
    """Raise `FormatError`, naming the real format if it is known, unless `head` begins a file in
    the format before torch 1.6."""
    for magic, kind in _OTHERS.items():
        if head[: len(magic)].lower() == magic:
            raise FormatError(f"{where}: is {kind}; replace it with the .pt file.")
    if head[8:9] == b"{":
        raise FormatError(f"{where}: is a safetensors file; save its tensor with torch.save.")
    if not head or Unpickler(head, where).load() != _LEGACY_MAGIC:
        raise FormatError(damaged(where, "its first bytes are wrong" if head else "it is empty"))


def _read_legacy(file: BufferedReader, where: str, most_pickled: int) -> Any:
    """Return the object in a file of the format before torch 1.6: five pickles, then storages."""
    unpickler = Unpickler(file.read(most_pickled), where)
    size = os.fstat(file.fileno()).st_size
    try:
        _magic, _protocol, _system, saved, keys = (unpickler.load() for _ in range(5))
    except UnsafeFileError:
        raise
    except FormatError as error:
        if size <= most_pickled:
            raise
        raise FormatError(f"{error} At most {most_pickled} bytes of pickles are allowed.") from None
    data = map_private(file.fileno(), size)
    extents: dict[str, tuple[int, int]] = {}
    at = unpickler.at
    for key in keys if isinstance(keys, list) else ():
        storage = unpickler.storages.get(key) if isinstance(key, str) else None
        begin = at + _LEGACY_COUNT.size
        if storage is None or begin > len(data):
            raise FormatError(damaged(where, "its storages differ from those in its pickle"))
        (count,) = _LEGACY_COUNT.unpack_from(data, at)
        at = begin + storage.bytes
        if count * storage.dtype.itemsize != storage.bytes or at > len(data):
            raise FormatError(damaged(where, "a storage has another length than its pickle states"))
        extents[key] = begin, at
    if not isinstance(saved, SavedTensor):
        return saved
    begin, end = extents.get(saved.storage.key, (0, 0))
    _check_size(saved, end - begin, where)
    flat = torch.empty(0, dtype=saved.dtype, device="cpu")
    if count := (end - begin) // saved.dtype.itemsize:
        flat = tensor_at(data, saved.dtype, (count,), begin)
    # The format is little-endian on every machine.
    return _view(flat if sys.byteorder == "little" else _swapped(flat), saved, where)


def _check_size(saved: SavedTensor, n_bytes: int, where: str) -> None:
    """Raise unless the storage has exactly the size that the pickle states, as torch requires."""
    if n_bytes != saved.storage.bytes:
        reason = f"its pickle claims {saved.storage.bytes} bytes of data, the file has {n_bytes}"
        raise FormatError(damaged(where, reason))
    if saved.end > n_bytes:
        raise FormatError(damaged(where, "the tensor extends beyond its storage"))


def _view(flat: torch.Tensor, saved: SavedTensor, where: str) -> torch.Tensor:
    """The tensor over its storage; a plain view where the strides are the default ones."""
    try:
        if 0 in saved.shape:
            return torch.empty(saved.shape, dtype=saved.dtype, device="cpu")
        if saved.ordered:
            count = torch.Size(saved.shape).numel()
            table = flat[saved.offset : saved.offset + count].view(saved.shape)
        else:
            table = flat.as_strided(saved.shape, saved.strides, saved.offset)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise FormatError(damaged(where, str(error).partition("\n")[0][:100])) from None
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
    """A copy with the bytes of each number reversed."""
    parts = 2 if flat.is_complex() else 1
    size = flat.dtype.itemsize // parts
    swapped = flat.view(torch.uint8).numpy().view(f"u{size}").byteswap()
    return torch.from_numpy(swapped.view(np.uint8)).view(flat.dtype)
