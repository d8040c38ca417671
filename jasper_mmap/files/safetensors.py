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
"""The data section of every written file begins at a multiple of it, in bytes."""

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
"""Files or tensors that a message names before it counts the rest."""

Specs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Written:
    """Size, checksum and time of a file that was just written."""

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
    """Writes the tensors of a file in order, in pieces, and hashes them meanwhile."""

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
        # Both release the GIL, so hashing takes a second core instead of time.
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
    """Filled when the block of `writing` has succeeded."""

    written: Written


@contextmanager
def writing(path: Path, specs: Specs) -> Iterator[tuple[TensorWriter, _Result]]:
    """Write the tensors named in `specs` (dtype, shape) to `path`, which appears when complete.

    Pass the elements of every tensor to the writer in the order of `specs`, wider dtypes first:
    the format allows no padding between tensors. After the block the second value has `written`.
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
                    f"{path}: {writer.bytes - len(header)} bytes of data were written, but the"
                    f" header announces {data_bytes}."
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

    With `at` (the name of a descriptor) that is opened, and errors name `path`. `huge` asks for
    2 MB pages (see `mapping`). Raises `MissingFileError`, `AccessError`, or `FormatError` for a
    file that the safetensors library refuses (damaged, truncated, another format).
    """
    with storage_errors(path, "read"), open_regular(path, at=at) as file:
        fd = file.fileno()
        # The library opens by name; the descriptor's name is the same file even if the path is
        # being replaced.
        name = f"/dev/fd/{fd}"
        name = name if os.path.exists(name) else str(path)  # noqa: PTH110
        _check_header(fd, path)
        try:
            # "numpy", since "pt" would map the data too, which fails beyond the size of memory.
            with safe_open(name, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            # The library hides too many open files and disk errors; opening it again raises them.
            open_regular(path, at=Path(name)).close()
            raise FormatError(
                f"{path}: damaged, truncated or not a safetensors file ({error!s:.160}); convert"
                " again, or copy it again."
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
    """Raise `FormatError` for a header so long that parsing it would cost too much."""
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if _MOST_HEADER < length <= os.fstat(fd).st_size and os.pread(fd, 1, 8) == b"{":
        raise FormatError(
            f"{path}: its header has {length} bytes, at most {_MOST_HEADER} are allowed; convert"
            " again, or save the tensor alone."
        )


def few(names: Iterable[str]) -> str:
    """The first names, each shortened, and the number of the others."""
    listed = [f"{name:.80}" for name in names]
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def flat_bytes(table: torch.Tensor) -> torch.Tensor:
    """The elements in row-major order as bytes; copied only if they are stored otherwise."""
    table = table.resolve_neg().contiguous()
    # A contiguous tensor may have any stride in a dimension of one element.
    return table.as_strided((table.numel(),), (1,)).view(torch.uint8)


def chunks(table: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows of a table in order, in contiguous pieces; copied only if they are not contiguous or
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
