"""The folder in which a conversion prepares its files (`.converting` in the store), and its commit.

It holds the lock that excludes other conversions, the staged files, and the journal with an entry
for each complete file. A conversion that fails removes what it made; one that is killed leaves the
folder, and the next one continues from the journal. If a system call fails during the commit, files
in their place may not be on the disk, even if a later sync succeeds: the journal is then renamed,
and the next conversion writes everything again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from jasper_mmap.errors import ExistsError, JasperError, MissingFileError
from jasper_mmap.files import atomic
from jasper_mmap.files.atomic import storage_errors
from jasper_mmap.files.locks import exclusive
from jasper_mmap.negatives.write import Change
from jasper_mmap.rules.config import CONFIG_FILE
from jasper_mmap.store.manifest import MANIFEST_FILE, STAGING, Entry, Manifest
from jasper_mmap.store.pointer import FOLDER

JOURNAL = "journal.json"
_FAILED = "failed.json"
"""The journal of a conversion that failed in its commit."""
STAGED_NEGATIVES = "negatives.safetensors"
_LOCK = ".lock"
_LOCK_TIMEOUT_S = 0.2
"""Just long enough for another conversion to finish removing the folder."""
_ATTEMPTS = 10

_log = logging.getLogger("jasper_mmap")


@dataclass(frozen=True)
class Journal:
    """The progress of an interrupted conversion."""

    entries: dict[str, Entry]
    """Artifact -> entry of a complete file, staged or already in the store."""
    generation: int
    """The number under which it was publishing negatives; 0 before that."""
    failed: dict[str, Entry] = field(default_factory=dict)
    """The same of a conversion whose commit failed. Nothing that is in the store can be trusted
    then."""


class Staging:
    """The staging folder of one conversion, while its lock is held."""

    def __init__(self, store: Path, *, fresh: bool) -> None:
        self.store = store
        self.folder = store / STAGING
        self.journal = read_journal(store)
        self._before = replace(self.journal, entries=dict(self.journal.entries))
        self._fresh = fresh
        self._written: set[Path] = set()
        self._made = [] if (store / FOLDER).exists() else [store / FOLDER]
        self.committing = False
        """If true, the next run completes a failure instead of this one undoing it."""

    def path(self, name: str) -> Path:
        """Where to write a file of this name, which is removed if the conversion fails."""
        path = self.folder / name
        self._written.add(path)
        return path

    def record(self, name: str, entry: Entry) -> None:
        """Add a complete file to the journal."""
        self.journal.entries[name] = entry
        self._write(self.journal)

    def seal(self, entries: dict[str, Entry], generation: int) -> None:
        """Write the complete journal, the last step before the commit."""
        self._write(Journal(entries, generation))
        self.committing = True

    def _write(self, journal: Journal) -> None:
        entries = {name: entry.to_dict() for name, entry in journal.entries.items()}
        value = {"entries": entries, "generation": journal.generation}
        atomic.write_json(self.folder / JOURNAL, value)

    def clear(self) -> None:
        """Remove everything but the lock, which goes last."""
        with storage_errors(self.folder):
            for path in self.folder.iterdir():
                # A folder is not ours: it stays, and so does `.converting`.
                if not path.name.startswith(_LOCK) and (path.is_symlink() or not path.is_dir()):
                    atomic.remove(path)
            atomic.remove(self.folder / _LOCK, missing_ok=True)

    def distrust(self) -> None:
        """Let the next conversion write everything anew."""
        with suppress(OSError):
            atomic.rename(self.folder / JOURNAL, self.folder / _FAILED)

    def take_back(self) -> None:
        """Restore the disk as it was before this conversion."""
        with suppress(OSError, JasperError):
            if self._fresh:
                self.clear()
            else:
                for path in self._written:
                    atomic.remove(path, missing_ok=True)
                lost = {path.name for path in self._written}
                kept = {n: e for n, e in self._before.entries.items() if e.file not in lost}
                self._write(replace(self._before, entries=kept))
        for folder in self._made:
            with suppress(OSError):
                for path in folder.glob(".lock*"):
                    atomic.remove(path)
                atomic.remove_folder(folder)


def read_journal(store: Path) -> Journal:
    """The journal of an interrupted conversion; an empty one if there is none."""
    journal = _read(store / STAGING / JOURNAL)
    failed = _read(store / STAGING / _FAILED)
    generation = max(journal.generation, failed.generation)
    return Journal(journal.entries, generation, failed.entries)


def _read(path: Path) -> Journal:
    try:
        atomic.refuse_link(path.parent)
        value = atomic.read_json(path)
        return Journal(
            {n: Entry.from_dict(e, str(path)) for n, e in value["entries"].items()},
            int(value["generation"]),
        )
    except (JasperError, KeyError, AttributeError, TypeError, ValueError):
        return Journal({}, 0)


@contextmanager
def staging(store: Path) -> Iterator[Staging]:
    """Create the store's folder if needed, exclude other conversions, and prepare files.

    Raises `BusyError` naming the process that is converting into this folder. When the block fails,
    its files are removed; when it is interrupted, they stay for the next run.
    """
    folder = store / STAGING
    with storage_errors(folder):
        # Innermost first, the order in which they are removed.
        missing = [path for path in (folder, store, *store.parents) if not path.exists()]
        nearest = next(path for path in (store, *store.parents) if path not in missing)
        if not nearest.is_dir():
            raise ExistsError(f"{nearest}: is a file, but must be a folder; name another one.")
    try:
        with ExitStack() as held:
            _lock(folder, held)
            atomic.sweep(folder)
            fresh = all(path.name.startswith(_LOCK) for path in folder.iterdir())
            current = Staging(store, fresh=fresh)
            try:
                yield current
            except Exception:
                if current.committing:
                    current.distrust()
                else:
                    current.take_back()
                raise
            try:
                current.clear()
            except JasperError as error:
                _log.warning("%s: complete, but %s could not be removed: %s", store, STAGING, error)
    finally:
        # Fails, as intended, if the folder is not empty: files for the next run, or another lock.
        for path in {folder: None, **dict.fromkeys(missing)}:
            with suppress(OSError):
                atomic.remove_folder(path)


def _lock(folder: Path, held: ExitStack) -> None:
    """Make the folder and lock it. A conversion that ends may remove it between the two."""
    busy = "another conversion of this folder is running; wait until it ends, or end it"
    for left in reversed(range(_ATTEMPTS)):
        try:
            atomic.own_folder(folder, parents=True)
            held.enter_context(exclusive(folder / _LOCK, _LOCK_TIMEOUT_S, busy))
        except MissingFileError:
            if not left:
                raise
        else:
            return


def commit(
    stage: Staging,
    entries: dict[str, Entry],
    *,
    staged: Iterable[str],
    manifest: Manifest | None,
    change: Change | None,
    config: bytes | None,
) -> None:
    """Move everything from the staging folder to its place. Call with `publisher_lock` held.

    `staged` names the artifacts whose files move; `manifest`, `config` (the bytes of `config.json`)
    and `change` (of the negatives) are None if they stay the same. All writing is done before the
    first move, so only renames remain, which a full disk does not stop. If tables move, the
    manifest is removed first and written last, so an opener meanwhile gets an error about the
    conversion; otherwise it is replaced. After a kill the next run continues from the journal.
    """
    moved = [entries[name].file for name in staged]
    store, folder = stage.store, stage.folder
    if manifest is not None:
        atomic.write_json(stage.path(MANIFEST_FILE), manifest.to_dict())
    if config is not None:
        with atomic.replacing(stage.path(CONFIG_FILE)) as file:
            atomic.write_all(file, config)
    publishes = change is not None and change.publishes
    stage.seal(entries, change.pointer.generation if change and publishes else 0)

    with atomic.storage_errors(store):
        if manifest is not None and (moved or (config is not None and publishes)):
            atomic.remove(store / MANIFEST_FILE, missing_ok=True)
            atomic.sync_folder(store)
        for name in moved:
            atomic.rename(folder / name, store / name)
        if config is not None:
            atomic.rename(folder / CONFIG_FILE, store / CONFIG_FILE)
        atomic.sync_folder(store)
        if change is not None:
            change.commit(store, last=manifest is None)
        if manifest is not None:
            atomic.rename(folder / MANIFEST_FILE, store / MANIFEST_FILE)
            atomic.make_last(store / MANIFEST_FILE)
