"""Generations of hard negatives: immutable files behind one pointer, `negatives/CURRENT.json`.

Writing one is: take the lock, write the file, sync it, rename it, replace the pointer, sync the
folder. The pointer is the commit: a publisher that dies before it has changed nothing that a
reader sees. Readers take no lock.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from types import NoneType
from typing import Any, Final

import torch

from ..errors import FormatError, MissingFileError, StorageError, UnsafeFileError
from ..files import atomic
from ..files.jsonfile import MOST_BYTES
from ..files.locks import exclusive, now, process_name
from ..files.tensorfile import Written, chunks, writing
from ..rules.schema import NEGATIVES
from .manifest import plain_name, wrong_keys

FOLDER = "negatives"
POINTER = "CURRENT.json"
_LOCK = ".lock"
MAX_GENERATION: Final = 10**12 - 1
"""The largest number; one control word holds it together with a descriptor."""
HISTORY_LENGTH = 1000
"""Entries kept: the pointer is written and read whole each time. The entry of the generation last
made from `.pt` files stays beyond that, since `made_from_files` needs it."""
_FILE = re.compile(r"([0-9]{6,})\.safetensors")
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "generation": (int,),
    "file": (str,),
    "bytes": (int,),
    "mtime_ns": (int,),
    "sha256": (str,),
    "store_id": (str,),
    "source": (dict,),
    "when": (str,),
    "by": (str,),
    "note": (str,),
    "lint": (dict,),
    "changed_rows": (int, NoneType),
}
"""Key of a pointer, or of an entry of its history -> what JSON may hold there."""
_KIND_NAMES: Final = {int: "an integer", str: "a string", dict: "an object", NoneType: "null"}

_log = logging.getLogger("jasper_mmap")
_named: set[Path] = set()
"""Files beyond `MAX_GENERATION` that this process has warned of."""


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
        """Check `value`, read from `where`. Raises `FormatError` or `UnsafeFileError`."""
        what = f"{where}: not a generation pointer"
        if wrong := wrong_keys(cls, value):
            raise FormatError(f"{what}: {wrong}.")
        if not isinstance(value.get("history"), list | tuple | None):
            raise FormatError(f"{what}: 'history' must be a list.")
        pointer = replace(cls(**value), history=tuple(value.get("history") or ()))
        _check_entry(value, what)
        for entry in pointer.history:
            _check_entry(entry, f"{what}: history")
        plain_name(pointer.file, where)
        if pointer.file != file_name(pointer.generation):
            raise FormatError(
                f"{what}: 'file' is {pointer.file!r:.80}, but the file of generation"
                f" {pointer.generation} is {file_name(pointer.generation)!r}."
            )
        return pointer

    def of(self, generation: int) -> Pointer:
        """As it was, but for its history, when an older `generation` was in force."""
        for entry in self.history:
            if entry["generation"] == generation:
                known = {k: v for k, v in entry.items() if k in vars(self)}
                return replace(self, **known, file=file_name(generation), mtime_ns=-1)
        raise MissingFileError(f"generation {generation} is not in the history of this store.")


def _check_entry(entry: Any, what: str) -> None:
    """Raise `FormatError` unless `entry` has a generation, and JSON's right kind in each key."""
    if not isinstance(entry, Mapping):
        raise FormatError(f"{what}: every entry must be an object.")
    for key, kinds in _KINDS.items():
        # By the type itself: True is an integer otherwise.
        if key in entry and type(entry[key]) not in kinds:
            names = " or ".join(_KIND_NAMES[kind] for kind in kinds)
            raise FormatError(f"{what}: {key!r} must be {names}, found {entry[key]!r:.40}.")
    if not all(type(count) is int for count in entry.get("lint", {}).values()):
        raise FormatError(f"{what}: the counts in 'lint' must be integers.")
    if not 1 <= entry.get("generation", 0) <= MAX_GENERATION:
        raise FormatError(
            f"{what}: 'generation' must be 1 to {MAX_GENERATION}, found"
            f" {entry.get('generation')!r:.40}."
        )


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
    sizes = accumulate(len(json.dumps(e, indent=2)) for e in reversed(history))
    fitting = sum(size <= MOST_BYTES // 4 for size in sizes)  # where notes are long
    length = min(HISTORY_LENGTH, max(1, fitting))
    dropped, kept = history[:-length], history[-length:]
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
    """The files of generations, also of those whose publisher died; number -> path, ascending.

    A file beyond `MAX_GENERATION` is nobody's generation: it is ignored, with one warning.
    """
    found = {}
    with atomic.storage_errors(store / FOLDER, "read"):
        paths = list((store / FOLDER).iterdir())
    for path in paths:
        match = _FILE.fullmatch(path.name)
        number = int(match[1]) if match else 0
        if number > MAX_GENERATION:
            if path not in _named:
                _named.add(path)
                _log.warning(
                    "%s: ignored, generations end at %d; remove the file.", path, MAX_GENERATION
                )
        elif number and path.name == file_name(number):
            found[number] = path
    return dict(sorted(found.items()))


def next_generation(store: Path, pointer: Pointer | None) -> int:
    """The first number that no generation ever had, not even one whose publisher died.

    Raises `StorageError` where there is none up to `MAX_GENERATION`.
    """
    used = [*generations_on_disk(store), 0]
    if pointer is not None:
        used += [pointer.generation, *(entry["generation"] for entry in pointer.history)]
    if max(used) >= MAX_GENERATION:
        raise StorageError(
            f"{store / FOLDER}: generation {max(used)} is the last number there is. Convert the"
            " builder's folder into a new one, where generations begin with 1 again."
        )
    return max(used) + 1


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


@contextmanager
def publisher_lock(store: Path, timeout_s: float) -> Iterator[None]:
    """Keep other publishers of this store out; `BusyError` names the holder after `timeout_s`."""
    folder = store / FOLDER
    atomic.own_folder(folder)
    remedy = "try again, or allow a longer lock_timeout_s"
    with exclusive(folder / _LOCK, timeout_s, remedy):
        atomic.sweep(folder)
        yield
