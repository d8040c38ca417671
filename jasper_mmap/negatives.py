"""Generations of hard negatives: immutable files behind one pointer, `negatives/CURRENT.json`.

Writing one is: take the lock, write the file, sync it, rename it, replace the pointer, sync the
folder. The pointer is the commit: a publisher that dies before it has changed nothing that a
reader sees. Readers take no lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import atomic
from .errors import (
    ContentError,
    FormatError,
    MissingFileError,
    StoreChangedError,
    UnsafeFileError,
)
from .locks import exclusive, now, process_name
from .manifest import plain_name
from .schema import NEGATIVES
from .tensorfile import MappedFile, Written, chunks, file_sha256, map_tensors, writing

FOLDER = "negatives"
POINTER = "CURRENT.json"
_LOCK = ".lock"
HISTORY_LENGTH = 1000
"""Entries kept: the pointer is written and read whole each time. The entry of the generation last
made from `.pt` files stays beyond that, since `made_from_files` needs it."""
_FILE = re.compile(r"(\d{6,})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """The content of `CURRENT.json`: the generation in force and how it came about."""

    generation: int
    file: str
    bytes: int
    mtime_ns: int
    sha256: str
    store_id: str
    """The store whose pairs and sources the numbers refer to."""
    source: dict[str, Any]
    """Artifact -> stamp of the `.pt` file it was made from; empty where it came from tensors."""
    when: str
    by: str
    """The publishing process: pid@host."""
    note: str = ""
    lint: dict[str, int]
    """Counts of `lint.lint_negatives`."""
    changed_rows: int | None = None
    """Rows that differ from the generation before; None where that one could not be read."""
    history: tuple[dict[str, Any], ...] = ()
    """One short entry a generation, oldest first, the one in force last; see `HISTORY_LENGTH`."""

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str) -> Pointer:
        try:
            pointer = replace(cls(**value), history=tuple(value.get("history") or ()))
            numbers = [pointer.generation, *(entry["generation"] for entry in pointer.history)]
        except (TypeError, KeyError) as error:
            raise FormatError(f"{where}: not a generation pointer: {error}.") from None
        numbers += [pointer.bytes, pointer.mtime_ns]
        if not all(isinstance(n, int) for n in numbers) or pointer.generation < 1:
            raise FormatError(f"{where}: not a generation pointer: a number is none.")
        plain_name(pointer.file, where)
        return pointer

    def of(self, generation: int) -> Pointer:
        """As it was, but for its history, when an older `generation` was in force."""
        for entry in self.history:
            if entry["generation"] == generation:
                known = {k: v for k, v in entry.items() if k in vars(self)}
                return replace(self, **known, file=file_name(generation), mtime_ns=-1)
        raise MissingFileError(f"generation {generation} is not in the history of this store.")


def file_name(generation: int) -> str:
    """Name of a generation's file inside `negatives/`."""
    return f"{generation:06d}.safetensors"


def pointer_path(store: Path) -> Path:
    """The file whose replacement puts a generation in force."""
    return store / FOLDER / POINTER


def read_pointer(store: Path) -> Pointer:
    """The pointer of the store; raises `MissingFileError` or `FormatError`."""
    path = pointer_path(store)
    try:
        return Pointer.from_dict(atomic.read_json(path), str(path))
    except UnsafeFileError:
        raise
    except FormatError as error:
        raise FormatError(f"{error} Publish negatives again with jasper-mmap publish.") from None
    except MissingFileError:
        raise MissingFileError(
            f"{path} not found: the store has no hard negatives. Run jasper-convert again, or"
            " publish some with jasper-mmap publish."
        ) from None


def write_pointer(store: Path, pointer: Pointer) -> None:
    """Put `pointer` in force. Call with `publisher_lock` held."""
    atomic.write_json(pointer_path(store), asdict(pointer))


def successor(
    pointer: Pointer | None,
    generation: int,
    written: Written,
    *,
    store_id: str,
    source: dict[str, Any],
    lint: dict[str, int],
    note: str = "",
    changed_rows: int | None = None,
) -> Pointer:
    """The pointer that puts `generation`, whose file was `written`, in force after `pointer`."""
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
    return Pointer(
        **entry,  # type: ignore[arg-type]
        file=file_name(generation),
        mtime_ns=written.mtime_ns,
        store_id=store_id,
        history=_shortened((*(pointer.history if pointer else ()), entry)),
    )


def _shortened(history: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    made = next((e for e in reversed(history) if e.get("source")), None)
    dropped, kept = history[:-HISTORY_LENGTH], history[-HISTORY_LENGTH:]
    return (*(e for e in dropped if e is made), *kept)


def made_from_files(pointer: Pointer) -> dict[str, Any] | None:
    """The history's entry of the latest generation that was made from `.pt` files."""
    return next((e for e in reversed(pointer.history) if e.get("source")), None)


def with_source(pointer: Pointer, source: dict[str, Any]) -> Pointer:
    """The pointer after its `.pt` files got new stamps (were touched) without new content."""
    made = made_from_files(pointer)
    history = tuple({**e, "source": source} if e is made else e for e in pointer.history)
    in_force = made is not None and made["generation"] == pointer.generation
    return replace(pointer, history=history, source=source if in_force else pointer.source)


def generations_on_disk(store: Path) -> dict[int, Path]:
    """The files of generations, also of those whose publisher died; number -> path, ascending."""
    found = ((_FILE.fullmatch(path.name), path) for path in (store / FOLDER).iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def next_generation(store: Path, pointer: Pointer | None) -> int:
    """The first number that no generation ever had, not even one whose publisher died."""
    used = list(generations_on_disk(store))
    if pointer is not None:
        used.append(pointer.generation)
    return max(used, default=0) + 1


def write_generation(
    store: Path, generation: int, hard_negatives: torch.Tensor, negative_tiers: torch.Tensor
) -> Written:
    """Write the immutable file of `generation` from two [N_p,N] tensors, already checked."""
    return write_file(store / FOLDER / file_name(generation), hard_negatives, negative_tiers)


def write_file(path: Path, hard_negatives: torch.Tensor, negative_tiers: torch.Tensor) -> Written:
    """Write a generation's file anywhere; equal tensors give equal bytes."""
    tensors = dict(zip((a.name for a in NEGATIVES), (hard_negatives, negative_tiers), strict=True))
    # The wider dtype first, or the narrower one would leave it misaligned.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    specs = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in names}
    with writing(path, specs) as (writer, result):
        for name in names:
            for rows in chunks(tensors[name]):
                writer.write(rows)
    return result.written


def map_generation(
    store: Path, generation: int, shape: tuple[int, int], *, at: Path | None = None
) -> dict[str, torch.Tensor]:
    """Map the tensors of a published generation; only names, dtypes and shapes are checked.

    `at` names a descriptor of the file, where it is open already."""
    path = store / FOLDER / file_name(generation)
    return check_generation(map_tensors(path, at=at), path, shape)


def check_generation(
    mapped: MappedFile, path: Path, shape: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """The two tensors of `mapped`, or `ContentError` naming what does not fit the store."""
    wanted = {a.name for a in NEGATIVES}
    if set(mapped.tensors) != wanted:
        raise ContentError(f"{path}: must hold {sorted(wanted)}, found {sorted(mapped.tensors)}.")
    for name, tensor in mapped.tensors.items():
        if tuple(tensor.shape) != shape or tensor.dtype.is_floating_point:
            raise ContentError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, the store needs whole"
                f" numbers {list(shape)}."
            )
    return mapped.tensors


@contextmanager
def publisher_lock(store: Path, timeout_s: float) -> Iterator[None]:
    """Keep other publishers of this store out; `BusyError` names the holder after `timeout_s`."""
    folder = store / FOLDER
    with atomic.storage_errors(folder):
        folder.mkdir(exist_ok=True)
    remedy = "try again, or allow a longer lock_timeout_s"
    with exclusive(folder / _LOCK, timeout_s, remedy):
        atomic.sweep(folder)
        yield


def check_pointer(store: Path, pointer: Pointer, store_id: str, *, full: bool = False) -> None:
    """Raise unless the generation that `pointer` names is there and what it says it is.

    By its stamp; in full (SHA-256) where `full` or the stamp's time does not match.
    """
    path = store / FOLDER / pointer.file
    if pointer.store_id != store_id:
        raise StoreChangedError(
            f"{pointer_path(store)}: belongs to store {pointer.store_id}, this one is"
            f" {store_id}. Convert again, or open the dataset anew if it was converted meanwhile."
        )
    remedy = "publish the negatives again, or go back with jasper-mmap rollback"
    with atomic.storage_errors(path, "read"):
        status = path.stat()
    if status.st_size != pointer.bytes:
        raise FormatError(
            f"{path}: has {status.st_size} bytes, published were {pointer.bytes}; {remedy}."
        )
    if (full or status.st_mtime_ns != pointer.mtime_ns) and file_sha256(path) != pointer.sha256:
        raise FormatError(f"{path}: was altered after publishing (SHA-256 differs); {remedy}.")
