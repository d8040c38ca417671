"""Which generations stay on disk."""

from __future__ import annotations

import logging
import time
from datetime import datetime
from pathlib import Path

from ..files import atomic
from ..store.pointer import FOLDER, Pointer, generations_on_disk

GRACE_S = 600.0
"""A generation is kept at least this long after it was replaced: a process that has read the
pointer, or a worker that is waiting, may be about to open it."""

_log = logging.getLogger("jasper_mmap")


def remove_old(store: Path, pointer: Pointer, keep: int, grace_s: float) -> None:
    """Remove generations that are neither current, nor among the last `keep`, nor replaced less
    than `grace_s` seconds ago; also files of publishers that died. Call with the lock held.

    The new pointer is already committed, so a failure only leaves old files behind.
    """
    replaced = _replaced_at(pointer)
    removed = []
    try:
        on_disk = generations_on_disk(store)
        published = [e["generation"] for e in pointer.history if e["generation"] in on_disk]
        stay = {pointer.generation, *published[-keep:]}
        for number, path in on_disk.items():
            # A generation without an entry was never current: use the time of its file.
            since = replaced.get(number) or path.stat().st_mtime
            if number not in stay and time.time() - since > grace_s:
                atomic.remove(path, missing_ok=True)
                removed.append(number)
        if removed:
            atomic.sync_folder(store / FOLDER)
    except OSError as error:
        _log.warning("could not remove an old generation of %s: %s", store, error)
    if removed:
        _log.info("removed generations %s of %s", removed, store)


def _replaced_at(pointer: Pointer) -> dict[int, float]:
    """Generation -> when the next one replaced it, in seconds since 1970."""
    times = {}
    for entry, following in zip(pointer.history, pointer.history[1:], strict=False):
        try:
            times[entry["generation"]] = datetime.fromisoformat(following["when"]).timestamp()
        except (KeyError, TypeError, ValueError):
            continue  # an entry of another program
    return times
