"""Which generations stay on disk, and why; removing others after publishing, or on request."""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..files import atomic
from ..files.missing_paths import must_be_folder
from ..rules import arguments
from ..rules.names import GRACE_S, KEEP, LOCK_TIMEOUT_S
from ..store.manifest import read_manifest
from ..store.pointer import FOLDER, Pointer, generations_on_disk, read_pointer
from .write import publisher_lock

_log = logging.getLogger("jasper_mmap")


@dataclass(frozen=True)
class OnDisk:
    """The file of a generation."""

    generation: int
    path: Path
    bytes: int
    stays: str | None
    """Why it stays; None if it is to be removed."""


def judged(store: Path, pointer: Pointer, keep: int, grace_s: float) -> list[OnDisk]:
    """Return the generations on disk, ascending, also those of publishers that died.

    To be removed are those that are neither current, nor among the last `keep`, nor replaced less
    than `grace_s` seconds ago.
    """
    replaced = _replaced_at(pointer)
    on_disk = generations_on_disk(store)
    published = [e["generation"] for e in pointer.history if e["generation"] in on_disk]
    kept = published[-keep:]
    judgements = []
    for number, path in on_disk.items():
        with suppress(FileNotFoundError):  # removed by another program since the look
            status = path.lstat()  # of a link, what removing it frees
            # A generation without an entry was never current: use the time of its file.
            ago_s = max(0.0, time.time() - replaced.get(number, status.st_mtime))
            stays = None
            if number == pointer.generation:
                stays = "current"
            elif number in kept:
                stays = f"among the last {keep}"
            elif not ago_s > grace_s:
                stays = f"replaced {ago_s:.0f} s ago, within the grace time of {grace_s:g} s"
            judgements.append(OnDisk(number, path, status.st_size, stays))
    return judgements


def remove_old(store: Path, pointer: Pointer, keep: int, grace_s: float) -> None:
    """Remove the generations that `judged` says are to be removed. Call with the lock held.

    The new pointer is already committed, so a failure only leaves old files behind.
    """
    removed: list[int] = []
    try:
        remove(store, judged(store, pointer, keep, grace_s), removed)
    except OSError as error:
        _log.warning("could not remove an old generation of %s: %s", store, error)
    if removed:
        _log.info("removed generations %s of %s", removed, store)


def remove(store: Path, judgements: list[OnDisk], removed: list[int]) -> None:
    """Remove the files that do not stay; `removed` gets their numbers, one by one.

    Raises `OSError`.
    """
    for one in judgements:
        if one.stays is None:
            atomic.remove(one.path, missing_ok=True)
            removed.append(one.generation)
    if removed:
        atomic.sync_folder(store / FOLDER)


def _replaced_at(pointer: Pointer) -> dict[int, float]:
    """Generation -> when the next one replaced it, in seconds since 1970."""
    times = {}
    for entry, following in zip(pointer.history, pointer.history[1:], strict=False):
        try:
            times[entry["generation"]] = datetime.fromisoformat(following["when"]).timestamp()
        except (KeyError, TypeError, ValueError):
            continue  # an entry of another program
    return times


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
