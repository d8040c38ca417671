"""The pointer `negatives/CURRENT.json`: which generation of hard negatives is in force, and how it
came about. Reading it takes no lock; only `negatives.write` writes it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Final

from ..errors import FormatError, MissingFileError, UnsafeFileError
from ..files import atomic
from .manifest import plain_name, wrong_keys

FOLDER = "negatives"
POINTER = "CURRENT.json"
MAX_GENERATION: Final = 10**12 - 1
"""The largest number; one control word holds it together with a descriptor."""
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
        """As it was, but for its history, when an older `generation` was in force; or itself."""
        if generation == self.generation:
            return self
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


def made_from_files(pointer: Pointer) -> dict[str, Any] | None:
    """The history's entry of the latest generation that was made from `.pt` files."""
    return next((e for e in reversed(pointer.history) if e.get("source")), None)


def generations_on_disk(store: Path) -> dict[int, Path]:
    """The files of generations, also of those whose publisher died; number -> path, ascending.

    A file beyond `MAX_GENERATION` is nobody's generation: it is ignored, with one warning.
    """
    numbered = {}
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
            numbered[number] = path
    return dict(sorted(numbered.items()))
