"""Which generations stay on disk."""

from __future__ import annotations

import logging
import time
from datetime import datetime
from pathlib import Path

from ..files import atomic
from ..store.pointer import FOLDER, Pointer, generations_on_disk

GRACE_S = 600.0
"""A generation stays at least this long after the next one replaced it: a process that has read
the pointer, or a worker that is kept waiting, may be about to open it."""

_log = logging.getLogger("jasper_mmap")


def remove_old(store: Path, pointer: Pointer, keep: int, grace_s: float) -> None:
    """Remove what is neither in force, nor of the last `keep` generations, nor out of service for
    less than `grace_s`; also the files that dead publishers left. Call with the lock held.

    The pointer is in force already, so that failing here only leaves something behind.
    """
    replaced = _replaced_at(pointer)
    removed = []
    try:
        on_disk = generations_on_disk(store)
        published = [e["generation"] for e in pointer.history if e["generation"] in on_disk]
        stay = {pointer.generation, *published[-keep:]}
        for number, path in on_disk.items():
            # What no entry names was never in force: its own time counts.
            since = replaced.get(number) or path.stat().st_mtime
            if number not in stay and time.time() - since > grace_s:
                path.unlink(missing_ok=True)
                removed.append(number)
        if removed:
            atomic.sync_folder(store / FOLDER)
    except OSError as error:
        _log.warning("could not remove an old generation of %s: %s", store, error)
    if removed:
        _log.info("removed generations %s of %s", removed, store)


def _replaced_at(pointer: Pointer) -> dict[int, float]:
    """Generation -> when the next one came into force, in seconds since 1970."""
    times = {}
    for entry, following in zip(pointer.history, pointer.history[1:], strict=False):
        try:
            times[entry["generation"]] = datetime.fromisoformat(following["when"]).timestamp()
        except (KeyError, TypeError, ValueError):
            continue  # an entry that no publisher of ours wrote
    return times
