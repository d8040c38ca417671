"""The old way of working: a builder overwrites its `.pt` files beside the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from . import negatives
from .errors import MissingFileError
from .incoming import Incoming, take_in
from .negatives import Pointer, publisher_lock
from .ptfile import Stamp
from .publish import LOCK_TIMEOUT_S, check_same_store, lost_or_read, put_in_force
from .schema import NEGATIVES
from .store import Store

_CANDIDATE: Final = ".candidate.tmp"
"""A name that `atomic.sweep` knows."""


def publish_overwritten(folder: Path) -> None:
    """Publish `hard_negatives.pt` and `negative_tiers.pt` beside the store, if they were written
    since a generation was last made from them, whatever is in force.

    Of several processes that call it at once, one publishes. Files that were written again with
    the same content are no news; their new stamps are remembered. Raises as `publish_negatives`.
    """
    if _news(folder, lost_or_read(folder)) is None:
        return
    store = Store(folder)
    with publisher_lock(folder, LOCK_TIMEOUT_S):
        check_same_store(store)
        before = lost_or_read(folder)
        made = _news(folder, before)
        if before is None or made is None:
            return  # another process was first
        incoming = take_in(store, *(folder / a.source for a in NEGATIVES))
        if _equal(store, made, incoming):
            negatives.write_pointer(folder, negatives.with_source(before, incoming.source))
        else:
            put_in_force(store, before, incoming, note="the builder's files were overwritten")


def _news(folder: Path, pointer: Pointer | None) -> dict[str, Any] | None:
    """The history's entry of the generation last made from the files, if they are newer."""
    made = negatives.made_from_files(pointer) if pointer else None
    if made is None:  # never published from here, or the history was lost
        return None
    try:
        stamps = {a.name: Stamp.of(folder / a.source).to_dict() for a in NEGATIVES}
    except MissingFileError:
        return None
    return None if stamps == made["source"] else made


def _equal(store: Store, made: dict[str, Any], incoming: Incoming) -> bool:
    """Whether the tables would make the very file that was made then; it may be gone by now."""
    path = store.path / negatives.FOLDER / _CANDIDATE
    written = negatives.write_file(path, **incoming.tables)
    path.unlink()
    return bool(written.sha256 == made["sha256"])
