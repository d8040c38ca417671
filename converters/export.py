"""From a store back to the builder's `.pt` files, so that nobody is locked in."""

from __future__ import annotations

from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any, cast

import torch

from jasper_mmap import atomic, negatives
from jasper_mmap.config import CONFIG_FILE
from jasper_mmap.errors import ExistsError, MissingFileError
from jasper_mmap.generation import sound_generation
from jasper_mmap.incoming import store_sizes
from jasper_mmap.schema import ARTIFACTS
from jasper_mmap.store import Ragged, Store


def export_pt(store: str | Path, dst: str | Path) -> list[Path]:
    """Write the artifacts of `store` as `.pt` files into the folder `dst`; the paths written.

    The negatives are those of the generation in force; dtypes are the stored ones. Refuses with
    `ExistsError` where `dst` has any of these files already; a failure removes what was written.
    """
    store, dst = Path(store).absolute(), Path(dst).absolute()
    if not store.is_dir():
        raise MissingFileError(f"Dataset directory not found: {store}")
    opened = Store(store)
    pointer = negatives.read_pointer(store)
    generation = sound_generation(store, pointer, opened.store_id, store_sizes(opened))
    tables = opened.tables | generation.tables

    targets = [dst / CONFIG_FILE, *(dst / a.source for a in ARTIFACTS.values())]
    for path in targets:
        if path.exists():
            raise ExistsError(f"{path}: exists already; export into another folder, or remove it.")
    missing = [path for path in (dst, *dst.parents) if not path.exists()]
    try:
        with atomic.storage_errors(dst):
            dst.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(dst / CONFIG_FILE) as file:
            atomic.write_all(file, (store / CONFIG_FILE).read_bytes())
        for artifact in ARTIFACTS.values():
            table = tables[artifact.name]
            value = [row.tolist() for row in table] if isinstance(table, Ragged) else table
            _save(value, dst / artifact.source)
    except BaseException:
        for path in targets:
            path.unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise
    return targets


def _save(value: torch.Tensor | list[Any], path: Path) -> None:
    with atomic.replacing(path) as file:
        torch.save(value, cast("IO[bytes]", _Whole(file)))


class _Whole:
    """A file whose `write` takes everything; torch gives up where a raw one takes only 2 GiB."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        atomic.write_all(self._file, data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""
