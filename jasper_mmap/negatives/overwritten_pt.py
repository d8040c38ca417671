"""The earlier way of working: a builder overwrites its `.pt` files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from ..errors import FormatError, MissingFileError
from ..files.atomic import exists, remove, storage_errors
from ..rules import arguments
from ..rules.names import LOCK_TIMEOUT_S
from ..rules.schema import NEGATIVES
from ..store.folder import Store
from ..store.pointer import FOLDER, made_from_files, read_pointer
from .builder_pair import PAIRS, PairWatch, warn_of_half
from .candidate import take_in
from .publish import check_same_store, publish_candidate, readable_pointer
from .write import (
    Staged,
    make_pointer_last,
    publisher_lock,
    with_source,
    write_pointer,
    write_staged,
)

_CANDIDATE: Final = ".candidate.tmp"
"""A name that `atomic.sweep` removes."""

_log = logging.getLogger("jasper_mmap")
_warned: set[Path] = set()
"""Stores that this process has warned about, since they have no files beside them."""


def publish_overwritten(
    folder: Path,
    *,
    source_dir: str | Path | None = None,
    allow_equal: bool = False,
    pairs: PairWatch = PAIRS,
) -> None:
    """Publish the builder's two files of negatives if they were written since a generation was last
    made from them, whichever generation is current.

    They are in `source_dir`, or beside the store. If only one was written, this waits for the other
    (see `builder_pair`). If several processes call it at once, one publishes. Files rewritten with
    the same content, or with the values of the current generation, make no new one; their new
    stamps are recorded. Raises as `publish_negatives`, and `MissingFileError` if `source_dir` has
    no such files; without it the log warns once.
    """
    source = folder if source_dir is None else arguments.folder("source_dir", source_dir)
    missing = [a.source for a in NEGATIVES if not exists(source / a.source)]
    if missing and source_dir is not None:
        raise MissingFileError(
            f"{source / missing[0]} not found. Let the builder write it, or correct source_dir."
        )
    if missing:
        _warn_of_missing(folder, missing)
        return
    before = readable_pointer(folder)
    made = made_from_files(before) if before else None
    if made is None:  # never published from files, or the history was lost
        return
    stamps = pairs.settled(source, made["source"])
    if stamps == made["source"]:
        if os.access(folder / FOLDER, os.W_OK):  # one who may only read has published nothing
            make_pointer_last(folder)
        return
    store = Store(folder)
    with publisher_lock(folder, LOCK_TIMEOUT_S):
        check_same_store(store)
        before = readable_pointer(folder)
        made = made_from_files(before) if before else None
        if before is None or made is None or made["source"] == stamps:
            make_pointer_last(folder)
            return  # another process was first
        files = (source / a.source for a in NEGATIVES)
        candidate = take_in(store, *files, builder=source, allow_equal=allow_equal)
        if candidate.source != stamps:
            raise FormatError(
                f"{source}: the builder's negatives changed while being read; run it again when the"
                " builder is done."
            )
        staged = write_staged(folder / FOLDER / _CANDIDATE, candidate.tables)
        if staged.written.sha256 == made["sha256"]:
            _drop(staged)
            write_pointer(folder, with_source(before, candidate.source))
            return
        note = "the builder's files were overwritten"
        number = publish_candidate(
            store, before, candidate, note=note, staged=staged, republish=False
        )
        if number == before.generation:  # its values came from elsewhere before
            _drop(staged)
            write_pointer(folder, with_source(before, candidate.source, of_current=True))
            return
        warn_of_half(read_pointer(folder), made)


def _drop(staged: Staged) -> None:
    with storage_errors(staged.path):
        remove(staged.path)


def _warn_of_missing(folder: Path, missing: list[str]) -> None:
    if len(missing) < len(NEGATIVES):
        _log.warning(
            "%s: there is no %s beside the other file, so nothing is published. Call"
            " reload_negatives() again when the builder has written both.",
            folder,
            missing[0],
        )
        return
    if folder in _warned:
        return
    _warned.add(folder)
    _log.warning(
        "%s: reload_negatives() looks for the builder's files beside the store only, and there is"
        " no %s (the store was converted into another folder, or copied). To serve files that a"
        " builder wrote elsewhere, run jasper-convert SOURCE %s again, publish both files with"
        " jasper-mmap publish, or call reload_negatives(source_dir=SOURCE).",
        folder,
        " and no ".join(missing),
        folder,
    )
