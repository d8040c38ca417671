"""Storing a table in a narrower dtype, and what that costs."""

from __future__ import annotations

import numpy as np
import torch

from jasper_mmap.errors import ContentError

from .derive import cosine_distance

_SAMPLED_ROWS = 1_000_000
"""Quantiles of larger tables are taken over an even sample of at most this many rows."""
_PIECE_VALUES = 1 << 17


class Narrowing:
    """Converts the rows of a table [n_rows,D], fed in order, and measures the cosine error."""

    def __init__(self, name: str, where: str, dtype: torch.dtype, n_rows: int) -> None:
        self._name = name
        self._where = where
        self._dtype = dtype
        self._every = max(1, -(-n_rows // _SAMPLED_ROWS))
        # Made at once: pieces kept one by one would pin the heap between the freed buffers.
        self._sample = np.zeros(-(-n_rows // self._every))
        self._max = 0.0
        self._row = 0

    def narrowed(self, rows: torch.Tensor) -> torch.Tensor:
        """The next rows in the narrower dtype; raises `ContentError` where a value overflows."""
        result = rows.to(self._dtype)
        low, high = torch.aminmax(result)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            self._check_overflow(rows, result)
        # In small pieces: float64 copies of a whole chunk would be the most memory of all.
        piece = max(1, _PIECE_VALUES // rows.shape[1])
        for begin in range(0, len(rows), piece):
            self._measure(rows[begin : begin + piece], result[begin : begin + piece])
        return result

    def _measure(self, before: torch.Tensor, after: torch.Tensor) -> None:
        error = cosine_distance(before, after)
        # A row without direction has none to lose: the zero vector, or an allowed NaN or Inf.
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
