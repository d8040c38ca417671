"""Publishing a generation of negatives."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Final

import torch

from ..errors import FormatError, JasperError, MissingFileError, StoreChangedError
from ..files import atomic
from ..printable import IN_ANSWER
from ..rules import arguments
from ..rules.names import GRACE_S, KEEP, LOCK_TIMEOUT_S
from ..store.folder import Store
from ..store.generations import sound_generation
from ..store.lint import count_changed_rows, suspicion
from ..store.manifest import read_manifest
from ..store.pointer import (
    FOLDER,
    Pointer,
    file_name,
    pointer_path,
    read_pointer,
)
from .candidate import Candidate, Given, Limits, take_in
from .lint import keep_published, with_similarity
from .retention import remove_old
from .write import (
    Change,
    Staged,
    make_pointer_last,
    next_generation,
    publisher_lock,
    successor,
    write_staged,
)

UNCHANGED: Final = {**IN_ANSWER, "event": "unchanged"}
"""For `extra` of the log records that say that nothing was published."""

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
    max_margin_false_negatives: float | None = None,
    max_eval_sources: float | None = None,
    allow_equal: bool = False,
    grace_s: float = GRACE_S,
    republish: bool = False,
    dry_run: bool = False,
) -> int:
    """Publish new hard negatives [N_p,N] (source numbers) and their tiers [N_p,N] (1 to 4) as the
    current generation; return its number.

    Both are tensors, or paths of `.pt` or `.safetensors` files; dtypes are kept. Everything is
    checked before anything is written. The last `keep` generations stay on disk for rollback and
    for readers, others for `grace_s` seconds after they were replaced. The `max_...` limits are
    shares of rows (0 to 1) that contain another correct source of the question, the pair's own
    source or a source twice, or that differ from the current generation; more is refused.
    `max_margin_false_negatives` limits the rows with a negative that is too similar by the default
    margin (known right sources do not count), `max_eval_sources` the rows of train with a source
    that is right for val or test pairs only: either makes this call lint the negatives, as
    `lint_negatives` does, before it takes the lock. Two tables of equal values are refused unless
    `allow_equal`. If more than half of the rows contain a source twice or the pair's own source,
    the log warns. Values equal to the current generation make no new one, unless `republish`: its
    number is returned, and the log says so and warns that a `note` is not used. A `dry_run` checks
    everything and writes nothing, without the lock and on a read-only store too; it returns the
    number that would be next, unless another publisher is faster.

    Raises `ContentError`, `ContentTypeError` or `IndexRangeError` naming file, row and value,
    `BusyError` naming the holder of the lock after `lock_timeout_s`, `AccessError` or
    `StorageError` if it cannot be written. Then the current generation stays the same; with
    `DurabilityError` the new one is current, but may not survive a power cut.
    """
    limits = Limits(
        max_false_negatives=max_false_negatives,
        max_own_source=max_own_source,
        max_repeats=max_repeats,
        max_changed=max_changed,
        max_margin_false_negatives=max_margin_false_negatives,
        max_eval_sources=max_eval_sources,
    )
    keep, note, lock_timeout_s, grace_s = checked_options(keep, note, lock_timeout_s, grace_s)
    store = Store(dataset_dir)
    candidate = take_in(
        store, hard_negatives, negative_tiers, allow_equal=allow_equal, copies_in_store=not dry_run
    )
    return publish_within(
        store,
        candidate,
        limits,
        note=note,
        keep=keep,
        lock_timeout_s=lock_timeout_s,
        grace_s=grace_s,
        republish=republish,
        dry_run=dry_run,
    )


def publish_within(
    store: Store,
    candidate: Candidate,
    limits: Limits,
    *,
    note: str,
    keep: int,
    lock_timeout_s: float,
    grace_s: float = GRACE_S,
    republish: bool = False,
    dry_run: bool = False,
) -> int:
    """As `publish_negatives`, for a candidate; if a limit needs its lint, it is linted once."""
    if limits.need_similarity and candidate.similarity is None:
        candidate = with_similarity(store, candidate)
    if candidate.similarity is not None:
        limits.check_similarity(candidate.similarity)
    with nullcontext() if dry_run else publisher_lock(store.path, lock_timeout_s):
        check_same_store(store)
        before = readable_pointer(store.path)
        number = publish_candidate(
            store,
            before,
            candidate,
            note=note,
            keep=keep,
            grace_s=grace_s,
            limits=limits,
            republish=republish,
            dry_run=dry_run,
        )
    if before is not None and number == before.generation:
        _say_unchanged(store.path, number, note)
    return number


def _say_unchanged(folder: Path, number: int, note: str) -> None:
    _log.info(
        "not published: generation %d of %s has these values", number, folder, extra=UNCHANGED
    )
    if note:
        _log.warning(
            "the note %r is not used, since generation %d of %s, which is current, has these values"
            " already (republish=True publishes them again)",
            note,
            number,
            folder,
            extra=UNCHANGED,
        )


def checked_options(
    keep: int, note: str, lock_timeout_s: float, grace_s: float
) -> tuple[int, str, float, float]:
    """Return these arguments of every publisher in their plain form, or raise `UsageError`."""
    return (
        arguments.integer("keep", keep, low=1),
        arguments.text("note", note),
        arguments.seconds("lock_timeout_s", lock_timeout_s),
        arguments.number("grace_s", grace_s, 0.0, math.inf),
    )


def readable_pointer(folder: Path) -> Pointer | None:
    """Return the pointer; None if there is none or, with a warning, if it is damaged: publishing
    is the remedy."""
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
            " outdated tables; run it again."
        )


def publish_candidate(
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
    dry_run: bool = False,
) -> int:
    """Write the candidate (unless `staged`) and the pointer, commit them, remove old generations.

    Returns the number of the generation: the current one, and nothing is written, if that has the
    same values, unless `republish`. Call with the lock held, but for a `dry_run`, which only
    checks.
    """
    folder, sizes = store.path, store.negatives_sizes
    changed = changed_rows(folder, before, store.store_id, sizes, candidate.tables)
    if limits is not None:
        limits.check(candidate.lint, changed, sizes["N_p"])
    if before is not None and changed == 0 and not republish:
        if not dry_run:
            make_pointer_last(folder)
        return before.generation
    number = next_generation(folder, before)
    if dry_run:
        warn_of(folder, number, candidate.lint, sizes["N_p"])
        return number
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
            files=candidate.files,
            rows=sizes["N_p"],
            note=note,
            changed_rows=changed,
            similarity=candidate.numbers,
        )
        at = atomic.sibling_of(pointer_path(folder))
        Change.written(pointer, at, staged).commit(folder)
    except BaseException:
        _take_back(folder, number)
        raise
    _log.info("published generation %d of %s (%s): %s", number, folder, note, candidate.lint)
    warn_of(folder, number, candidate.lint, sizes["N_p"])
    remove_old(folder, pointer, keep, grace_s)
    keep_published(store, pointer, candidate.similarity)
    return number


def shares(lint: Mapping[str, int], n_pairs: int) -> dict[str, float]:
    """The counts of rows of a generation, as shares of the pairs."""
    return {name: count / n_pairs for name, count in lint.items()}


def warn_of(folder: Path, generation: int, lint: Mapping[str, int], n_pairs: int) -> None:
    """Log a warning if a generation with these counts of rows looks suspicious."""
    reason = suspicion(shares(lint, n_pairs))
    if reason is not None:
        _log.warning("generation %d of %s: %s", generation, folder, reason, extra=IN_ANSWER)


def _take_back(folder: Path, number: int) -> None:
    """Remove the file of a generation whose pointer could not be written, unless it was written
    after all (only the last sync may have failed)."""
    with suppress(JasperError, OSError):
        atomic.sweep(folder / FOLDER)
        pointer = readable_pointer(folder)
        if pointer is None or pointer.generation != number:
            atomic.remove(folder / FOLDER / file_name(number))


def changed_rows(
    folder: Path,
    before: Pointer | None,
    store_id: str,
    sizes: Mapping[str, int],
    tables: Mapping[str, torch.Tensor],
) -> int | None:
    """Count the rows of `tables` that differ from the generation `before`; None if that is invalid,
    or of other shapes or another store: publishing is the remedy."""
    if before is None:
        return None
    try:
        old = sound_generation(folder, before, store_id, sizes)
    except JasperError:
        return None
    return count_changed_rows(old.tables, tables)
