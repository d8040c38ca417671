"""A converted dataset folder, mapped."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import torch
from torch.utils.data import get_worker_info

from ..errors import (
    FormatError,
    IndexRangeError,
    JasperError,
    MissingFileError,
    StoreChangedError,
    UsageError,
)
from ..files.atomic import storage_errors
from ..files.page_cache import worth_huge_pages
from ..files.safetensors import DTYPE_NAMES, MappedFile, few, map_tensors
from ..rules.arguments import folder, integer
from ..rules.config import Config
from ..rules.schema import RAGGED_OFFSETS, RAGGED_VALUES, STORED, Artifact
from .config_file import read_config
from .manifest import MANIFEST_FILE, Entry, Manifest, read_manifest
from .pointer import FOLDER
from .soundness import form_errors, table_errors, uncounted_beyond

Validation = Literal["auto", "full"]
_ATTEMPTS = 3

_log = logging.getLogger("jasper_mmap")
_warned: set[tuple[Path, frozenset[tuple[str, int]]]] = set()
"""States of stores (path, and the stamps found in place of the manifest's) warned of here."""


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
    manifest (a copy, a download) has its index ranges read again, and the log warns of it, once a
    process and not in a DataLoader worker. `validate="full"` recomputes everything instead.
    Raises `MissingFileError`, `FormatError`, `ContentError`, or `StoreChangedError` while a
    conversion is under way.
    """

    def __init__(self, path: str | Path, *, validate: Validation = "auto") -> None:
        if validate not in ("auto", "full"):
            raise UsageError(f"validate must be 'auto' or 'full', not {validate!r}")
        self.path = folder("dataset_dir", path)
        with storage_errors(self.path, "read"):
            self.config, self.manifest, self.tables, moved = _open(self.path, validate)
            if validate == "auto":
                _warn_of(self.path, moved)

    @property
    def store_id(self) -> str:
        return self.manifest.store_id

    @property
    def negatives_sizes(self) -> dict[str, int]:
        """The sizes that its negatives have to fit: those of the manifest, and N."""
        return {**self.manifest.sizes, "N": self.config.n_neg}


_Parts = tuple[Config, Manifest, dict[str, Table], dict[str, int]]


def _open(folder: Path, validate: Validation) -> _Parts:
    """All parts, belonging together: the manifest is removed before any file is replaced, so one
    that stands unchanged after the last file was opened vouches for all of them.

    The last are the files whose time is not the stamped one -> their `mtime_ns`.
    """
    for _ in range(_ATTEMPTS):
        moved: dict[str, int] = {}
        manifest = read_manifest(folder)
        failure: JasperError | None = None
        try:
            config = read_config(folder)
            for wrong in form_errors(folder, config, manifest):
                raise wrong
            huge = worth_huge_pages(manifest.nbytes)
            tables = {a.name: _checked(folder, a, manifest, validate, huge, moved) for a in STORED}
            beyond = _beyond(folder, manifest, tables) if validate == "full" else []
        except JasperError as error:
            failure = error
        try:
            unchanged = read_manifest(folder) == manifest
        except MissingFileError:
            unchanged = False
        if unchanged and failure is not None:
            raise failure
        if unchanged:
            if beyond:
                more = f" (and {len(beyond) - 1} more tables)" if len(beyond) > 1 else ""
                _log.warning("%s%s", beyond[0], more)
            return config, manifest, tables, moved
    raise StoreChangedError(
        f"{folder}: the store was converted again while it was being opened; open it once more."
    )


def _warn_of(folder: Path, moved: Mapping[str, int]) -> None:
    """Say once a process that the content of these files was not compared with any checksum."""
    state = folder, frozenset(moved.items())
    if not moved or state in _warned or get_worker_info() is not None:
        return
    _warned.add(state)
    reason = not_renewable(folder)
    remedy = (
        f"To check everything and renew the times, run: jasper-mmap verify {folder}"
        if reason is None
        else 'Open it with validate="full" to check everything (jasper-mmap verify checks it too,'
        f" but cannot renew the times: {reason})"
    )
    _log.warning(
        "%s: files were copied or changed since the conversion (by their time): %s. Only sizes,"
        " headers and index ranges of these files were checked. %s.",
        folder,
        few(moved),
        remedy,
    )


def not_renewable(folder: Path) -> str | None:
    """What keeps `verify` from renewing the stamps of a store; None where nothing does.

    Nothing is written through a link or in place of one: it leads into a hub's cache, or to
    another store.
    """
    for path in (folder / MANIFEST_FILE, folder / FOLDER):
        with storage_errors(path, "read"):
            if path.is_symlink():
                return f"{path} is a link"
    for path in (folder, folder / FOLDER):
        if not os.access(path, os.W_OK):
            return f"{path} cannot be written"
    return None


def _checked(
    folder: Path,
    artifact: Artifact,
    manifest: Manifest,
    validate: Validation,
    huge: bool,
    moved: dict[str, int],
) -> Table:
    """Map one table and check it as `validate` says; `moved` gets its file if its time differs."""
    entry = manifest.artifacts[artifact.name]
    table, mtime_ns = map_table(folder, artifact, entry, huge=huge)
    full = validate == "full"
    if mtime_ns != entry.mtime_ns:
        moved[entry.file] = mtime_ns
    if full or entry.file in moved:
        for wrong in table_problems(folder, artifact, manifest, table, quick=not full):
            raise wrong
    return table


def _beyond(folder: Path, manifest: Manifest, tables: dict[str, Table]) -> list[JasperError]:
    """What version 0.1.0 converted without a word: opened all the same, but not in silence."""
    found = (beyond_problem(folder, a, manifest, tables[a.name]) for a in STORED)
    return [wrong for wrong in found if wrong is not None]


def beyond_problem(
    folder: Path, artifact: Artifact, manifest: Manifest, table: Table
) -> JasperError | None:
    """`audit.uncounted_beyond` of one table, where the converter did not count such values."""
    if manifest.beyond_float32 is not None:
        return None
    path = folder / manifest.artifacts[artifact.name].file
    return uncounted_beyond(artifact, path, table_tensor(table))


def table_problems(
    folder: Path, artifact: Artifact, manifest: Manifest, table: Table, *, quick: bool
) -> Iterator[JasperError]:
    """`audit.table_errors` of one table of this store."""
    entry = manifest.artifacts[artifact.name]
    offsets = table.offsets if isinstance(table, Ragged) else None
    path, values = folder / entry.file, table_tensor(table)
    counts = manifest.beyond_float32
    beyond = None if counts is None else counts.get(artifact.name, 0)
    return table_errors(
        artifact, entry, path, values, offsets, manifest.sizes, beyond=beyond, quick=quick
    )


def map_table(
    folder: Path, artifact: Artifact, entry: Entry, *, huge: bool = False
) -> tuple[Table, int]:
    """Map one artifact; also the `mtime_ns` of its file. Only size and header are checked."""
    path = folder / entry.file
    try:
        mapped = map_tensors(path, huge=huge)
    except MissingFileError:
        what = f"Split file not found: {path}" if artifact.split else f"{path} not found"
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
        raise FormatError(
            f"{path}: must hold {' and '.join(names)}, found {few(mapped.tensors)}. Convert again,"
            " or copy it anew."
        )
    first = mapped.tensors[names[0]]
    shape = tuple(first.shape)
    if ragged:
        offsets = mapped.tensors[RAGGED_OFFSETS]
        if offsets.ndim != 1 or offsets.dtype != torch.int64:
            raise FormatError(f"{path}: its row offsets must be a 1-D int64 tensor; convert again.")
        shape = (len(offsets) - 1, *shape)
    if shape != entry.shape or first.dtype != entry.torch_dtype:
        raise FormatError(
            f"{path}: holds {DTYPE_NAMES[first.dtype]} {list(shape)}, the manifest says"
            f" {entry.dtype} {list(entry.shape)}; convert again or copy it anew."
        )
    return Ragged(first, mapped.tensors[RAGGED_OFFSETS]) if ragged else first


def table_tensor(table: Table) -> torch.Tensor:
    """The tensor whose values a table's checks are about."""
    return table.values if isinstance(table, Ragged) else table
