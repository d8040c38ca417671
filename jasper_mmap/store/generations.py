"""Reading one generation: its file is opened once and checked before use.

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
from .pointer import FOLDER, POINTER, Pointer, file_name, pointer_path
from .soundness import generation_errors
from .table_checks import check_form

_REMEDY: Final = "publish the negatives again, or run jasper-mmap rollback"


@dataclass(frozen=True)
class OpenGeneration:
    """A generation's file, held open, and the tables [N_p,N] mapped from that very file."""

    path: Path
    """Its name in errors."""
    file: Descriptor
    tables: dict[str, torch.Tensor]
    mtime_ns: int

    @property
    def descriptor(self) -> Path:
        """A name of the file that stays valid when `path` is replaced or removed."""
        return Path(f"/dev/fd/{self.file.fd}")


def sound_generation(
    store: Path,
    pointer: Pointer,
    store_id: str,
    sizes: Mapping[str, int],
    *,
    full: bool = False,
) -> OpenGeneration:
    """Return the generation that `pointer` names, checked against the pointer.

    Checks its stamp; with `full`, or if its time differs from the stamp, its content too
    (`content_errors`). `sizes` has the letters that the tables must match; if it is empty, because
    their store no longer exists, their values are not checked. Every reader of the current
    generation uses this function. Raises a `JasperError` that names the remedy.
    """
    opened = stamped_generation(store, pointer, store_id, sizes)
    if full or opened.mtime_ns != pointer.mtime_ns:
        for wrong in content_errors(opened, pointer, sizes):
            raise wrong
    return opened


def stamped_generation(
    store: Path, pointer: Pointer, store_id: str, sizes: Mapping[str, int]
) -> OpenGeneration:
    """Return the generation as `sound_generation` does, but check only store, size and form."""
    if pointer.store_id != store_id:
        raise StoreChangedError(
            f"{pointer_path(store)}: belongs to store {pointer.store_id:.80}, but this store is"
            f" {store_id}. If it was converted meanwhile, open the dataset again; else convert"
            " again."
        )
    path = store / FOLDER / pointer.file
    file = _opened(path)
    with storage_errors(path, "read"):
        n_bytes = os.fstat(file.fd).st_size
    if n_bytes != pointer.bytes:
        raise FormatError(
            f"{path}: has {n_bytes} bytes, but {pointer.bytes} were published; {_REMEDY}."
        )
    return _mapped(path, file, sizes)


def content_errors(
    opened: OpenGeneration, pointer: Pointer, sizes: Mapping[str, int], *, checksum: bool = True
) -> Iterator[JasperError]:
    """Yield the errors in the content of a generation: its SHA-256 and all values."""
    if checksum and file_sha256(opened.path, at=opened.descriptor) != pointer.sha256:
        yield FormatError(
            f"{opened.path}: was altered after publishing (SHA-256 differs); {_REMEDY}."
        )
    for wrong in generation_errors(opened.tables, sizes, opened.path) if sizes else ():
        yield type(wrong)(f"{wrong} Or {_REMEDY}.")


def history_errors(store: Path, pointer: Pointer) -> Iterator[JasperError]:
    """Yield the differences between the pointer and its own entry in the history."""
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
                f"{what} has {key} {known!r:.80} for generation {number}, but the pointer has"
                f" {stated!r:.80}; {_REMEDY}."
            )


def map_generation(
    store: Path, number: int, sizes: Mapping[str, int], *, at: Path | None = None
) -> OpenGeneration:
    """Map the generation `number`, which another process has checked; check only its form.

    `at` names a descriptor of the file, if one is open.
    """
    path = store / FOLDER / file_name(number)
    return _mapped(path, _opened(path, at), sizes)


def _opened(path: Path, at: Path | None = None) -> Descriptor:
    try:
        with storage_errors(path, "read"):
            return Descriptor(regular_descriptor(path, at=at))
    except MissingFileError:
        raise MissingFileError(
            f"{path} not found, but {POINTER} names it: it was removed, or not copied. Copy it"
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
