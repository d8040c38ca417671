"""Reading one generation: its file opened once, and what is checked of it before it is used.

Shape letters as in `schema`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from ..errors import ContentError, FormatError, JasperError, MissingFileError, StoreChangedError
from ..files.atomic import storage_errors
from ..files.regular_files import regular_descriptor
from ..files.safetensors import few, file_sha256, map_tensors
from ..files.shared_memory import Descriptor
from ..rules.schema import NEGATIVES
from .checks import check_form
from .pointer import FOLDER, POINTER, Pointer, file_name, pointer_path
from .soundness import generation_errors

_REMEDY: Final = "publish the negatives again, or go back with jasper-mmap rollback"


@dataclass(frozen=True)
class OpenGeneration:
    """A generation's file, held open, and the tables [N_p,N] mapped from that very file."""

    path: Path
    """What errors call it."""
    file: Descriptor
    tables: dict[str, torch.Tensor]
    mtime_ns: int

    @property
    def descriptor(self) -> Path:
        """A name of the file that stays right when `path` is replaced or removed."""
        return Path(f"/dev/fd/{self.file.fd}")


def sound_generation(
    store: Path,
    pointer: Pointer,
    store_id: str,
    sizes: Mapping[str, int],
    *,
    full: bool = False,
) -> OpenGeneration:
    """The generation that `pointer` names, once it is what the pointer says.

    By its stamp; in full (`content_errors`) where `full`, or where its time is not the stamped
    one. `sizes` has the letters that the tables must fit; where it is empty, because the store they
    were made for is gone, their numbers are not looked at. Every reader of the generation in force
    comes through here. Raises a `JasperError` that names the remedy.
    """
    opened = stamped_generation(store, pointer, store_id, sizes)
    if full or opened.mtime_ns != pointer.mtime_ns:
        for wrong in content_errors(opened, pointer, sizes):
            raise wrong
    return opened


def stamped_generation(
    store: Path, pointer: Pointer, store_id: str, sizes: Mapping[str, int]
) -> OpenGeneration:
    """As `sound_generation`, but whatever its time, only store, size and form are checked."""
    if pointer.store_id != store_id:
        raise StoreChangedError(
            f"{pointer_path(store)}: belongs to store {pointer.store_id:.80}, this one is"
            f" {store_id}. Convert again, or open the dataset anew if it was converted meanwhile."
        )
    path = store / FOLDER / pointer.file
    file = _opened(path)
    with storage_errors(path, "read"):
        n_bytes = os.fstat(file.fd).st_size
    if n_bytes != pointer.bytes:
        raise FormatError(
            f"{path}: has {n_bytes} bytes, published were {pointer.bytes}; {_REMEDY}."
        )
    return _mapped(path, file, sizes)


def content_errors(
    opened: OpenGeneration, pointer: Pointer, sizes: Mapping[str, int], *, checksum: bool = True
) -> Iterator[JasperError]:
    """What is wrong with the bytes of a generation: its SHA-256, every number in it."""
    if checksum and file_sha256(opened.path, at=opened.descriptor) != pointer.sha256:
        yield FormatError(
            f"{opened.path}: was altered after publishing (SHA-256 differs); {_REMEDY}."
        )
    for wrong in generation_errors(opened.tables, sizes, opened.path) if sizes else ():
        yield type(wrong)(f"{wrong} Or {_REMEDY}.")


def history_errors(store: Path, pointer: Pointer) -> Iterator[JasperError]:
    """Where the history says something else of the generation in force than the pointer does."""
    what = f"{pointer_path(store)}: its history"
    number = pointer.generation
    entry = next((e for e in reversed(pointer.history) if e["generation"] == number), None)
    if entry is None:
        yield FormatError(f"{what} has no entry for generation {number}; {_REMEDY}.")
        return
    for key in ("bytes", "sha256"):
        stated, known = vars(pointer)[key], entry.get(key)
        if known != stated:
            yield FormatError(
                f"{what} has {key} {known!r:.80} for generation {number}, but {stated!r:.80} is in"
                f" force;"
                f" {_REMEDY}."
            )


def map_generation(
    store: Path, number: int, sizes: Mapping[str, int], *, at: Path | None = None
) -> OpenGeneration:
    """The generation `number`, which another process has checked; only its form is looked at.

    `at` names a descriptor of the file, where one is open already.
    """
    path = store / FOLDER / file_name(number)
    return _mapped(path, _opened(path, at), sizes)


def _opened(path: Path, at: Path | None = None) -> Descriptor:
    try:
        with storage_errors(path, "read"):
            return Descriptor(regular_descriptor(path, at=at))
    except MissingFileError:
        raise MissingFileError(
            f"{path} not found, though {POINTER} names it: it was removed, or not copied. Copy it"
            f" there, or {_REMEDY}."
        ) from None


def _mapped(path: Path, file: Descriptor, sizes: Mapping[str, int]) -> OpenGeneration:
    mapped = map_tensors(path, at=Path(f"/dev/fd/{file.fd}"))
    names = {a.name for a in NEGATIVES}
    if set(mapped.tensors) != names:
        raise ContentError(
            f"{path}: must hold {' and '.join(sorted(names))}, found {few(mapped.tensors)};"
            f" {_REMEDY}."
        )
    known = dict(sizes)
    for artifact in NEGATIVES:
        table = mapped.tensors[artifact.name]
        check_form(artifact, table.dtype, tuple(table.shape), known, str(path))
    return OpenGeneration(path, file, mapped.tensors, mapped.mtime_ns)
