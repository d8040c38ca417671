"""The plan of a conversion, made from stamps alone, without reading tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jasper_mmap.errors import (
    AccessError,
    JasperError,
    MissingFileError,
    NewerFormatError,
    StorageError,
    together,
)
from jasper_mmap.files.atomic import storage_errors
from jasper_mmap.files.stamp import Stamp
from jasper_mmap.rules.names import SOURCE
from jasper_mmap.rules.schema import ARTIFACTS, EMBEDDING_DTYPES, NEGATIVES, STORED, Artifact
from jasper_mmap.store.generations import sound_generation
from jasper_mmap.store.manifest import STAGING, Entry, Manifest, narrowed_to, read_manifest
from jasper_mmap.store.pointer import Pointer, made_from_files, read_pointer

from .source import derived_stamp, stamp
from .staging import Journal


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to convert."""

    embeddings_dtype: str | None = None
    """The dtype to which wider embeddings and steering are narrowed; SOURCE restores the dtypes of
    the source, None repeats the previous choice."""
    allow_nonfinite: bool = False
    allow_equal: bool = False
    """Accept negatives and tiers of equal values."""
    force: bool = False
    """Write everything again, regardless of stamps."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One artifact, and whether its file must be written."""

    artifact: Artifact
    source: dict[str, Any]
    """The stamp of the `.pt` file, or of those it is computed from."""
    derived: bool
    entry: Entry | None
    """The entry of a file that already has this content; None if it must be written."""
    staged: bool = False
    """That file is still in the staging folder."""
    beyond: int | None = None
    """Count of that file's values that are infinite as float32; None if not counted."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The tasks in the order of `ARTIFACTS`, the negatives' stamps, and the existing store."""

    tasks: tuple[Task, ...]
    negatives_source: dict[str, Any]
    old: Manifest | None
    pointer: Pointer | None
    """None if there is no generation, or if the current one is damaged or not trusted."""
    embeddings_dtype: str | None
    """The dtype to which embeddings and steering are narrowed, if any."""
    force: bool

    @property
    def new_negatives(self) -> bool:
        """Whether their files were written since a generation was last made from them."""
        if self.pointer is None or self.force:
            return True
        made = made_from_files(self.pointer)
        return made is None or made["source"] != self.negatives_source

    @property
    def complete(self) -> bool:
        """Whether the store's files are up to date, except `config.json` and the manifest."""
        return (
            self.old is not None
            and self.pointer is not None
            and self.pointer.store_id == self.old.store_id
            and not self.new_negatives
            and all(t.entry is not None and not t.staged for t in self.tasks)
        )


def make_plan(src: Path, dst: Path, settings: Settings, journal: Journal) -> Plan:
    """Compare the builder's folder with the store and with the files of an interrupted run.

    Raises `MissingFileError` naming the missing `.pt` files.
    """
    check_files(src)
    old = _old_manifest(dst, force=settings.force)
    asked = settings.embeddings_dtype
    known = [*journal.entries.values(), *journal.failed.values()]
    before = old.narrowed_to if old else narrowed_to(known)
    embeddings_dtype = None if asked == SOURCE else asked or before
    tasks = []
    for artifact in STORED:
        derived = artifact.derived and not (src / artifact.source).exists()
        source = task_stamp(artifact, derived, src)
        task = Task(artifact=artifact, source=source, derived=derived, entry=None)
        places = []
        if old and not journal.failed:
            places = [(old.artifacts[artifact.name], dst, old.beyond_float32)]
        if artifact.name in journal.entries:
            left = journal.entries[artifact.name]
            places += [(left, dst, None), (left, dst / STAGING, None)]
        for entry, folder, counts in places:
            beyond = _beyond(artifact, entry, counts)
            if (
                not settings.force
                and (settings.allow_nonfinite or not (entry.nonfinite or beyond))
                and _has_dtype(artifact, entry, embeddings_dtype, asked)
                and _serves(entry, folder, task)
            ):
                task = replace(task, entry=entry, staged=folder != dst, beyond=beyond)
                break
        tasks.append(task)
    return Plan(
        tasks=tuple(tasks),
        negatives_source=negatives_stamps(src),
        old=old,
        pointer=None if journal.failed else sound_pointer(dst, old),
        embeddings_dtype=embeddings_dtype,
        force=settings.force,
    )


def task_stamp(artifact: Artifact, derived: bool, src: Path) -> dict[str, Any]:
    """The `Entry.source` of an artifact made from files in `src`."""
    return derived_stamp(src) if derived else stamp(artifact, src)


def negatives_stamps(src: Path) -> dict[str, Any]:
    """The `Pointer.source` of the negatives' files in `src`."""
    return {a.name: stamp(a, src) for a in NEGATIVES}


def check_files(src: Path) -> None:
    """Raise one `MissingFileError` for all missing `.pt` files."""
    with storage_errors(src, "read"):
        there = {path.name for path in src.iterdir()}
    missing = []
    for artifact in ARTIFACTS.values():
        if artifact.source in there or artifact.derived:
            continue
        path = src / artifact.source
        what = f"Split file not found: {path}" if artifact.split else f"{path} not found"
        missing.append(MissingFileError(f"{what}. Let the builder write it, or copy it there."))
    if missing:
        raise together(missing)


def _old_manifest(dst: Path, *, force: bool) -> Manifest | None:
    # A store whose manifest is missing or damaged is written again; but not one of a newer version
    # (without `force`), nor one that cannot be read now and may be sound.
    try:
        return read_manifest(dst)
    except NewerFormatError as error:
        if force:
            return None
        raise NewerFormatError(f"{error} Or rewrite it in the older format with --force.") from None
    except (AccessError, StorageError):
        raise
    except JasperError:
        return None


def sound_pointer(dst: Path, old: Manifest | None) -> Pointer | None:
    """Return the pointer if its generation is sound, else None; its numbers are checked against
    `old`, the store's manifest, if they refer to that store."""
    try:
        pointer = read_pointer(dst)
        sizes = old.sizes if old and old.store_id == pointer.store_id else {}
        sound_generation(dst, pointer, pointer.store_id, sizes)
    except JasperError:
        return None
    return pointer


def _serves(entry: Entry, folder: Path, task: Task) -> bool:
    if entry.source != task.source:
        return False
    try:
        stamp = Stamp.of(folder / entry.file)
    except JasperError:
        return False
    return (stamp.bytes, stamp.mtime_ns) == (entry.bytes, entry.mtime_ns)


def _has_dtype(artifact: Artifact, entry: Entry, dtype_name: str | None, asked: str | None) -> bool:
    if not artifact.narrow:
        # Version 0.1.0 may have narrowed it. Keep that unless a dtype is given: a new file changes
        # the store's id, which ends running trainings.
        return entry.cosine_error is None or asked is None
    dtype = EMBEDDING_DTYPES[dtype_name] if dtype_name else None
    if entry.cosine_error is not None:  # it was stored narrower
        return entry.torch_dtype == dtype
    return dtype is None or entry.torch_dtype.itemsize <= dtype.itemsize


def _beyond(artifact: Artifact, entry: Entry, counts: Mapping[str, int] | None) -> int | None:
    if counts is None and entry.torch_dtype == torch.float64:
        return None
    return (counts or {}).get(artifact.name, 0)
