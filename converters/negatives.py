"""The hard negatives of a conversion: a new generation, or the current one carried over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jasper_mmap.negatives.candidate import Candidate, examine
from jasper_mmap.negatives.publish import changed_rows, readable_pointer
from jasper_mmap.negatives.write import Change, Staged, next_generation, successor, with_source
from jasper_mmap.rules.schema import NEGATIVES
from jasper_mmap.store.generations import stamped_generation
from jasper_mmap.store.manifest import Manifest
from jasper_mmap.store.pointer import (
    MAX_GENERATION,
    POINTER,
    Pointer,
    made_from_files,
    read_pointer,
)

from .plan import sound_pointer
from .source import read_table
from .staging import Staging


def candidate_of(
    src: Path,
    source: dict[str, Any],
    pair_index: torch.Tensor,
    sizes: Mapping[str, int],
    *,
    allow_equal: bool,
) -> Candidate:
    """Read and check the builder's negatives in `src`; `source` has their stamps."""
    tables = {a.name: read_table(src / a.source) for a in NEGATIVES}
    where = {a.name: str(src / a.source) for a in NEGATIVES}
    lint = examine(tables, where, pair_index, sizes, allow_equal=allow_equal)
    return Candidate(tables=tables, source=source, lint=lint, files=tuple(where.values()))


def settle(
    stage: Staging,
    candidate: Candidate | None,
    staged: Staged | None,
    *,
    force: bool,
    old: Manifest | None,
    store_id: str,
    pair_index: torch.Tensor,
    sizes: Mapping[str, int],
) -> tuple[Pointer, Change | None]:
    """Return the pointer after the conversion and the change to commit, in the staging folder.

    Call with `publisher_lock` held. `staged` is the candidate's file, `old` the manifest before.

    A candidate makes a new generation unless its content is that of the generation last made from
    files (with `force`: of the current one), or its values are those of the current one. A
    generation that stays current is checked against the new store if the store changed, or if its
    time differs from its stamp.
    """
    dst, at = stage.store, stage.path(POINTER)
    before = readable_pointer(dst)
    sound = None if stage.journal.failed else sound_pointer(dst, old)
    equal = False
    if candidate and staged and (sound is None or _is_news(staged, sound, force)):
        id_then = sound.store_id if sound else ""
        changed = changed_rows(dst, sound, id_then, sizes, candidate.tables)
        equal = changed == 0 and not force  # of another dtype, or published from elsewhere before
        if not equal:
            number = next_generation(dst, before)
            reserved = stage.journal.generation  # the number of an interrupted conversion
            if (before.generation if before else 0) < reserved <= MAX_GENERATION:
                number = reserved  # no pointer ever named it, so no reader has seen its file
            pointer = successor(
                before,
                number,
                staged.written,
                store_id=store_id,
                source=candidate.source,
                lint=candidate.lint,
                files=candidate.files,
                rows=sizes["N_p"],
                changed_rows=changed,
            )
            return pointer, Change.written(pointer, at, staged)
    pointer = sound or read_pointer(dst)
    if candidate is not None:
        pointer = with_source(pointer, candidate.source, of_current=equal)
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
    return pointer, None if pointer == before else Change.written(pointer, at)


def _is_news(staged: Staged, pointer: Pointer, force: bool) -> bool:
    made = made_from_files(pointer)
    known = pointer.sha256 if force or made is None else made["sha256"]
    return bool(staged.written.sha256 != known)


def _origin(path: Path, pointer: Pointer, file: str) -> str:
    if pointer.source:
        return f"{path} (made from {file})"
    return f"{path} (jasper-convert --force publishes the builder's own {file} instead)"
