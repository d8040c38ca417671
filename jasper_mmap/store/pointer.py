"""The pointer `negatives/CURRENT.json`: the current generation of hard negatives and its history.

Reading it takes no lock; only `negatives.write` writes it.
"""

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
"""The largest number: a control word holds it together with a descriptor."""
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
    "who": (str,),
    "files": (list,),
    "rows": (int,),
}
"""Key of a pointer, or of an entry of its history -> the allowed types of its value. The last three
are in entries only, where version 0.1.0 ignores them."""
_KIND_NAMES: Final = {
    int: "an integer",
    str: "a string",
    dict: "an object",
    list: "a list",
    NoneType: "null",
}

_log = logging.getLogger("jasper_mmap")
_named: set[Path] = set()
"""Files beyond `MAX_GENERATION` that this process has warned about."""


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """The content of `CURRENT.json`: the current generation and its history."""

    generation: int
    file: str
    bytes: int
    mtime_ns: int
    sha256: str
    store_id: str
    """The id of the store whose pairs and sources the numbers refer to."""
    source: dict[str, Any]
    """Artifact -> stamp of the `.pt` file it was made from; empty if it was made from tensors."""
    when: str
    by: str
    """The publishing process: pid@host."""
    note: str = ""
    lint: dict[str, int]
    """Counts of `lint.count_unsuitable`."""
    changed_rows: int | None = None
    """Rows that differ from the previous generation; None if that could not be read."""
    history: tuple[dict[str, Any], ...] = ()
    """A short entry for each generation, the current one last; see `write.HISTORY_LENGTH`.

    Since version 0.2.0 it also has `who` published it (user@host), the `files` it was made from
    (each with the name of its folder), and the number of `rows` [N_p].
    """

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str) -> Pointer:
        """Parse `value`, read from `where`. Raises `FormatError` or `UnsafeFileError`."""
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
        """Return the pointer as of an older `generation`, but with the history of this one."""
        if generation == self.generation:
            return self
        for entry in self.history:
            if entry["generation"] == generation:
                known = {k: v for k, v in entry.items() if k in vars(self)}
                return replace(self, **known, file=file_name(generation), mtime_ns=-1)
        raise MissingFileError(f"generation {generation} is not in the history of this store.")

    def reverted(self, generation: int) -> bool:
        """Return whether `generation` was rolled back from: after it came the content of an older
        one."""
        shas = {entry["generation"]: entry.get("sha256") for entry in self.history}
        older = {sha for number, sha in shas.items() if number < generation}
        older -= {None, shas.get(generation)}
        return any(number > generation and sha in older for number, sha in shas.items())


def _check_entry(entry: Any, what: str) -> None:
    """Raise `FormatError` unless `entry` has a generation and values of the right types."""
    if not isinstance(entry, Mapping):
        raise FormatError(f"{what}: every entry must be an object.")
    for key, kinds in _KINDS.items():
        # Not isinstance, for which True is an integer.
        if key in entry and type(entry[key]) not in kinds:
            names = " or ".join(_KIND_NAMES[kind] for kind in kinds)
            raise FormatError(f"{what}: {key!r} must be {names}, found {entry[key]!r:.40}.")
    if not all(type(count) is int for count in entry.get("lint", {}).values()):
        raise FormatError(f"{what}: the counts in 'lint' must be integers.")
    if not all(type(file) is str for file in entry.get("files", ())):
        raise FormatError(f"{what}: the paths in 'files' must be strings.")
    if not 1 <= entry.get("generation", 0) <= MAX_GENERATION:
        raise FormatError(
            f"{what}: 'generation' must be 1 to {MAX_GENERATION}, found"
            f" {entry.get('generation')!r:.40}."
        )


def file_name(generation: int) -> str:
    """The name of a generation's file inside `negatives/`."""
    return f"{generation:06d}.safetensors"


def pointer_path(store: Path) -> Path:
    """The path of the pointer; replacing this file makes another generation current."""
    return store / FOLDER / POINTER


def read_pointer(store: Path) -> Pointer:
    """Read and check the pointer of a store; raises `MissingFileError` or `FormatError`."""
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
    """The history's entry of the latest generation made from the builder's `.pt` files, if any."""
    return next((e for e in reversed(pointer.history) if e.get("source")), None)


def generations_on_disk(store: Path) -> dict[int, Path]:
    """Generation -> its file, ascending; also of generations whose publisher died.

    A file beyond `MAX_GENERATION` is ignored, with one warning.
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
                    "%s: ignored, since the largest generation is %d; remove the file.",
                    path,
                    MAX_GENERATION,
                )
        elif number and path.name == file_name(number):
            numbered[number] = path
    return dict(sorted(numbered.items()))
