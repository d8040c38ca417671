"""The converter's input: each artifact as parts that are streamed by rows.

`centroid_distances` is computed if the builder omitted it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from jasper_mmap.errors import ContentError, ContentTypeError
from jasper_mmap.files.pt.reader import Seal, open_pt, read_pt
from jasper_mmap.files.safetensors import CHUNK_BYTES, chunks
from jasper_mmap.files.stamp import Stamp
from jasper_mmap.rules.integers import as_int64
from jasper_mmap.rules.schema import ARTIFACTS, RAGGED_OFFSETS, RAGGED_VALUES, Artifact

_ROOM: Final = 1 << 20
_ROOM_OF_A_PAIR: Final = 1 << 12
"""Limit per pair, beside `_ROOM`, of the bytes of a list of lists in its file and of its ids.

A small file may be large in memory."""
_SHARED: Final = 16
"""Limit of ids per byte of the file: an id takes two bytes, but rows may share one list."""


@dataclass(frozen=True)
class Part:
    """One tensor of an artifact's file; its rows are read on demand."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[torch.Tensor]]

    @classmethod
    def of(cls, table: torch.Tensor, seal: Seal | None = None) -> Part:
        """The rows of `table`; with a `seal`, the file's checksum is verified after the last."""

        def pieces() -> Iterator[torch.Tensor]:
            return seal.checked(chunks(table)) if seal else chunks(table)

        return cls(table.dtype, tuple(table.shape), pieces)

    @property
    def bytes(self) -> int:
        """Bytes of the part's data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Source:
    """One artifact: the parts of its file in order, the checked one first."""

    artifact: Artifact
    where: str
    """Its name in errors: the `.pt` file, or what it is computed from."""
    parts: Mapping[str, Part]
    shape: tuple[int, ...]
    """Of a ragged list (rows,), as for `checks.check_form`."""
    offsets: torch.Tensor | None = None

    @property
    def checked(self) -> Part:
        """The part whose values are checked."""
        return next(iter(self.parts.values()))

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """The shape in a manifest's entry: of a ragged list (rows, values)."""
        return self.shape if self.offsets is None else (*self.shape, *self.checked.shape)


def open_source(artifact: Artifact, folder: Path) -> Source:
    """Open the artifact's `.pt` file; raises `FormatError` or `ContentTypeError`."""
    path = folder / artifact.source
    if artifact.kind == "ragged":
        pair_index = open_table(folder / ARTIFACTS["pair_index"].source)[0]
        values, offsets = read_ragged(path, pair_index.shape[0] if pair_index.dim() else 0)
        return Source(
            artifact=artifact,
            where=str(path),
            parts={RAGGED_VALUES: Part.of(values), RAGGED_OFFSETS: Part.of(offsets)},
            shape=(len(offsets) - 1,),
            offsets=offsets,
        )
    table, seal = open_table(path)
    return Source(
        artifact=artifact,
        where=str(path),
        parts={artifact.name: Part.of(table, seal)},
        shape=tuple(table.shape),
    )


def open_table(path: Path) -> tuple[torch.Tensor, Seal | None]:
    """Open the tensor in a `.pt` file: mapped if the format allows it, and not read yet."""
    value, seal = open_pt(path)
    if not isinstance(value, torch.Tensor):
        raise ContentTypeError(
            f"{path}: holds a {type(value).__name__}, not a tensor; save the bare tensor with"
            " torch.save."
        )
    return value, seal


def read_table(path: Path) -> torch.Tensor:
    """Open the tensor in a `.pt` file and verify its checksum."""
    table, seal = open_table(path)
    if seal is not None:
        seal.check()
    return table


def read_ragged(path: Path, n_pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the list of lists in a `.pt` file as int64 values [nnz] and offsets [rows + 1].

    Its cost is bounded by the number of pairs and the size of the file; raises `FormatError` or
    `ContentError` naming the limit.
    """
    room = n_pairs * _ROOM_OF_A_PAIR
    rows: Any = read_pt(path, most_pickled=_ROOM + room)
    remedy = "save a plain list of lists of ints with torch.save"
    if not isinstance(rows, list | tuple):
        raise ContentTypeError(f"{path}: holds a {type(rows).__name__}; {remedy}.")
    if not set(map(type, rows)) <= {list, tuple}:
        row = next(i for i, r in enumerate(rows) if type(r) not in (list, tuple))
        raise ContentTypeError(
            f"{path}: row {row} is a {type(rows[row]).__name__}, not a list; {remedy}."
        )
    count, limit = sum(map(len, rows)), _ROOM + min(room, _SHARED * Stamp.of(path).bytes)
    if count > limit:
        raise ContentError(
            f"{path}: its {len(rows)} rows hold {count} ids, many in lists that rows share; the"
            f" limit for {n_pairs} pairs and this file size is {limit}. Correct the lists."
        )
    if not set(map(type, chain.from_iterable(rows))) <= {int}:
        row, element = _first_element(rows, lambda value: type(value) is not int)
        raise ContentTypeError(
            f"{path}: row {row}, element {element} is {_shown(rows[row][element])}, not an int;"
            f" {remedy}."
        )
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    try:
        values = np.fromiter(chain.from_iterable(rows), np.int64, int(offsets[-1]))
    except OverflowError:
        row, element = _first_element(rows, lambda value: not -(2**63) <= value < 2**63)
        raise ContentError(
            f"{path}: row {row}, element {element} is {rows[row][element]!r:.40}, beyond int64."
            " Correct the file and run it again."
        ) from None
    return torch.from_numpy(values), torch.from_numpy(offsets)


def _shown(value: Any) -> str:
    """A short form of a value; of a container only its type, since its text may be huge."""
    if isinstance(value, str):
        return repr(value[:80])
    plain = value is None or isinstance(value, float)
    return repr(value) if plain or type(value) is bool else f"a {type(value).__name__}"


def _first_element(rows: Any, wrong: Callable[[Any], bool]) -> tuple[int, int]:
    return next((i, j) for i, row in enumerate(rows) for j, v in enumerate(row) if wrong(v))


def stamp(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """The `Entry.source` of an artifact's `.pt` file."""
    return Stamp.of(folder / artifact.source).to_dict()


_INPUTS: Final = tuple(
    ARTIFACTS[name] for name in ("question_embs", "centroid_embs", "pair_index", "pair_cluster_id")
)


def derived_stamp(folder: Path) -> dict[str, Any]:
    """The `Entry.source` of a table computed from those of `folder`."""
    return {"derived_from": [stamp(a, folder) for a in _INPUTS]}


def derive(artifact: Artifact, folder: Path) -> Source:
    """Compute `centroid_distances` [N_p], float32, from the tables of the builder's `folder`.

    It is computed when its chunks are read; until then the four tables must have been checked,
    since their numbers are used as indices.
    """
    questions, centroids, pair_index, clusters = (open_table(folder / a.source)[0] for a in _INPUTS)
    rows = max(1, CHUNK_BYTES // (8 * max(1, questions.shape[-1])))

    def compute() -> Iterator[torch.Tensor]:
        for begin in range(0, len(pair_index), rows):
            question = questions[as_int64(pair_index[begin : begin + rows, 0])]
            centroid = centroids[as_int64(clusters[begin : begin + rows])]
            yield cosine_distance(question, centroid).to(torch.float32)

    return Source(
        artifact=artifact,
        where=f"{artifact.name}, computed from {', '.join(a.source for a in _INPUTS)}",
        parts={artifact.name: Part(torch.float32, (len(pair_index),), compute)},
        shape=(len(pair_index),),
    )


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 - cos of the rows of [n,D] and [n,D], in float64, within [0,2]; 1 where either is 0."""
    a, b = a.to(torch.float64), b.to(torch.float64)
    norms = a.norm(dim=1) * b.norm(dim=1)
    cosine = torch.where(norms == 0, 0.0, (a * b).sum(1) / norms.masked_fill(norms == 0, 1.0))
    return (1.0 - cosine).clamp(0.0, 2.0)
