"""From a store back to the builder's `.pt` files.

All files are written in the staging folder and then moved. A list of them, written before the first
is moved, lets the export after a killed one distinguish its files from the user's.
"""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from typing import IO, Any, Final, cast

import torch

from jasper_mmap.errors import ExistsError, JasperError
from jasper_mmap.files import atomic
from jasper_mmap.files.jsonfile import read_small
from jasper_mmap.files.stamp import Stamp
from jasper_mmap.rules import arguments
from jasper_mmap.rules.config import CONFIG_FILE
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.folder import Store
from jasper_mmap.store.tables import Ragged

from .staging import Staging, staging

_LIST: Final = "exported.json"


def export_pt(store: str | Path, dst: str | Path) -> list[Path]:
    """Write the artifacts of `store` as `.pt` files into the folder `dst`; return their paths.

    The negatives are those of the current generation; dtypes are the stored ones. Raises
    `ExistsError` if `dst` already has any of these files. A failure removes what was written; after
    a kill it can be run again.
    """
    store, dst = arguments.folder("store", store), arguments.folder("dst", dst)
    opened = Store(store)
    _, generation = opened.current_generation()
    tables = opened.tables | generation.tables

    targets = [dst / CONFIG_FILE, *(dst / a.source for a in ARTIFACTS.values())]
    with atomic.storage_errors(dst), staging(dst) as stage:
        _check_free(stage, targets)
        with atomic.storage_errors(store, "read"):
            text = read_small(store / CONFIG_FILE)
        with atomic.replacing(stage.path(CONFIG_FILE)) as file:
            atomic.write_all(file, text)
        for artifact in ARTIFACTS.values():
            table = tables[artifact.name]
            value = [row.tolist() for row in table] if isinstance(table, Ragged) else table
            _save(value, stage.path(artifact.source))
        _put_in_place(stage, targets)
    return targets


def _check_free(stage: Staging, targets: list[Path]) -> None:
    """Raise `ExistsError` if a target exists that no killed export has written."""
    if stage.journal.entries or stage.journal.failed:
        raise ExistsError(
            f"{stage.folder}: holds an interrupted conversion; export into another folder, or"
            " complete it with jasper-convert."
        )
    try:
        listed = atomic.read_json(stage.folder / _LIST)
    except JasperError:
        listed = {}
    for path in targets:
        if path.is_symlink() or (
            path.exists() and listed.get(path.name) != Stamp.of(path).to_dict()
        ):
            raise ExistsError(f"{path}: already exists; export into another folder, or remove it.")


def _put_in_place(stage: Staging, targets: list[Path]) -> None:
    stamps = {path.name: Stamp.of(stage.folder / path.name).to_dict() for path in targets}
    # Not by `stage.path`: it must stay for the next export if this one fails while moving.
    atomic.write_json(stage.folder / _LIST, stamps)
    stage.committing = True
    with atomic.storage_errors(stage.store):
        for path in targets:
            atomic.rename(stage.folder / path.name, path)
        atomic.make_last(targets[-1])


def _save(value: torch.Tensor | list[Any], path: Path) -> None:
    with atomic.replacing(path) as file:
        whole = _Whole(file)
        try:
            torch.save(value, cast("IO[bytes]", whole))
        except Exception as error:  # noqa: BLE001 - torch raises various types
            # torch's own error hides the failed write.
            raise (OSError(*whole.failure) if whole.failure else error) from None


class _Whole:
    """A file whose `write` is complete; torch fails if a raw one stops after 2 GiB."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        # Not the exception, whose traceback would keep the store open: torch never frees this.
        self.failure: tuple[int | None, str] | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            atomic.write_all(self._file, data)
        except OSError as error:
            self.failure = self.failure or (error.errno, error.strerror or str(error))
            raise
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""
