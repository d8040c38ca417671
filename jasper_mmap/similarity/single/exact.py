"""A few rows of a table in float64: their unit vectors, norms and cosines.

Shape letters as in `schema`; n and m are numbers of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Vectors:
    """Vectors by direction and length. The direction of a zero vector is 0, so that its cosine with
    everything is 0; that of a vector with NaN or infinity is NaN."""

    units: Floats
    """[n,D]"""
    norms: Floats
    """[n]"""

    @classmethod
    def of(cls, values: Floats) -> Vectors:
        """The vectors of some rows [n,D]."""
        norms = np.sqrt(np.square(values).sum(axis=1))
        with np.errstate(invalid="ignore"):  # infinity by infinity is NaN
            return cls(values / np.where(norms == 0, 1.0, norms)[:, None], norms)

    def cosines(self, others: Vectors) -> Floats:
        """The cosine [n,m] of each with each of `others`."""
        return np.clip(self.units @ others.units.T, -1.0, 1.0)


def rows_of(table: torch.Tensor, rows: ArrayLike) -> Floats:
    """Return some `rows` [n] of a floating-point `table` [.,D] as float64 [n,D].

    They are those that batches serve: a value beyond float32 is infinite.
    """
    index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    served = table.index_select(0, index).to(torch.float32).numpy()
    return served.astype(np.float64)


def vectors_of(table: torch.Tensor, rows: ArrayLike) -> Vectors:
    """Return some `rows` [n] of a floating-point `table` [.,D] as `Vectors`."""
    return Vectors.of(rows_of(table, rows))


def number(value: float) -> float | None:
    """A value for JSON, which has no NaN and no infinity: None for these."""
    return float(value) if np.isfinite(value) else None
