"""A pair with all its data as one record of bytes, for libraries that store samples, not tables.

Those libraries cannot refer to rows of other tables, so each record repeats the embeddings of its
negatives. Their fastest form is one packed column, of which the trainer unpacks a batch as views.
Shape letters: `B` batch, `D` embedding_dim, `N` n_neg; a record has R = N + 5 embeddings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jasper_mmap.rules.schema import STEERING, Batch
from tools.bench.contenders import plain_tables

_BLOCK = 256
_OWN = 2  # question and target come first, then the steering tables, then the negatives


@dataclass(frozen=True)
class RecordLayout:
    """The bytes of a record: cluster and tiers (int64), two floats, R embeddings (float32)."""

    dim: int
    n_neg: int

    @property
    def nbytes(self) -> int:
        """Bytes of one record, a multiple of 8."""
        return -(-(8 * (1 + self.n_neg) + 8 + 4 * self.dim * (self.n_neg + 5)) // 8) * 8

    def dtype(self) -> np.dtype[np.void]:
        """The dtype of a record in numpy."""
        fields = [
            ("ints", np.int64, (1 + self.n_neg,)),
            ("floats", np.float32, (2,)),
            ("embeddings", np.float32, (self.n_neg + 5, self.dim)),
        ]
        offsets = [0, 8 * (1 + self.n_neg), 8 * (2 + self.n_neg)]
        names, formats, shapes = zip(*fields, strict=True)
        return np.dtype(
            {
                "names": names,
                "formats": list(zip(formats, shapes, strict=True)),
                "offsets": offsets,
                "itemsize": self.nbytes,
            }
        )

    def joined(self, records: Sequence[bytes]) -> Tensor:
        """Records as one tensor `[B,nbytes]` of bytes."""
        return torch.frombuffer(bytearray().join(records), dtype=torch.uint8).view(len(records), -1)

    def unpacked(self, raw: Tensor) -> Batch:
        """The columns of the batch `[B,nbytes]`; all but the steering are views."""
        begin = 8 * (1 + self.n_neg)
        ints = raw[:, :begin].view(torch.int64)
        floats = raw[:, begin : begin + 8].view(torch.float32)
        end = begin + 8 + 4 * self.dim * (self.n_neg + 5)
        embeddings = raw[:, begin + 8 : end].view(torch.float32).view(len(raw), -1, self.dim)
        variants = torch.randint(len(STEERING), (len(raw),))
        steering = embeddings[torch.arange(len(raw)), variants + (_OWN - 1)]
        steering[variants == 0] = 0
        return {
            "question_emb": embeddings[:, 0],
            "target_source_emb": embeddings[:, 1],
            "steering": steering,
            "negative_embs": embeddings[:, _OWN + 3 :],
            "cluster_id": ints[:, 0],
            "relevance": floats[:, 0],
            "centroid_distance": floats[:, 1],
            "steering_variant": variants,
            "negative_tiers": ints[:, 1:],
        }


class Records:
    """The records of the first `pairs` pairs of a store's train split."""

    def __init__(self, store: Path, pairs: int) -> None:
        self._tables = dict(plain_tables(store))
        self._pairs = self._tables["split_indices"][:pairs]
        self.layout = RecordLayout(
            self._tables["question_embs"].shape[1], self._tables["hard_negatives"].shape[1]
        )

    def __len__(self) -> int:
        return len(self._pairs)

    def starts(self) -> list[int]:
        """Where blocks begin."""
        return list(range(0, len(self), _BLOCK))

    def block(self, start: int) -> list[bytes]:
        """The records of one block."""
        tables, pairs = self._tables, self._pairs[start : start + _BLOCK]
        made = np.zeros(len(pairs), self.layout.dtype())
        ends = tables["pair_index"][pairs]
        made["ints"][:, 0] = tables["pair_cluster_id"][pairs]
        made["ints"][:, 1:] = tables["negative_tiers"][pairs]
        made["floats"][:, 0] = tables["pair_relevance"][pairs]
        made["floats"][:, 1] = tables["centroid_distances"][pairs]
        made["embeddings"][:, 0] = tables["question_embs"][ends[:, 0]]
        made["embeddings"][:, 1] = tables["source_embs"][ends[:, 1]]
        for place, name in enumerate(filter(None, STEERING), start=_OWN):
            made["embeddings"][:, place] = tables[name][pairs]
        made["embeddings"][:, _OWN + 3 :] = tables["source_embs"][tables["hard_negatives"][pairs]]
        return [record.tobytes() for record in made]

    def __iter__(self) -> Iterator[bytes]:
        for start in self.starts():
            yield from self.block(start)
