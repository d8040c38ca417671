"""A converted dataset folder, mapped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import torch

from .arguments import integer
from .audit import form_errors, table_errors
from .config import Config, read_config
from .errors import (
    FormatError,
    IndexRangeError,
    JasperError,
    MissingFileError,
    StoreChangedError,
    UsageError,
)
from .manifest import Entry, Manifest, read_manifest
from .schema import RAGGED_OFFSETS, RAGGED_VALUES, STORED, Artifact
from .tensorfile import MappedFile, map_tensors

Validation = Literal["auto", "full"]
_ATTEMPTS = 3


class Ragged(Sequence[torch.Tensor]):
    """Rows of different lengths: row i is `values[offsets[i]:offsets[i + 1]]`, 1-D int64."""

    def __init__(self, values: torch.Tensor, offsets: torch.Tensor) -> None:
        self.values = values
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, row: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, row: int | slice) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = integer("a row", row, low=-(2**63))
        if not 0 <= row < len(self):
            raise IndexRangeError(
                f"Index {row} out of range: there are {len(self)} rows, numbered from 0."
            )
        begin, end = self.offsets[row : row + 2].tolist()
        return self.values[begin:end].to(torch.int64)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[i] for i in range(len(self)))

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.offsets.nbytes


Table = torch.Tensor | Ragged


class Store:
    """The mapped artifacts of a store (all but the negatives), its manifest and its config.

    `path` is made absolute. Opening reads headers only; a file whose time is not the one in the
    manifest (a copy, a download) has its index ranges read again, and `validate="full"` recomputes
    everything. Raises `MissingFileError`, `FormatError`, `ContentError`, or `StoreChangedError`
    while a conversion is under way.
    """

    def __init__(self, path: str | Path, *, validate: Validation = "auto") -> None:
        if validate not in ("auto", "full"):
            raise UsageError(f"validate must be 'auto' or 'full', not {validate!r}")
        self.path = Path(path).absolute()
        self.config, self.manifest, self.tables = _open(self.path, validate)

    @property
    def store_id(self) -> str:
        return self.manifest.store_id


def _open(folder: Path, validate: Validation) -> tuple[Config, Manifest, dict[str, Table]]:
    """All parts, belonging together: the manifest is removed before any file is replaced, so one
    that stands unchanged after the last file was opened vouches for all of them."""
    for _ in range(_ATTEMPTS):
        manifest = read_manifest(folder)
        failure: JasperError | None = None
        try:
            config = read_config(folder)
            for wrong in form_errors(folder, config, manifest):
                raise wrong
            huge = worth_huge_pages(manifest)
            tables = {a.name: _checked(folder, a, manifest, validate, huge) for a in STORED}
        except JasperError as error:
            failure = error
        try:
            unchanged = read_manifest(folder) == manifest
        except MissingFileError:
            unchanged = False
        if unchanged and failure is not None:
            raise failure
        if unchanged:
            return config, manifest, tables
    raise StoreChangedError(
        f"{folder}: the store was converted again while it was being opened; open it once more."
    )


def worth_huge_pages(manifest: Manifest) -> bool:
    """Whether to read 2 MB around a row that is not in memory yet.

    Rows are gathered faster from large pages, and a cold store is read at the speed of the disk
    instead of page by page; but a store that memory cannot hold would be read over and over.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sum(entry.bytes for entry in manifest.artifacts.values()) <= memory // 2


def _checked(
    folder: Path, artifact: Artifact, manifest: Manifest, validate: Validation, huge: bool
) -> Table:
    entry = manifest.artifacts[artifact.name]
    table, mtime_ns = map_table(folder, artifact, entry, huge=huge)
    full = validate == "full"
    if full or mtime_ns != entry.mtime_ns:
        for wrong in table_problems(folder, artifact, manifest, table, quick=not full):
            raise wrong
    return table


def table_problems(
    folder: Path, artifact: Artifact, manifest: Manifest, table: Table, *, quick: bool
) -> Iterator[JasperError]:
    """`audit.table_errors` of one table of this store."""
    entry = manifest.artifacts[artifact.name]
    offsets = table.offsets if isinstance(table, Ragged) else None
    path, values = folder / entry.file, table_tensor(table)
    return table_errors(artifact, entry, path, values, offsets, manifest.sizes, quick=quick)


def map_table(
    folder: Path, artifact: Artifact, entry: Entry, *, huge: bool = False
) -> tuple[Table, int]:
    """Map one artifact; also the `mtime_ns` of its file. Only size and header are checked."""
    path = folder / entry.file
    try:
        mapped = map_tensors(path, huge=huge)
    except MissingFileError:
        what = f"Split file not found: {path}" if artifact.split else f"{path}: not found"
        raise MissingFileError(f"{what}. Convert again, or copy the whole store.") from None
    if mapped.bytes != entry.bytes:
        raise FormatError(
            f"{path}: has {mapped.bytes} bytes, the manifest says {entry.bytes}; convert again or"
            " copy it anew."
        )
    return _table(path, artifact, entry, mapped), mapped.mtime_ns


def _table(path: Path, artifact: Artifact, entry: Entry, mapped: MappedFile) -> Table:
    ragged = artifact.kind == "ragged"
    names = (RAGGED_VALUES, RAGGED_OFFSETS) if ragged else (artifact.name,)
    if set(mapped.tensors) != set(names):
        raise FormatError(f"{path}: must hold {list(names)}, found {sorted(mapped.tensors)}.")
    first = mapped.tensors[names[0]]
    shape = tuple(first.shape)
    if ragged:
        offsets = mapped.tensors[RAGGED_OFFSETS]
        if offsets.ndim != 1 or offsets.dtype != torch.int64:
            raise FormatError(f"{path}: its row offsets are no list of int64; convert again.")
        shape = (len(offsets) - 1, *shape)
    if shape != entry.shape or first.dtype != entry.torch_dtype:
        raise FormatError(
            f"{path}: holds {first.dtype} {list(shape)}, the manifest says {entry.dtype}"
            f" {list(entry.shape)}; convert again or copy it anew."
        )
    return Ragged(first, mapped.tensors[RAGGED_OFFSETS]) if ragged else first


def table_tensor(table: Table) -> torch.Tensor:
    """The tensor whose values a table's checks are about."""
    return table.values if isinstance(table, Ragged) else table
