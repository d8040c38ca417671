"""The hard negatives of a conversion: a new generation, or the one in force carried over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jasper_mmap.errors import JasperError
from jasper_mmap.files.safetensors import Written
from jasper_mmap.negatives.candidate import examine
from jasper_mmap.negatives.publish import lost_or_read
from jasper_mmap.negatives.write import next_generation, successor, with_source, write_file
from jasper_mmap.rules.schema import NEGATIVES
from jasper_mmap.store.generations import stamped_generation
from jasper_mmap.store.lint import count_changed_rows
from jasper_mmap.store.manifest import Manifest
from jasper_mmap.store.pointer import MAX_GENERATION, Pointer, made_from_files, read_pointer

from .plan import sound_pointer
from .source import read_table

STAGED_FILE = "negatives.safetensors"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checked generation in the staging folder, which has no number yet."""

    tables: dict[str, torch.Tensor]
    written: Written
    source: dict[str, Any]
    """The stamps of the `.pt` files."""
    lint: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The pointer that is to be in force after the commit."""

    pointer: Pointer
    publishes: bool
    """The candidate becomes `pointer.generation`."""
    changed: bool
    """`CURRENT.json` has to be replaced."""


def stage_candidate(
    src: Path,
    path: Path,
    source: dict[str, Any],
    pair_index: torch.Tensor,
    sizes: Mapping[str, int],
    *,
    allow_equal: bool,
) -> Candidate:
    """Check the builder's negatives and write them to `path`; `source` are their stamps."""
    tables = {a.name: read_table(src / a.source) for a in NEGATIVES}
    where = {a.name: str(src / a.source) for a in NEGATIVES}
    lint = examine(tables, where, pair_index, sizes, allow_equal=allow_equal)
    written = write_file(path, **tables)
    return Candidate(tables=tables, written=written, source=source, lint=lint)


def settle(
    dst: Path,
    candidate: Candidate | None,
    *,
    force: bool,
    old: Manifest | None,
    reserved: int,
    store_id: str,
    pair_index: torch.Tensor,
    sizes: Mapping[str, int],
) -> Outcome:
    """Decide what will be in force. Call with `publisher_lock` held.

    A candidate whose content is that of the generation last made from files (with `force`: of the
    one in force) is no news. One that is kept in force for a changed store, or whose time is not
    the stamped one, is checked against the new store. `old` is the manifest of the store before,
    `reserved` is the number under which an interrupted conversion was publishing, or 0.
    """
    before = lost_or_read(dst)
    sound = sound_pointer(dst, old)
    if candidate is not None and (sound is None or _is_news(candidate, sound, force)):
        number = next_generation(dst, before)
        if (before.generation if before else 0) < reserved <= MAX_GENERATION:
            number = reserved  # nobody has seen that file: no pointer ever named it
        pointer = successor(
            before,
            number,
            candidate.written,
            store_id=store_id,
            source=candidate.source,
            lint=candidate.lint,
            changed_rows=_changed_rows(dst, sound, candidate, sizes),
        )
        return Outcome(pointer=pointer, publishes=True, changed=True)
    pointer = sound or read_pointer(dst)
    if candidate is not None:
        pointer = with_source(pointer, candidate.source)
    kept = stamped_generation(dst, pointer, pointer.store_id, sizes)
    if pointer.store_id != store_id or pointer.mtime_ns != kept.mtime_ns:
        lint = examine(
            kept.tables,
            {a.name: _origin(kept.path, pointer, a.source) for a in NEGATIVES},
            pair_index,
            sizes,
            allow_equal=True,  # it was published as it is
        )
        pointer = replace(pointer, store_id=store_id, lint=lint)
    return Outcome(pointer=pointer, publishes=False, changed=pointer != before)


def _is_news(candidate: Candidate, pointer: Pointer, force: bool) -> bool:
    made = made_from_files(pointer)
    known = pointer.sha256 if force or made is None else made["sha256"]
    return bool(candidate.written.sha256 != known)


def _changed_rows(
    dst: Path, sound: Pointer | None, candidate: Candidate, sizes: Mapping[str, int]
) -> int | None:
    if sound is None:
        return None
    try:
        old = stamped_generation(dst, sound, sound.store_id, sizes)
    except JasperError:
        return None  # of another shape: the store has other pairs now
    return count_changed_rows(old.tables, candidate.tables)


def _origin(path: Path, pointer: Pointer, file: str) -> str:
    if pointer.source:
        return f"{path} (made from {file})"
    return f"{path} (jasper-convert --force publishes the builder's own {file} instead)"
