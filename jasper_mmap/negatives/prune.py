"""Removing old generations on request, rather than after a publication."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import atomic
from ..files.missing_paths import must_be_folder
from ..rules import arguments
from ..rules.names import GRACE_S, KEEP, LOCK_TIMEOUT_S
from ..store.manifest import read_manifest
from ..store.pointer import FOLDER, read_pointer
from .retention import OnDisk, judged, remove
from .write import publisher_lock

_log = logging.getLogger("jasper_mmap")


@dataclass(frozen=True)
class Pruned:
    """The generations that were on disk, and what became of them."""

    generations: list[OnDisk]
    dry_run: bool

    @property
    def removed(self) -> list[OnDisk]:
        """Those that were removed; in a dry run, those that would be."""
        return [one for one in self.generations if one.stays is None]

    @property
    def freed_bytes(self) -> int:
        """Their total size."""
        return sum(one.bytes for one in self.removed)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "dry_run": self.dry_run,
            "freed_bytes": self.freed_bytes,
            "removed": [{"generation": one.generation, "bytes": one.bytes} for one in self.removed],
            "stay": [
                {"generation": one.generation, "bytes": one.bytes, "why": one.stays}
                for one in self.generations
                if one.stays is not None
            ],
        }


def prune_negatives(
    dataset_dir: str | Path,
    *,
    keep: int = KEEP,
    grace_s: float = GRACE_S,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    dry_run: bool = False,
) -> Pruned:
    """Remove the generations beyond the last `keep`; return what was on disk.

    The current generation always stays, and so does one that was replaced less than `grace_s`
    seconds ago. A dry run only reads, without the lock. Raises `BusyError` naming the holder of
    the lock after `lock_timeout_s`, `AccessError` or `StorageError` if a file cannot be removed;
    those before it are removed then.
    """
    keep = arguments.integer("keep", keep, low=1)
    grace_s = arguments.number("grace_s", grace_s, 0.0, math.inf)
    lock_timeout_s = arguments.seconds("lock_timeout_s", lock_timeout_s)
    folder = arguments.folder("dataset_dir", dataset_dir)
    must_be_folder(folder)
    read_manifest(folder)  # else its folder of negatives may be anything
    if dry_run:
        return Pruned(_judged(folder, keep, grace_s), dry_run)
    with publisher_lock(folder, lock_timeout_s):
        pruned = Pruned(_judged(folder, keep, grace_s), dry_run)
        removed: list[int] = []
        with atomic.storage_errors(folder / FOLDER):
            remove(folder, pruned.generations, removed)
    if removed:
        _log.info("removed generations %s of %s", removed, folder)
    return pruned


def _judged(folder: Path, keep: int, grace_s: float) -> list[OnDisk]:
    with atomic.storage_errors(folder / FOLDER, "read"):
        return judged(folder, read_pointer(folder), keep, grace_s)
