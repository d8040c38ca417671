"""Rolling back to an older generation: its content is published again."""

from __future__ import annotations

from pathlib import Path

from ..errors import DurabilityError, MissingFileError, UsageError
from ..rules import arguments
from ..rules.names import GRACE_S, KEEP, LOCK_TIMEOUT_S
from ..similarity.reports.summary import summary_in
from ..store.folder import Store
from ..store.generations import sound_generation
from ..store.pointer import (
    FOLDER,
    Pointer,
    file_name,
    generations_on_disk,
    pointer_path,
    read_pointer,
)
from .candidate import Candidate
from .publish import check_same_store, checked_options, publish_candidate
from .write import publisher_lock


def rollback_negatives(
    dataset_dir: str | Path,
    generation: int | None = None,
    *,
    note: str = "",
    keep: int = KEEP,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    grace_s: float = GRACE_S,
) -> int:
    """Publish the content of an older generation under the next number; return that number.

    `generation=None` takes the one before the current one. Raises `MissingFileError`, naming the
    available generations, if its file no longer exists, `FormatError` if it was altered, else as
    `publish_negatives`.
    """
    keep, note, lock_timeout_s, grace_s = checked_options(keep, note, lock_timeout_s, grace_s)
    if generation is not None:
        generation = arguments.integer("generation", generation, low=1)
    store = Store(dataset_dir)
    with publisher_lock(store.path, lock_timeout_s):
        check_same_store(store)
        before = read_pointer(store.path)
        number = _older(store.path, before, generation)
        candidate = _read_back(store, before, number)
        note = note or f"rollback to {number}"
        try:
            return publish_candidate(
                store, before, candidate, note=note, keep=keep, grace_s=grace_s
            )
        except DurabilityError as error:
            if generation is not None:
                raise
            raise DurabilityError(
                f"{error} Name generation {number} then (--to {number}, or generation={number}):"
                " the one before the current one is another now."
            ) from None


def _older(folder: Path, pointer: Pointer, generation: int | None) -> int:
    """The number of the generation to roll back to: one in the history whose file exists."""
    on_disk = generations_on_disk(folder)
    numbers = [e["generation"] for e in pointer.history]
    older = [number for number in numbers if number != pointer.generation]
    available = [number for number in older if number in on_disk]
    others = f"you can roll back to: {', '.join(map(str, available))}."
    if not available:
        others = "there is no other generation to roll back to."
    if generation is None:
        if not older:
            raise MissingFileError(
                f"{pointer_path(folder)}: generation {pointer.generation} is the first, so there is"
                " no older one to roll back to."
            )
        generation = older[-1]
    if generation == pointer.generation:
        raise UsageError(f"generation {generation} is already current; {others}")
    if generation in available:
        return generation
    raise MissingFileError(
        f"{folder / FOLDER / file_name(generation)} not found: generation"
        f" {generation} was removed or never existed; {others}"
    )


def _read_back(store: Store, before: Pointer, number: int) -> Candidate:
    """Read the content of an older generation, checked in full against the history."""
    older = before.of(number)
    sizes = store.negatives_sizes
    opened = sound_generation(store.path, older, older.store_id, sizes, full=True)
    files = (str(opened.path),)
    numbers = next((summary_in(e) for e in before.history if e["generation"] == number), {})
    return Candidate(
        tables=opened.tables, lint=dict(older.lint), source={}, files=files, numbers=numbers
    )
