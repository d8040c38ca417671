"""Safe reading of torch's `.pt` files: nothing in them runs, and large ones are mapped."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .atomic import storage_errors
from .errors import ContentTypeError, FormatError, UnsafeFileError
from .mapping import map_private, tensor_at
from .regular import open_regular

_ZIP_MAGIC = b"PK\x03\x04"


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


def read_pt(path: Path, *, at: Path | None = None) -> Any:
    """The object that `path` holds: a strided CPU tensor, or lists, tuples, dicts and numbers.

    Where `at` is given (the name of a descriptor), the file is opened there, `path` only says what
    errors are to call it.
    Tensors of the zip format are views of a private mapping of the file, so that a file larger
    than memory can be read by rows; the pre-zip format is read whole. Raises `UnsafeFileError`
    where the pickle wants anything beyond plain tensors and containers (it is not run),
    `FormatError` where the file is of neither format or is truncated.
    """
    with storage_errors(path, "read"), open_regular(path, at=at) as file:
        zipped = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        value = _load(path, at or path, "meta" if zipped else "cpu")
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized:
                raise ContentTypeError(
                    f"{path}: holds a sparse or quantized tensor; save a dense one."
                )
            value = value.detach()
        if not isinstance(value, torch.Tensor) or not value.is_meta:
            return value
        return _mapped(path, at or path, file.fileno(), value)


def _load(path: Path, at: Path, device: str, mmap: bool = False) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations inside its unpickler
            return torch.load(at, map_location=device, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error)
        asked_for = next((line for line in reason.splitlines() if "GLOBAL" in line), None)
        if asked_for is not None:
            what = asked_for.partition("GLOBAL ")[2].split(" ")[0]
            raise UnsafeFileError(
                f"{path}: refused, since its pickle asks for {what}, which is more than plain"
                " tensors and lists (nothing was run). Save the bare tensor or list with"
                " torch.save."
            ) from None
        raise FormatError(_not_a_pt(path, reason)) from None
    except (
        OSError,  # a truncated archive: torch seeks to before its beginning
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        raise FormatError(_not_a_pt(path, str(error))) from None


def _not_a_pt(path: Path, reason: str) -> str:
    first = reason.strip().splitlines()[0][:160] if reason.strip() else "unreadable"
    return f"{path}: damaged, truncated or no torch file at all ({first}); copy or save it again."


def _mapped(path: Path, at: Path, fd: int, meta: torch.Tensor) -> torch.Tensor:
    storage = meta.untyped_storage()
    offset = getattr(storage, "_checkpoint_offset", None)
    if offset is None or sys.byteorder != "little":
        # An older torch, which does not tell where a storage lies: its own mapping does as well,
        # but for files larger than memory + swap.
        mapped: torch.Tensor = _load(path, at, "cpu", mmap=True)
        return mapped.detach()
    # Not `storage.nbytes()`: torch enlarges a storage without data to what its tensor claims.
    end = os.fstat(fd).st_size
    size = min(_record_bytes(path, at, offset), end - offset)
    if _storage_end(meta) > size:
        raise FormatError(_not_a_pt(path, "the tensor reaches past its storage"))
    if meta.numel() == 0:
        return torch.empty(meta.shape, dtype=meta.dtype)
    mapping = map_private(fd, end)
    whole = tensor_at(mapping, meta.dtype, (size // meta.element_size(),), offset)
    return whole.as_strided(meta.shape, meta.stride(), meta.storage_offset())


def _record_bytes(path: Path, at: Path, offset: int) -> int:
    """Size of the stored record of the archive whose data begins at `offset`."""
    try:
        with zipfile.ZipFile(at) as archive:
            records = [r for r in archive.infolist() if r.header_offset < offset]
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise FormatError(_not_a_pt(path, str(error))) from None
    record = max(records, key=lambda r: r.header_offset, default=None)
    if record is None or record.compress_type != zipfile.ZIP_STORED:
        raise FormatError(_not_a_pt(path, "no stored record where the tensor should lie"))
    return record.file_size


def _storage_end(tensor: torch.Tensor) -> int:
    """First byte of its storage that the tensor does not reach."""
    if tensor.numel() == 0:
        return 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (int(tensor.storage_offset()) + last + 1) * tensor.element_size()
