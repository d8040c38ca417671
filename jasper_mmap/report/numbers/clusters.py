"""The clusters: how many pairs each has, and where centroids and sources lie in a plane.

Shape letters as in `schema`; `m` sources that were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ...files.safetensors import chunks
from ...files.torch_modes import plain_tensors
from ...rules.integers import as_int64
from ...rules.permutation import permute
from ...store.folder import Store
from ...store.tables import table_tensor

CELLS: Final = 16
"""Cells of the map along each side."""
_MOST: Final = 20_000
"""Sources on the map."""
_WIDE: Final = 1024
"""Of wider rows only so many sources decide the plane: the time grows with the cube of both."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Sizes of the clusters, and a map: the plane of the first two principal components of the
    sources."""

    pairs: tuple[int, ...]
    """[N_c]"""
    centroids: tuple[tuple[float, float] | None, ...]
    """[N_c] Places on the map; None for one that is not finite."""
    sources: int
    """Sources on the map."""
    of: int
    variance: float
    """The share of the sources' variance that lies in the plane, 0 to 1."""
    x: tuple[float, float]
    """The range of the map."""
    y: tuple[float, float]
    density: tuple[tuple[int, ...], ...]
    """Sources by cell, rows from the lowest y."""


@plain_tensors
def clusters_of(store: Store, seed: int) -> Clusters:
    """Return the clusters of a store. Of many sources 20,000 are drawn."""
    tables = {name: table_tensor(table) for name, table in store.tables.items()}
    sources, centroids = tables["source_embs"], tables["centroid_embs"]
    numbers = permute(
        np.arange(min(_MOST, len(sources)), dtype=np.int64), len(sources), "report", seed
    )
    drawn = _float64(sources[torch.from_numpy(np.sort(numbers))])
    drawn = drawn[np.isfinite(drawn).all(1)]
    middle = drawn.mean(0) if len(drawn) else np.zeros(sources.shape[1])
    plane, variance = _plane(drawn - middle)
    points = (drawn - middle) @ plane.T
    with np.errstate(invalid="ignore"):
        places = (_float64(centroids) - middle) @ plane.T
    sound = np.isfinite(places[:, 0]) & np.isfinite(places[:, 1])
    x, y = (_range(np.concatenate((points[:, a], places[sound, a]))) for a in (0, 1))
    density, _, _ = np.histogram2d(points[:, 1], points[:, 0], CELLS, (y, x))
    return Clusters(
        pairs=tuple(_sizes(tables["pair_cluster_id"], len(centroids)).tolist()),
        centroids=tuple(
            (float(a), float(b)) if ok else None for (a, b), ok in zip(places, sound, strict=True)
        ),
        sources=len(points),
        of=len(sources),
        variance=variance,
        x=x,
        y=y,
        density=tuple(tuple(map(int, row)) for row in density),
    )


def _float64(rows: torch.Tensor) -> Floats:
    values: Floats = rows.to(torch.float32).to(torch.float64).numpy()
    return values


def _plane(rows: Floats) -> tuple[Floats, float]:
    """The first two principal components [2,D] of centred rows [m,D], and their share of the
    variance. A component that the rows lack is zero."""
    plane = np.zeros((2, rows.shape[1]))
    if rows.shape[1] > _WIDE:
        rows = rows[:_WIDE]
    total = float((rows**2).sum())
    if not np.isfinite(total) or total == 0.0:
        return plane, 0.0
    rows = rows / np.sqrt(total)
    wide = rows.shape[1] > len(rows)
    values, vectors = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    share = 0.0
    for place, at in enumerate(range(len(values) - 1, max(-1, len(values) - 3), -1)):
        if values[at] <= 1e-12:
            break
        component = rows.T @ vectors[:, at] if wide else vectors[:, at]
        component = component / np.linalg.norm(component)
        # Of the two directions the one whose largest number is positive: always the same.
        plane[place] = component * np.sign(component[np.abs(component).argmax()])
        share += float(values[at])
    return plane, min(share, 1.0)


def _range(values: Floats) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _sizes(cluster_of: torch.Tensor, n: int) -> NDArray[np.int64]:
    sizes = np.zeros(n, np.int64)
    for piece in chunks(cluster_of):
        sizes += np.bincount(as_int64(piece).numpy(), minlength=n)
    return sizes
