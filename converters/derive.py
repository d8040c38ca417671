"""`centroid_distances`, where the builder left it out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from jasper_mmap.files.safetensors import CHUNK_BYTES
from jasper_mmap.rules.schema import ARTIFACTS, Artifact

from .source import Part, Source, open_table, stamp

_INPUTS: Final = tuple(
    ARTIFACTS[name] for name in ("question_embs", "centroid_embs", "pair_index", "pair_cluster_id")
)


def derived_stamp(folder: Path) -> dict[str, Any]:
    """What `Entry.source` says of a table computed from those of `folder`."""
    return {"derived_from": [stamp(a, folder) for a in _INPUTS]}


def derive(artifact: Artifact, folder: Path) -> Source:
    """`centroid_distances` [N_p], float32, of the builder's `folder`.

    It is computed when its chunks are asked for, by which time the four tables must have been
    checked: their numbers are used as indices.
    """
    questions, centroids, pair_index, clusters = (open_table(folder / a.source)[0] for a in _INPUTS)
    rows = max(1, CHUNK_BYTES // (8 * max(1, questions.shape[-1])))

    def compute() -> Iterator[torch.Tensor]:
        for begin in range(0, len(pair_index), rows):
            question = questions[_numbers(pair_index[begin : begin + rows, 0])]
            centroid = centroids[_numbers(clusters[begin : begin + rows])]
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


def _numbers(column: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(column.numpy().astype(np.int64))
