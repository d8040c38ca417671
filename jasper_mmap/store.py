"""A converted dataset folder, mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from . import checks
from .config import CONFIG_FILE, Config, read_config
from .errors import (
    ConfigError,
    FormatError,
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

    def __getitem__(self, row: int | slice) -> torch.Tensor:  # type: ignore[override]
        if isinstance(row, slice):
            raise UsageError("rows of different lengths have no slices; ask for them one by one")
        if not 0 <= row < len(self):
            raise IndexError(f"Index {row} out of range: there are {len(self)} rows")
        begin, end = self.offsets[row : row + 2].tolist()
        return self.values[begin:end].to(torch.int64)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[i] for i in range(len(self)))

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.offsets.nbytes

    def map(self, place: Callable[[torch.Tensor], torch.Tensor]) -> Ragged:
        """The same rows with `place` applied to both tensors."""
        return Ragged(place(self.values), place(self.offsets))


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
        self.config, self.manifest, self.tables = _open(self.path)
        _check_config(self.path, self.config, self.manifest)

    @property
    def store_id(self) -> str:
        return self.manifest.store_id


def _open(folder: Path) -> tuple[Config, Manifest, dict[str, Table]]:
    """All parts, belonging together: the manifest is removed before any file is replaced, so one
    that stands unchanged after the last file was opened vouches for all of them."""
    for _ in range(_ATTEMPTS):
        manifest = read_manifest(folder)
        failure: JasperError | None = None
        try:
            config = read_config(folder)
            tables = {a.name: _map(folder, a, manifest.artifacts[a.name]) for a in STORED}
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


def _map(folder: Path, artifact: Artifact, entry: Entry) -> Table:
    path = folder / entry.file
    try:
        mapped = map_tensors(path)
    except MissingFileError:
        what = f"Split file not found: {path}" if artifact.split else f"{path}: not found"
        raise MissingFileError(f"{what}. Convert again, or copy the whole store.") from None
    if mapped.bytes != entry.bytes:
        raise FormatError(
            f"{path}: has {mapped.bytes} bytes, the manifest says {entry.bytes}; convert again or"
            " copy it anew."
        )
    table = _table(path, artifact, entry, mapped)
    if mapped.mtime_ns != entry.mtime_ns:
        checks.recheck_ranges(artifact, entry, table_tensor(table), str(path))
    return table


def _table(path: Path, artifact: Artifact, entry: Entry, mapped: MappedFile) -> Table:
    ragged = artifact.kind == "ragged"
    names = (RAGGED_VALUES, RAGGED_OFFSETS) if ragged else (artifact.name,)
    if set(mapped.tensors) != set(names):
        raise FormatError(f"{path}: must hold {list(names)}, found {sorted(mapped.tensors)}.")
    first = mapped.tensors[names[0]]
    shape = tuple(first.shape)
    if ragged:
        shape = (len(mapped.tensors[RAGGED_OFFSETS]) - 1, *shape)
    if shape != entry.shape or first.dtype != entry.torch_dtype:
        raise FormatError(
            f"{path}: holds {first.dtype} {list(shape)}, the manifest says {entry.dtype}"
            f" {list(entry.shape)}; convert again or copy it anew."
        )
    return Ragged(first, mapped.tensors[RAGGED_OFFSETS]) if ragged else first


def table_tensor(table: Table) -> torch.Tensor:
    """The tensor whose values a table's checks are about."""
    return table.values if isinstance(table, Ragged) else table


def _check_config(folder: Path, config: Config, manifest: Manifest) -> None:
    dim = manifest.sizes["D"]
    if config.embedding_dim != dim:
        raise ConfigError(
            f"{folder / CONFIG_FILE}: 'embedding_dim' is {config.embedding_dim}, the tables of the"
            f" store have {dim} columns; correct it."
        )
