"""Putting the prepared files of a conversion in force."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from jasper_mmap.files import atomic
from jasper_mmap.rules.config import CONFIG_FILE
from jasper_mmap.store.manifest import MANIFEST_FILE, Entry, Manifest
from jasper_mmap.store.pointer import FOLDER, POINTER

from .negatives import STAGED_FILE, Outcome
from .staging import Staging


def commit(
    stage: Staging,
    entries: dict[str, Entry],
    *,
    staged: Iterable[str],
    manifest: Manifest | None,
    outcome: Outcome,
    config: bytes | None,
) -> None:
    """Move everything from the staging folder to its place. Call with `publisher_lock` held.

    `staged` are the artifacts whose files are to be moved, `manifest` the new one where it
    changes, `config` the bytes of `config.json` where they are to be written. All writing is done
    before the first move, so only renames are left that a full disk could not stop. Where tables
    move, the manifest goes first and comes last: whoever opens the store meanwhile is told of a
    conversion; one that only says more than before takes the old one's place. After a kill
    anywhere here, the next run finds in the journal what is already in its place.
    """
    moved = [entries[name].file for name in staged]
    store, folder = stage.store, stage.folder
    if manifest is not None:
        atomic.write_json(stage.path(MANIFEST_FILE), manifest.to_dict())
    if outcome.changed:
        atomic.write_json(stage.path(POINTER), asdict(outcome.pointer))
    if config is not None:
        with atomic.replacing(stage.path(CONFIG_FILE)) as file:
            atomic.write_all(file, config)
    stage.seal(entries, outcome.pointer.generation if outcome.publishes else 0)

    with atomic.storage_errors(store):
        if manifest is not None and (moved or (config is not None and outcome.publishes)):
            (store / MANIFEST_FILE).unlink(missing_ok=True)
            atomic.sync_folder(store)
        for name in moved:
            (folder / name).replace(store / name)
        if config is not None:
            (folder / CONFIG_FILE).replace(store / CONFIG_FILE)
        atomic.sync_folder(store)
        _put_in_force(folder, store / FOLDER, outcome)
        if manifest is not None:
            (folder / MANIFEST_FILE).replace(store / MANIFEST_FILE)
            atomic.sync_folder(store)


def _put_in_force(folder: Path, target: Path, outcome: Outcome) -> None:
    if outcome.publishes:
        (folder / STAGED_FILE).replace(target / outcome.pointer.file)
        atomic.sync_folder(target)
    if outcome.changed:
        (folder / POINTER).replace(target / POINTER)
        atomic.sync_folder(target)
