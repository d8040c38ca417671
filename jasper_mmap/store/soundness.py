"""Checks that a store's files still hold what was converted.

Used at open if the time of a file differs from its stamp, and in full by `validate="full"` and
`verify`. The functions read mapped tensors and yield errors, so the caller may raise the first or
collect them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..errors import ConfigError, ContentError, FormatError, IndexRangeError, JasperError
from ..files.safetensors import chunks, file_sha256
from ..rules.config import CONFIG_FILE, Config
from ..rules.schema import NEGATIVES, STORED, Artifact
from .manifest import Entry, Manifest
from .table_checks import TableCheck, check_form, check_offsets
from .tables import Ragged, Table, table_tensor

_REMEDY = "Convert again, or copy it again."


def form_errors(folder: Path, config: Config, manifest: Manifest) -> Iterator[JasperError]:
    """Yield the contradictions between the shapes in the manifest and `config.json`."""
    sizes = {"D": config.embedding_dim, "N": config.n_neg}
    questions = manifest.artifacts["question_embs"].shape
    if len(questions) == 2 and questions[1] != config.embedding_dim:
        sizes["D"] = dim = questions[1]
        yield ConfigError(
            f"{folder / CONFIG_FILE}: 'embedding_dim' is {config.embedding_dim}, but the tables of"
            f" the store have {dim} columns; correct it."
        )
    for artifact in STORED:
        entry = manifest.artifacts[artifact.name]
        shape = entry.shape[:1] if artifact.kind == "ragged" else entry.shape
        try:
            check_form(artifact, entry.torch_dtype, shape, sizes, str(folder / entry.file))
        except JasperError as error:
            yield error


def table_errors(
    folder: Path, artifact: Artifact, manifest: Manifest, table: Table, *, quick: bool
) -> Iterator[JasperError]:
    """Yield the errors in one mapped table of a store.

    With `quick` only integers are checked (bounds and recorded ranges); otherwise floats and the
    checksum of the file too.
    """
    entry = manifest.artifacts[artifact.name]
    path, values = folder / entry.file, table_tensor(table)
    offsets = table.offsets if isinstance(table, Ragged) else None
    counts = manifest.beyond_float32
    beyond = None if counts is None else counts.get(artifact.name, 0)
    if offsets is not None:
        try:
            check_offsets(offsets, len(values), str(path))
        except JasperError as error:
            yield error
            offsets = None
    if not (quick and artifact.kind == "float"):
        check = TableCheck(
            artifact,
            manifest.sizes,
            str(path),
            offsets=offsets,
            allow_nonfinite=entry.nonfinite > 0,
            allow_beyond=beyond != 0,
        )
        try:
            _feed(check, values)
        except JasperError as error:
            yield error
        else:
            yield from _changes(artifact, entry, path, check, beyond)
    if not quick and file_sha256(path) != entry.sha256:
        yield FormatError(
            f"{path}: its SHA-256 differs from the manifest, so it was altered or damaged."
            f" {_REMEDY}"
        )


def _feed(check: TableCheck, values: torch.Tensor) -> None:
    for rows in chunks(values):
        check.feed(rows)


def uncounted_beyond(
    folder: Path, artifact: Artifact, manifest: Manifest, table: Table
) -> JasperError | None:
    """The error of the first value that is infinite as float32, if the converter of the store did
    not count such values."""
    values = table_tensor(table)
    counted = manifest.beyond_float32 is not None
    if counted or values.dtype != torch.float64 or artifact.low is not None:
        return None
    path = folder / manifest.artifacts[artifact.name].file
    try:
        _feed(TableCheck(artifact, {}, str(path), allow_nonfinite=True), values)
    except ContentError as error:
        return error
    return None


def _changes(
    artifact: Artifact, entry: Entry, path: Path, check: TableCheck, beyond: int | None
) -> Iterator[JasperError]:
    if check.ranges != entry.ranges:
        yield IndexRangeError(
            f"{path}: {artifact.name} holds {_spans(check.ranges)}, but held {_spans(entry.ranges)}"
            f" when it was converted, so it was altered. {_REMEDY}"
        )
    if check.nonfinite != entry.nonfinite:
        yield FormatError(
            f"{path}: {artifact.name} holds {check.nonfinite} NaN or infinite values, but held"
            f" {entry.nonfinite} when it was converted, so it was altered. {_REMEDY}"
        )
    if beyond is not None and check.beyond_float32 != beyond:
        yield FormatError(
            f"{path}: {artifact.name} holds {check.beyond_float32} values that are infinite as"
            f" float32, but held {beyond} when it was converted, so it was altered. {_REMEDY}"
        )


def _spans(ranges: tuple[tuple[float, float], ...]) -> str:
    return ", ".join(f"{low:.9g} to {high:.9g}" for low, high in ranges) or "nothing"


def generation_errors(
    tables: Mapping[str, torch.Tensor], sizes: Mapping[str, int], path: Path
) -> Iterator[JasperError]:
    """Yield the errors in the values of a generation's tables, mapped from `path`."""
    for artifact in NEGATIVES:
        try:
            _feed(TableCheck(artifact, sizes, str(path)), tables[artifact.name])
        except JasperError as error:
            yield error
