"""Writing one artifact's file: streamed by rows, checked and measured on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from jasper_mmap.errors import ContentError, IndexRangeError
from jasper_mmap.files.safetensors import DTYPE_NAMES, Written, writing
from jasper_mmap.rules.schema import EMBEDDING_DTYPES
from jasper_mmap.store.checks import TableCheck
from jasper_mmap.store.manifest import Entry

from .narrow import Narrowing
from .source import Source

Advance = Callable[[int], None]
"""Told the number of bytes just written."""


def stored_dtype(source: Source, embeddings_dtype: str | None) -> torch.dtype:
    """The dtype in which the artifact is stored."""
    dtype = source.checked.dtype
    if embeddings_dtype is None or not source.artifact.narrow:
        return dtype
    wanted = EMBEDDING_DTYPES[embeddings_dtype]
    return wanted if wanted.itemsize < dtype.itemsize else dtype


def write_artifact(
    source: Source,
    path: Path,
    stamp: dict[str, Any],
    sizes: Mapping[str, int],
    *,
    dtype: torch.dtype,
    allow_nonfinite: bool,
    advance: Advance,
) -> tuple[Entry, int]:
    """Write `source` to `path` with its values as `dtype`; the entry that vouches for the file,
    and the count of values that are infinite as float32.

    `sizes` has the letters of the tables it refers to. Anonymous memory: a few chunks, whatever
    the size. Raises `ContentError` or `IndexRangeError` naming file, row, column and value.
    """
    artifact, checked = source.artifact, source.checked
    narrowing = None
    if dtype != checked.dtype:
        narrowing = Narrowing(artifact.name, source.where, dtype, checked.shape[0])
    check = TableCheck(
        artifact,
        sizes,
        source.where,
        offsets=source.offsets,
        allow_nonfinite=allow_nonfinite,
        allow_beyond=allow_nonfinite or narrowing is not None,  # which refuses them itself
    )
    specs = {
        name: (dtype if part is checked else part.dtype, part.shape)
        for name, part in source.parts.items()
    }
    with writing(path, specs) as (writer, result):
        for part in source.parts.values():
            pieces = part.chunks()
            try:
                for rows in pieces:
                    stored = rows
                    if part is checked:
                        check.feed(rows)
                        stored = narrowing.narrowed(rows) if narrowing else rows
                    writer.write(stored)
                    advance(stored.nbytes)
            except (ContentError, IndexRangeError):
                for _ in pieces:
                    pass  # to its end, where a damaged file says so: that is the better answer
                raise
    entry = Entry(
        file=artifact.file,
        dtype=DTYPE_NAMES[dtype],
        shape=source.entry_shape,
        **_written(result.written),
        source=stamp,
        ranges=check.ranges,
        nonfinite=check.nonfinite,
        cosine_error=narrowing.cosine_error if narrowing else None,
    )
    return entry, check.beyond_float32


def _written(written: Written) -> dict[str, Any]:
    return {"bytes": written.bytes, "sha256": written.sha256, "mtime_ns": written.mtime_ns}
