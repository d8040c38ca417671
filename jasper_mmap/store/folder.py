"""A converted dataset folder, mapped."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from torch.utils.data import get_worker_info

from ..errors import (
    JasperError,
    MissingFileError,
    StoreChangedError,
    UsageError,
)
from ..files.atomic import storage_errors
from ..files.memory_pages import worth_huge_pages
from ..files.safetensors import few
from ..rules.arguments import folder
from ..rules.config import Config
from ..rules.names import Validation
from ..rules.schema import STORED, Artifact
from .config_file import read_config
from .generations import OpenGeneration, sound_generation
from .manifest import MANIFEST_FILE, Manifest, read_manifest
from .pointer import FOLDER, Pointer, generations_on_disk, read_pointer
from .soundness import form_errors, table_errors, uncounted_beyond
from .tables import Table, map_table

_ATTEMPTS = 3

_log = logging.getLogger("jasper_mmap")
_warned: set[tuple[Path, frozenset[tuple[str, int]]]] = set()
"""States of stores (path, and the times that differ from the manifest) already warned about."""


class Store:
    """The mapped artifacts of a store (all but the negatives), its manifest and its config.

    `path` is made absolute. Opening reads headers only. If the time of a file differs from the
    manifest (a copy, a download), its index ranges are checked again and the log warns, once per
    process and not in a DataLoader worker. `validate="full"` recomputes everything instead.
    Raises `MissingFileError`, `FormatError`, `ContentError`, or `StoreChangedError` during a
    conversion.
    """

    def __init__(self, path: str | Path, *, validate: Validation = "auto") -> None:
        if validate not in get_args(Validation):
            raise UsageError(f"validate must be 'auto' or 'full', not {validate!r}")
        self.path = folder("dataset_dir", path)
        with storage_errors(self.path, "read"):
            self.config, self.manifest, self.tables, moved = _open(self.path, validate)
            if validate == "auto":
                _warn_of(self.path, moved)

    @property
    def store_id(self) -> str:
        """The id of the content: equal stores have equal ids."""
        return self.manifest.store_id

    @property
    def negatives_sizes(self) -> dict[str, int]:
        """The sizes that its negatives must match: those of the manifest, and N."""
        return {**self.manifest.sizes, "N": self.config.n_neg}

    def current_generation(self, *, full: bool = False) -> tuple[Pointer, OpenGeneration]:
        """Return the pointer and the generation that it names, checked by `sound_generation`.

        Raises what that raises, and `MissingFileError` if the store has no negatives.
        """
        pointer = read_pointer(self.path)
        while True:
            try:
                return pointer, sound_generation(
                    self.path, pointer, self.store_id, self.negatives_sizes, full=full
                )
            except MissingFileError:
                # If it was replaced and removed after the pointer was read, there is a newer one.
                before, pointer = pointer, read_pointer(self.path)
                if pointer.generation == before.generation:
                    raise

    def generation(self, number: int | None = None) -> tuple[Pointer, OpenGeneration]:
        """Return the pointer as of generation `number` (None: the current one), and its tables.

        An older one is checked in full. Raises `MissingFileError`, naming the available
        generations, if it was removed or never existed, else as `current_generation`.
        """
        pointer = read_pointer(self.path)
        if number is None or number == pointer.generation:
            return self.current_generation()
        on_disk = generations_on_disk(self.path)
        there = [e["generation"] for e in pointer.history if e["generation"] in on_disk]
        if number not in there:
            raise MissingFileError(
                f"{self.path}: generation {number} was removed or never existed; available:"
                f" {', '.join(map(str, there))}."
            )
        older = pointer.of(number)
        sizes = self.negatives_sizes
        return older, sound_generation(self.path, older, self.store_id, sizes, full=True)


_Parts = tuple[Config, Manifest, dict[str, Table], dict[str, int]]


def _open(folder: Path, validate: Validation) -> _Parts:
    """Open all parts consistently: the manifest is removed before any file is replaced, so if it is
    unchanged after the last file was opened, all parts belong together.

    The last part: file whose time differs from its stamp -> its `mtime_ns`.
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
            # Version 0.1.0 converted such values silently: warn, but open the store.
            beyond = (
                [w for a in STORED if (w := uncounted_beyond(folder, a, manifest, tables[a.name]))]
                if validate == "full"
                else []
            )
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
        f"{folder}: the store was converted again while it was being opened; open it again."
    )


def _warn_of(folder: Path, moved: Mapping[str, int]) -> None:
    """Warn once per process that no checksum of these files was compared."""
    state = folder, frozenset(moved.items())
    if not moved or state in _warned or get_worker_info() is not None:
        return
    _warned.add(state)
    reason = not_renewable(folder)
    remedy = (
        f"To check everything and renew the stamps, run: jasper-mmap verify {folder}"
        if reason is None
        else 'Open it with validate="full" to check everything (jasper-mmap verify checks it too,'
        f" but cannot renew the stamps: {reason})"
    )
    _log.warning(
        "%s: files were copied or changed since the conversion (their modification times differ):"
        " %s. Only sizes, headers and index ranges of these files were checked. %s.",
        folder,
        few(moved),
        remedy,
    )


def not_renewable(folder: Path) -> str | None:
    """The reason why `verify` cannot renew the stamps of a store, or None.

    Links are neither followed for writing nor replaced: they lead into a hub's cache or to another
    store.
    """
    for path in (folder / MANIFEST_FILE, folder / FOLDER):
        with storage_errors(path, "read"):
            if path.is_symlink():
                return f"{path} is a link"
    for path in (folder, folder / FOLDER):
        if not os.access(path, os.W_OK):
            return f"{path} is not writable"
    return None


def _checked(
    folder: Path,
    artifact: Artifact,
    manifest: Manifest,
    validate: Validation,
    huge: bool,
    moved: dict[str, int],
) -> Table:
    """Map and check one table; add its file to `moved` if its time differs from the stamp."""
    entry = manifest.artifacts[artifact.name]
    table, mtime_ns = map_table(folder, artifact, entry, huge=huge)
    full = validate == "full"
    if mtime_ns != entry.mtime_ns:
        moved[entry.file] = mtime_ns
    if full or entry.file in moved:
        for wrong in table_errors(folder, artifact, manifest, table, quick=not full):
            raise wrong
    return table
