"""Which generations stay on disk, and why."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..files import atomic
from ..store.pointer import FOLDER, Pointer, generations_on_disk

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
