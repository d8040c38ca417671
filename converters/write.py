"""Writing one artifact: streamed by rows, checked, and narrowed if requested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jasper_mmap.errors import ContentError, IndexRangeError
from jasper_mmap.files.safetensors import DTYPE_NAMES, Written, writing
from jasper_mmap.rules.schema import EMBEDDING_DTYPES
from jasper_mmap.store.manifest import Entry
from jasper_mmap.store.table_checks import TableCheck

from .source import Source, cosine_distance

_SAMPLED_ROWS = 1_000_000
"""Quantiles of larger tables use an even sample of at most this many rows."""
_PIECE_VALUES = 1 << 17


class Narrowing:
    """Converts the rows of a table [n_rows,D], fed in order, and measures the cosine error."""

    def __init__(self, name: str, where: str, dtype: torch.dtype, n_rows: int) -> None:
        self._name = name
        self._where = where
        self._dtype = dtype
        self._every = max(1, -(-n_rows // _SAMPLED_ROWS))
        # Allocated at once: small pieces between the freed buffers would fragment the heap.
        self._sample = np.zeros(-(-n_rows // self._every))
        self._max = 0.0
        self._row = 0

    def narrowed(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the next rows in the narrower dtype; raise `ContentError` on overflow."""
        result = rows.to(self._dtype)
        low, high = torch.aminmax(result)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            self._check_overflow(rows, result)
        # In small pieces: float64 copies of a whole chunk would dominate the memory.
        piece = max(1, _PIECE_VALUES // rows.shape[1])
        for begin in range(0, len(rows), piece):
            self._measure(rows[begin : begin + piece], result[begin : begin + piece])
        return result

    def _measure(self, before: torch.Tensor, after: torch.Tensor) -> None:
        error = cosine_distance(before, after)
        # Rows without a direction have no error: the zero vector, or an allowed NaN or Inf.
        error[(before == 0).all(1) | ~torch.isfinite(before).all(1)] = 0.0
        self._max = max(self._max, float(error.max()))
        first = -(-self._row // self._every)
        chosen = error[first * self._every - self._row :: self._every].numpy()
        self._sample[first : first + len(chosen)] = chosen
        self._row += len(before)

    @property
    def cosine_error(self) -> dict[str, float]:
        """p50, p99 and max over the rows of 1 - cos(row, narrowed row), computed in float64."""
        if not len(self._sample):
            return {"p50": 0.0, "p99": 0.0, "max": 0.0}
        p50, p99 = np.quantile(self._sample, (0.5, 0.99)).tolist()
        return {"p50": p50, "p99": p99, "max": self._max}

    def _check_overflow(self, rows: torch.Tensor, result: torch.Tensor) -> None:
        grown = torch.isfinite(rows) & ~torch.isfinite(result)
        if grown.any():
            row, column = grown.nonzero()[0].tolist()
            raise ContentError(
                f"{self._where}: {self._name} holds {rows[row, column].item():.9g} in row"
                f" {self._row + row}, column {column}, too large for"
                f" {str(self._dtype).removeprefix('torch.')}. Convert with another --dtype"
                " (embeddings_dtype), or without."
            )


Advance = Callable[[int], None]
"""Called with the number of bytes just written."""


def stored_dtype(source: Source, embeddings_dtype: str | None) -> torch.dtype:
    """Return the dtype in which the artifact is stored."""
    dtype = source.checked.dtype
    if embeddings_dtype is None or not source.artifact.narrow:
        return dtype
    narrow = EMBEDDING_DTYPES[embeddings_dtype]
    return narrow if narrow.itemsize < dtype.itemsize else dtype


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
    """Write `source` to `path` with its values as `dtype`; return the file's entry and the count of
    values that are infinite as float32.

    `sizes` has the letters of the tables it refers to. Uses memory for a few chunks. Raises
    `ContentError` or `IndexRangeError` naming file, row, column and value.
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
                    pass  # to the end: the checksum error of a damaged file is the better message
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
