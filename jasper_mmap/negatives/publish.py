"""Putting a generation of negatives in force, and going back to an older one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import FormatError, JasperError, MissingFileError, StoreChangedError, UsageError
from ..files import atomic
from ..printable import IN_ANSWER
from ..rules import arguments
from ..rules.names import KEEP, LOCK_TIMEOUT_S
from ..store.folder import Store
from ..store.generations import sound_generation
from ..store.lint import count_changed_rows, suspicion
from ..store.manifest import read_manifest
from ..store.pointer import (
    FOLDER,
    Pointer,
    file_name,
    generations_on_disk,
    pointer_path,
    read_pointer,
)
from .candidate import Candidate, Given, Limits, take_in
from .retention import GRACE_S, remove_old
from .write import Change, Staged, next_generation, publisher_lock, successor, write_staged

_log = logging.getLogger("jasper_mmap")


def publish_negatives(
    dataset_dir: str | Path,
    hard_negatives: Given,
    negative_tiers: Given,
    *,
    note: str = "",
    keep: int = KEEP,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    max_false_negatives: float | None = None,
    max_own_source: float | None = None,
    max_repeats: float | None = None,
    max_changed: float | None = None,
    allow_equal: bool = False,
    grace_s: float = GRACE_S,
    republish: bool = True,
) -> int:
    """Make new hard negatives [N_p,N] (source numbers) and their tiers [N_p,N] (1 to 4) the
    generation in force; its number.

    Both are tensors, or paths of `.pt` or `.safetensors` files; dtypes are kept. Everything is
    checked before anything is written. The last `keep` generations stay on disk for rollback and
    for readers, and others until `grace_s` seconds after they were replaced. `max_...` are shares
    of rows (0 to 1) that hold another true source of the question, the pair's own source, a source
    twice, or something else than the generation in force; more is refused. Two tables of equal
    values are refused unless `allow_equal`; where more than half of the rows hold a source twice or
    their own, the log warns. Without `republish`, values that equal those in force make no new
    generation: the number is that of the one there is.

    Raises `ContentError`, `ContentTypeError` or `IndexRangeError` naming file, row and value,
    `BusyError` naming the holder of the lock after `lock_timeout_s`, `AccessError` or
    `StorageError` where it cannot be written. What was in force then stays so.
    """
    limits = Limits(
        max_false_negatives=max_false_negatives,
        max_own_source=max_own_source,
        max_repeats=max_repeats,
        max_changed=max_changed,
    )
    keep, note, lock_timeout_s, grace_s = _checked(keep, note, lock_timeout_s, grace_s)
    store = Store(dataset_dir)
    candidate = take_in(store, hard_negatives, negative_tiers, allow_equal=allow_equal)
    with publisher_lock(store.path, lock_timeout_s):
        check_same_store(store)
        before = lost_or_read(store.path)
        return put_in_force(
            store,
            before,
            candidate,
            note=note,
            keep=keep,
            grace_s=grace_s,
            limits=limits,
            republish=republish,
        )


def rollback_negatives(
    dataset_dir: str | Path,
    generation: int | None = None,
    *,
    note: str = "",
    keep: int = KEEP,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    grace_s: float = GRACE_S,
) -> int:
    """Publish the content of an older generation again, under the next number; that number.

    `generation=None` takes the one before the one in force. Raises `MissingFileError` naming the
    generations that can be gone back to where this one's file is no longer there, `FormatError`
    where it was altered, else as `publish_negatives`.
    """
    keep, note, lock_timeout_s, grace_s = _checked(keep, note, lock_timeout_s, grace_s)
    if generation is not None:
        generation = arguments.integer("generation", generation, low=1)
    store = Store(dataset_dir)
    with publisher_lock(store.path, lock_timeout_s):
        check_same_store(store)
        before = read_pointer(store.path)
        number = _older(store.path, before, generation)
        candidate = _read_back(store, before, number)
        note = note or f"rollback to {number}"
        return put_in_force(store, before, candidate, note=note, keep=keep, grace_s=grace_s)


def _checked(
    keep: int, note: str, lock_timeout_s: float, grace_s: float
) -> tuple[int, str, float, float]:
    return (
        arguments.integer("keep", keep, low=1),
        arguments.text("note", note),
        arguments.seconds("lock_timeout_s", lock_timeout_s),
        arguments.number("grace_s", grace_s, 0.0, math.inf),
    )


def lost_or_read(folder: Path) -> Pointer | None:
    """The pointer in force; None where there is none, or none that can be read: publishing is the
    remedy then."""
    try:
        return read_pointer(folder)
    except MissingFileError:
        return None
    except FormatError as error:
        _log.warning("%s The history of generations is lost.", error)
        return None


def check_same_store(store: Store) -> None:
    """Raise `StoreChangedError` if the store was converted again since it was opened."""
    if read_manifest(store.path).store_id != store.store_id:
        raise StoreChangedError(
            f"{store.path}: was converted again meanwhile, so the negatives were checked against"
            " other tables; run it again."
        )


def put_in_force(
    store: Store,
    before: Pointer | None,
    candidate: Candidate,
    *,
    note: str,
    keep: int = KEEP,
    grace_s: float = GRACE_S,
    limits: Limits | None = None,
    republish: bool = True,
    staged: Staged | None = None,
) -> int:
    """Write generation (unless `staged`) and pointer, put them in force, remove old generations.

    Call with the lock held.
    """
    changed = changed_rows(
        store.path, before, store.store_id, store.negatives_sizes, candidate.tables
    )
    if limits is not None:
        limits.check(candidate.lint, changed, store.manifest.sizes["N_p"])
    if before is not None and changed == 0 and not republish:
        return before.generation
    folder = store.path
    number = next_generation(folder, before)
    try:
        if staged is None:
            own = folder / FOLDER / file_name(number)
            staged = write_staged(atomic.sibling_of(own), candidate.tables)
        pointer = successor(
            before,
            number,
            staged.written,
            store_id=store.store_id,
            source=candidate.source,
            lint=candidate.lint,
            note=note,
            changed_rows=changed,
        )
        at = atomic.sibling_of(pointer_path(folder))
        Change.written(pointer, at, staged).put_in_force(folder)
    except BaseException:
        _take_back(folder, number)
        raise
    _log.info("published generation %d of %s (%s): %s", number, folder, note, candidate.lint)
    warn_of(folder, pointer, store.manifest.sizes["N_p"])
    remove_old(folder, pointer, keep, grace_s)
    return number


def shares(pointer: Pointer, n_pairs: int) -> dict[str, float]:
    """The counts of rows that a pointer holds, as shares of the pairs."""
    return {name: count / n_pairs for name, count in pointer.lint.items()}


def warn_of(folder: Path, pointer: Pointer, n_pairs: int) -> None:
    """Log what is suspicious about a generation that was just put in force."""
    reason = suspicion(shares(pointer, n_pairs))
    if reason is not None:
        _log.warning("generation %d of %s: %s", pointer.generation, folder, reason, extra=IN_ANSWER)


def _take_back(folder: Path, number: int) -> None:
    """Free the room of a generation whose pointer could not be written, unless it was after all
    (what failed may have been the last sync)."""
    with suppress(JasperError, OSError):
        atomic.sweep(folder / FOLDER)
        pointer = lost_or_read(folder)
        if pointer is None or pointer.generation != number:
            (folder / FOLDER / file_name(number)).unlink(missing_ok=True)


def changed_rows(
    folder: Path,
    before: Pointer | None,
    store_id: str,
    sizes: Mapping[str, int],
    tables: Mapping[str, torch.Tensor],
) -> int | None:
    """Rows of `tables` that differ from the generation `before`; None where that is spoilt, or of
    other shapes or another store than named: publishing is the remedy then."""
    if before is None:
        return None
    try:
        old = sound_generation(folder, before, store_id, sizes)
    except JasperError:
        return None
    return count_changed_rows(old.tables, tables)


def _older(folder: Path, pointer: Pointer, generation: int | None) -> int:
    """The generation to go back to, which the history knows; its file is there."""
    on_disk = generations_on_disk(folder)
    numbers = [e["generation"] for e in pointer.history]
    older = [number for number in numbers if number != pointer.generation]
    available = [number for number in older if number in on_disk]
    others = f"you can roll back to: {', '.join(map(str, available))}."
    if not available:
        others = "there is no other one to roll back to."
    if generation is None:
        if not older:
            raise MissingFileError(
                f"{pointer_path(folder)}: generation {pointer.generation} is the first,"
                " so there is no older one to roll back to."
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
    """The content of an older generation; the history vouches for it as it did then."""
    older = before.of(number)
    sizes = store.negatives_sizes
    opened = sound_generation(store.path, older, older.store_id, sizes, full=True)
    return Candidate(tables=opened.tables, lint=dict(older.lint), source={})
