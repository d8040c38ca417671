"""safetensors files: streaming, durable writes and memory-mapped reads."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from ..errors import FormatError
from .atomic import replacing, storage_errors, write_all
from .mapping import map_private, tensor_at
from .regular_files import open_regular
from .threads import second_core

ALIGNMENT = 4096
"""The data section of every file written here begins at a multiple of it, in bytes."""

DTYPE_NAMES: Final[dict[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
}
DTYPES: Final = {name: dtype for dtype, name in DTYPE_NAMES.items()}

_MOST_HEADER = 1 << 20

CHUNK_BYTES = 8 << 20
"""Tables are read, checked and written in pieces of about this size."""

_NAMED: Final = 4
"""Files or tensors that a message names before it only counts."""

Specs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Written:
    """What a file that was just written looks like from outside."""

    bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class MappedFile:
    """The tensors of one file, and the stamp of the very file they are mapped from."""

    tensors: dict[str, torch.Tensor]
    bytes: int
    mtime_ns: int


class TensorWriter:
    """Takes the tensors of a file in order, in pieces; hashes them while they are written."""

    def __init__(self, file: FileIO, pool: Executor) -> None:
        self._file = file
        self._pool = pool
        self._sha256 = hashlib.sha256()
        self._hashing: Future[None] | None = None
        self.bytes = 0

    def write(self, piece: torch.Tensor) -> None:
        """Append the elements of `piece` (any CPU tensor) in row-major order."""
        if piece.numel():
            self._append(flat_bytes(piece).numpy().data)

    def _append(self, data: bytes | memoryview) -> None:
        self._settle()
        # Both release the GIL, so the hash costs a second core instead of time.
        self._hashing = self._pool.submit(self._sha256.update, data)
        write_all(self._file, data)
        self.bytes += len(data)

    def _settle(self) -> None:
        if self._hashing is not None:
            self._hashing.result()

    def _digest(self) -> str:
        self._settle()
        return self._sha256.hexdigest()


class _Result:
    """Filled when the block of `writing` has ended well."""

    written: Written


@contextmanager
def writing(path: Path, specs: Specs) -> Iterator[tuple[TensorWriter, _Result]]:
    """Write the tensors named in `specs` (dtype, shape) to `path`, which appears when complete.

    Give every tensor's elements to the writer in the order of `specs`; put wider dtypes first, for
    the format has no room for padding between tensors. After the block the second value has
    `written`.
    """
    header, data_bytes = _header(specs)
    result = _Result()
    with second_core("jasper-sha256") as pool:
        with replacing(path) as file:
            writer = TensorWriter(file, pool)
            writer._append(header)
            yield writer, result
            if writer.bytes != len(header) + data_bytes:
                raise FormatError(
                    f"{path}: {writer.bytes - len(header)} bytes of data were written where"
                    f" {data_bytes} were announced."
                )
        with storage_errors(path):
            mtime_ns = path.stat().st_mtime_ns
        result.written = Written(writer.bytes, writer._digest(), mtime_ns)


def _header(specs: Specs) -> tuple[bytes, int]:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in specs.items():
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)  # trailing spaces are part of the format
    return struct.pack("<Q", len(text)) + text, end


def map_tensors(path: Path, *, at: Path | None = None, huge: bool = False) -> MappedFile:
    """Map every tensor of `path`; only the header is read.

    Where `at` is given (the name of a descriptor), the file is opened there, `path` only says what
    errors are to call it. `huge` asks for 2 MB pages (see `mapping`). Raises `MissingFileError`,
    `AccessError`, or `FormatError` for a file that the safetensors library refuses (damaged,
    truncated, another format).
    """
    with storage_errors(path, "read"), open_regular(path, at=at) as file:
        fd = file.fileno()
        # The library opens by name; the name of our descriptor is sure to be the same file even
        # when the path is being replaced.
        name = f"/dev/fd/{fd}"
        name = name if os.path.exists(name) else str(path)  # noqa: PTH110
        _check_header(fd, path)
        try:
            # "numpy" because "pt" would map the data as well, within the limits of memory.
            with safe_open(name, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            # The library says neither of too many open files nor of a failing disk that it is so.
            open_regular(path, at=Path(name)).close()
            raise FormatError(
                f"{path}: damaged, truncated or not a safetensors file ({error!s:.160}); convert"
                " again or copy it anew."
            ) from None
        status = os.fstat(fd)
        (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
        header = json.loads(os.pread(fd, length, 8))
        header.pop("__metadata__", None)
        mapping = map_private(fd, status.st_size, huge=huge)
    tensors = {}
    for key, entry in header.items():
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise FormatError(
                f"{path}: tensor {key!r:.80} has the unknown dtype {entry['dtype']!r:.40}; save it"
                f" as one of {', '.join(DTYPES)}."
            )
        begin = 8 + length + entry["data_offsets"][0]
        tensors[key] = tensor_at(mapping, dtype, tuple(entry["shape"]), begin)
    return MappedFile(tensors, status.st_size, status.st_mtime_ns)


def _check_header(fd: int, path: Path) -> None:
    """Raise `FormatError` where the header is one that the library would read, at any cost."""
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if _MOST_HEADER < length <= os.fstat(fd).st_size and os.pread(fd, 1, 8) == b"{":
        raise FormatError(
            f"{path}: its header has {length} bytes, at most {_MOST_HEADER} are read; convert"
            " again, or save the tensor alone."
        )


def few(names: Iterable[str]) -> str:
    """The first names, cut, and how many more there are."""
    listed = [f"{name:.80}" for name in names]
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def flat_bytes(table: torch.Tensor) -> torch.Tensor:
    """Its elements in row-major order as bytes; copied only where they do not lie so."""
    table = table.resolve_neg().contiguous()
    # A dimension of one element may have any stride, and yet count as contiguous.
    return table.as_strided((table.numel(),), (1,)).view(torch.uint8)


def chunks(table: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows of a table in order, in contiguous pieces; copied only where they are not so, or
    have torch's lazy negative bit."""
    if table.numel() == 0:
        return
    rows = max(1, CHUNK_BYTES // (table.nbytes // len(table)))
    for begin in range(0, len(table), rows):
        yield table[begin : begin + rows].resolve_neg().contiguous()


def file_sha256(path: Path, *, at: Path | None = None) -> str:
    """SHA-256 of the whole file, as hex digits; `at` as for `map_tensors`."""
    with storage_errors(path, "read"), open_regular(path, at=at) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
