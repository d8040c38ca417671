"""Writing generations of hard negatives: immutable files behind one pointer.

The steps are: take the lock, write the file, sync it, rename it, replace the pointer, sync the
folder. Replacing the pointer is the commit: until then, readers see no change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ..errors import StorageError
from ..files import atomic
from ..files.jsonfile import MOST_BYTES
from ..files.locks import exclusive, now, process_name, user_name
from ..files.safetensors import Written, chunks, writing
from ..rules.schema import NEGATIVES
from ..similarity.reports.summary import KEY
from ..store.pointer import (
    FOLDER,
    MAX_GENERATION,
    Pointer,
    file_name,
    generations_on_disk,
    made_from_files,
    pointer_path,
)

_LOCK = ".lock"
HISTORY_LENGTH = 1000
"""Limit of the entries, since the pointer is always read and written as a whole. The entry of the
generation last made from `.pt` files is kept beyond it, since `made_from_files` needs it."""


@dataclass(frozen=True)
class Staged:
    """A generation's file, complete and on disk under a temporary name."""

    path: Path
    written: Written


def write_staged(path: Path, tables: Mapping[str, torch.Tensor]) -> Staged:
    """Write a generation's two checked tensors [N_p,N]; equal tensors give equal bytes."""
    # The wider dtype first, since the narrower one could leave it misaligned.
    names = sorted((a.name for a in NEGATIVES), key=lambda name: -tables[name].element_size())
    specs = {name: (tables[name].dtype, tuple(tables[name].shape)) for name in names}
    with writing(path, specs) as (writer, result):
        for name in names:
            for rows in chunks(tables[name]):
                writer.write(rows)
    return Staged(path, result.written)


@dataclass(frozen=True)
class Change:
    """A new pointer and its generation, prepared on disk: committing them only renames."""

    pointer: Pointer
    at: Path
    """Where the pointer was written."""
    staged: Staged | None = None
    """The file of `pointer.generation`, if that is new."""

    @property
    def publishes(self) -> bool:
        """Whether the generation is new, not only its pointer."""
        return self.staged is not None

    @classmethod
    def written(cls, pointer: Pointer, at: Path, staged: Staged | None = None) -> Change:
        """Write the pointer to `at`, a path that no reader uses."""
        atomic.write_json(at, asdict(pointer))
        return cls(pointer, at, staged)

    def commit(self, store: Path, *, last: bool = True) -> None:
        """Move the generation to its place, then the pointer; every change is committed here.

        Call with `publisher_lock` held. A kill in between leaves the previous generation current.
        Raises `DurabilityError` if the pointer is in its place, but its folder cannot be synced;
        not if something that readers need is still to come (`last` is false).
        """
        folder = store / FOLDER
        with atomic.storage_errors(pointer_path(store)):
            if self.staged is not None:
                atomic.rename(self.staged.path, folder / self.pointer.file)
                atomic.sync_folder(folder)
            atomic.rename(self.at, pointer_path(store))
            if last:
                atomic.make_last(pointer_path(store))
            else:
                atomic.sync_folder(folder)


def write_pointer(store: Path, pointer: Pointer) -> None:
    """Replace the pointer of the current generation. Call with `publisher_lock` held."""
    atomic.write_json(pointer_path(store), asdict(pointer))


def make_pointer_last(store: Path) -> None:
    """Sync the folder of the pointer, for an answer that what is current is what was asked for.

    Who wrote it may have died before its sync, or been refused it (`DurabilityError`, as here).
    """
    with atomic.storage_errors(pointer_path(store)):
        atomic.make_last(pointer_path(store))


def successor(
    pointer: Pointer | None,
    generation: int,
    written: Written,
    *,
    store_id: str,
    source: dict[str, Any],
    lint: dict[str, int],
    files: Sequence[str],
    rows: int,
    note: str = "",
    changed_rows: int | None = None,
    similarity: Mapping[str, float] | None = None,
) -> Pointer:
    """Return the pointer that follows `pointer` and names `generation`, whose file is `written`.

    `files` are the paths that its `rows` were read from, if any, and `similarity` is the summary of
    its lint.
    """
    entry = {
        "generation": generation,
        "when": now(),
        "by": process_name(),
        "note": note,
        "lint": lint,
        "changed_rows": changed_rows,
        "bytes": written.bytes,
        "sha256": written.sha256,
        "source": source,
    }
    # Not whole paths: a store may go to others, whom the folders of this machine do not concern.
    names = ["/".join(Path(file).parts[-2:]) for file in files]
    only_in_history: dict[str, Any] = {"who": user_name(), "files": names, "rows": rows}
    if similarity:
        only_in_history[KEY] = dict(similarity)
    return Pointer(
        **entry,  # type: ignore[arg-type]
        file=file_name(generation),
        mtime_ns=written.mtime_ns,
        store_id=store_id,
        history=_shortened((*(pointer.history if pointer else ()), entry | only_in_history)),
    )


def _shortened(history: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    made = next((e for e in reversed(history) if e.get("source")), None)
    sizes = accumulate(len(json.dumps(e, indent=2)) for e in reversed(history))
    fitting = sum(size <= MOST_BYTES // 4 for size in sizes)  # where notes are long
    length = min(HISTORY_LENGTH, max(1, fitting))
    dropped, kept = history[:-length], history[-length:]
    return (*(e for e in dropped if e is made), *kept)


def with_source(pointer: Pointer, source: dict[str, Any], *, of_current: bool = False) -> Pointer:
    """Return the pointer with new stamps of its `.pt` files, whose content is the same.

    That is the content of the generation last made from files, or `of_current`, the current one.
    """
    made = made_from_files(pointer)
    if of_current:
        current = [e for e in pointer.history if e["generation"] == pointer.generation]
        made = current[-1] if current else None
    history = tuple({**e, "source": source} if e is made else e for e in pointer.history)
    is_current = made is not None and made["generation"] == pointer.generation
    return replace(pointer, history=history, source=source if is_current else pointer.source)


def next_generation(store: Path, pointer: Pointer | None) -> int:
    """Return the first unused number; numbers of publishers that died count as used.

    Raises `StorageError` beyond `MAX_GENERATION`.
    """
    used = [0]
    if atomic.exists(store / FOLDER):  # a dry run does not make it
        used += generations_on_disk(store)
    if pointer is not None:
        used += [pointer.generation, *(entry["generation"] for entry in pointer.history)]
    if max(used) >= MAX_GENERATION:
        raise StorageError(
            f"{store / FOLDER}: generation {max(used)} is the largest possible number. Convert the"
            " builder's folder into a new folder, where numbers start at 1 again."
        )
    return max(used) + 1


@contextmanager
def publisher_lock(store: Path, timeout_s: float) -> Iterator[None]:
    """Exclude other publishers of this store; `BusyError` names the holder after `timeout_s`."""
    folder = store / FOLDER
    atomic.own_folder(folder)
    remedy = "try again, or allow a longer lock_timeout_s"
    with exclusive(folder / _LOCK, timeout_s, remedy):
        atomic.sweep(folder)
        yield
