"""Rows of a table of embeddings that stand in it twice, by their bytes or almost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..files.safetensors import chunks, flat_bytes
from .cosines import Advance, Rooms, pieces, silent

SAME_COSINE: Final = 0.9999
"""From this cosine on, two rows count as the same content."""
_EXAMPLES: Final = 10
_WORD: Final = 8
_COMPARED: Final = 1024
_BLOCK: Final = 1024
_SLACK: Final = 1e-4


@dataclass(frozen=True)
class Repeats:
    """Rows that equal an earlier one."""

    count: int
    examples: tuple[tuple[int, int], ...]
    """(earlier row, row) of the first."""

    @classmethod
    def of(cls, earlier: NDArray[np.int64], rows: NDArray[np.int64]) -> Repeats:
        """Those of `rows` and the `earlier` row of each, in ascending order of rows."""
        pairs = zip(earlier[:_EXAMPLES].tolist(), rows[:_EXAMPLES].tolist(), strict=True)
        return cls(len(rows), tuple(pairs))


def equal_rows(table: torch.Tensor, advance: Advance = silent, name: str = "") -> Repeats:
    """Find the rows whose bytes equal those of an earlier row.

    A row is compared with the first one of the same 64-bit hash.
    """
    hashes = [np.zeros(0, np.int64)]
    for piece in chunks(table):
        hashes.append(_hashes(_words(piece)))
        advance(name, piece.nbytes)
    every = np.concatenate(hashes)
    _, first, group = np.unique(every, return_index=True, return_inverse=True)
    earlier = first[group]
    (rows,) = np.nonzero(earlier != np.arange(len(every)))
    same = np.zeros(len(rows), np.bool_)
    for begin in range(0, len(rows), _COMPARED):
        part = slice(begin, begin + _COMPARED)
        a, b = (_words(table[torch.from_numpy(r[part])]) for r in (rows, earlier[rows]))
        same[part] = (a == b).all(1)
    rows = rows[same]
    return Repeats.of(earlier[rows], rows)


def near_rows(
    table: torch.Tensor, scales: torch.Tensor, advance: Advance = silent, name: str = ""
) -> Repeats:
    """Find the rows whose cosine with an earlier row is at least `SAME_COSINE`.

    `scales` [rows] makes products cosines. Compares every row with every earlier one, block by
    block: the time is quadratic in the number of rows.
    """
    n = len(table)
    best, nearest = np.full(n, -np.inf, np.float32), np.zeros(n, np.int64)
    for begin in range(0, n, _BLOCK):
        later = _units(table, scales, begin)
        rows = slice(begin, begin + len(later))
        for start in range(0, begin + 1, _BLOCK):
            # By numpy, since torch multiplies less precisely where a program asks it to.
            products = later @ _units(table, scales, start).T
            if start == begin:
                products[np.triu_indices(len(later))] = -np.inf
            np.nan_to_num(products, copy=False, nan=-np.inf)
            at = products.argmax(1)
            cosines = products[np.arange(len(later)), at]
            nearer = cosines > best[rows]
            best[rows][nearer] = cosines[nearer]
            nearest[rows][nearer] = at[nearer] + start
            advance(name, len(later) * min(_BLOCK, begin + 1 - start))
    (rows_near,) = np.nonzero(best >= SAME_COSINE - _SLACK)
    pairs = torch.from_numpy(np.stack((nearest[rows_near], rows_near)))
    exact = cosines_of(table, scales, pairs[0], pairs[1]).numpy() >= SAME_COSINE
    return Repeats.of(nearest[rows_near][exact], rows_near[exact])


def near_rows_work(n: int) -> int:
    """What `near_rows` advances by in total."""
    return sum(
        min(_BLOCK, n - begin) * min(_BLOCK, begin + 1 - start)
        for begin in range(0, n, _BLOCK)
        for start in range(0, begin + 1, _BLOCK)
    )


def cosines_of(
    table: torch.Tensor, scales: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """Return the cosines [n], float64, of rows `a` and `b` (int64 [n]) of one table."""
    rooms = Rooms(torch.float64)
    parts = [torch.empty(0, dtype=torch.float64, device="cpu")]
    for some, others in zip(pieces(a, _COMPARED), pieces(b, _COMPARED), strict=True):
        rows = rooms.rows("a", table, some)
        products = rows.mul_(rooms.rows("b", table, others)).sum(1)
        parts.append(products * scales[some] * scales[others])
    return torch.cat(parts)


def _units(table: torch.Tensor, scales: torch.Tensor, begin: int) -> NDArray[np.float32]:
    rows = table[begin : begin + _BLOCK].to(torch.float32)
    unit: NDArray[np.float32] = (
        (rows.to(torch.float64) * scales[begin : begin + _BLOCK].unsqueeze(1))
        .to(torch.float32)
        .numpy()
    )
    return unit


def _words(rows: torch.Tensor) -> NDArray[np.int64]:
    """The bytes of rows [n,...] as [n, words], filled up with zeros."""
    data = flat_bytes(rows).numpy().reshape(len(rows), -1)
    if left := -data.shape[1] % _WORD:
        data = np.pad(data, ((0, 0), (0, left)))
    words: NDArray[np.int64] = np.ascontiguousarray(data).view(np.int64)
    return words


def _hashes(words: NDArray[np.int64]) -> NDArray[np.int64]:
    bounds = np.iinfo(np.int64)
    weights = np.random.default_rng(0).integers(bounds.min, bounds.max, words.shape[1])
    hashed: NDArray[np.int64] = words @ (weights | 1)  # modulo 2**64
    return hashed
