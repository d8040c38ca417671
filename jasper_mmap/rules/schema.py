"""The two central tables: the artifacts on disk and the columns of a batch.

Shape letters: B batch, D embedding_dim, N n_neg, N_q questions, N_s sources, N_k keywords,
N_c clusters, N_p pairs; n is the free length of a split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypedDict

import torch

from .names import NARROW_DTYPES, SPLITS, VARIANTS, Split

Kind = Literal["float", "int", "ragged"]

TIERS: Final = (1, 2, 3, 4)
EMBEDDING_DTYPES: Final[dict[str, torch.dtype]] = {n: getattr(torch, n) for n in NARROW_DTYPES}
FLOAT_DTYPES: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# torch lacks most operators for unsigned types beyond uint8: see `integers`.
INT_DTYPES: Final = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One named tensor (or ragged list) of the dataset."""

    name: str
    kind: Kind
    shape: tuple[str | int, ...]
    """Letters, or the number itself; the first dimension of a ragged list is its row count."""
    refers: tuple[str, ...] = ()
    """Tables whose row numbers the values are: one for all columns, or one for each column."""
    low: float | None = None
    high: float | None = None
    """Inclusive bounds of the values, where the table has fixed ones."""
    narrow: bool = False
    """`embeddings_dtype` narrows it."""
    derived: bool = False
    """May be missing from the builder's folder; the converter then computes it."""
    split: Split | None = None
    """The split whose pair numbers it holds."""
    generation: bool = False
    """Stored in the files of `negatives/`, where it can be replaced while training runs."""

    @property
    def source(self) -> str:
        """Name of the builder's file."""
        return f"{self.name}.pt"

    @property
    def file(self) -> str:
        """Name of the store's file."""
        return f"{self.name}.safetensors"


def _embeddings(name: str, rows: str, *, narrow: bool = True) -> Artifact:
    return Artifact(name=name, kind="float", shape=(rows, "D"), narrow=narrow)


ARTIFACTS: Final[dict[str, Artifact]] = {
    a.name: a
    for a in (
        _embeddings("question_embs", "N_q"),
        _embeddings("source_embs", "N_s"),
        # Small, and read by trainers themselves.
        _embeddings("keyword_embs", "N_k", narrow=False),
        _embeddings("centroid_embs", "N_c", narrow=False),
        Artifact(
            name="pair_index",
            kind="int",
            shape=("N_p", 2),
            refers=("question_embs", "source_embs"),
        ),
        Artifact(name="pair_cluster_id", kind="int", shape=("N_p",), refers=("centroid_embs",)),
        Artifact(name="pair_relevance", kind="float", shape=("N_p",), low=0.0, high=1.0),
        Artifact(name="pair_keyword_ids", kind="ragged", shape=("N_p",), refers=("keyword_embs",)),
        _embeddings("steering_centroid", "N_p"),
        _embeddings("steering_keyword_weighted", "N_p"),
        _embeddings("steering_residual", "N_p"),
        Artifact(
            name="centroid_distances",
            kind="float",
            shape=("N_p",),
            low=0.0,
            high=2.0,
            derived=True,
        ),
        Artifact(
            name="hard_negatives",
            kind="int",
            shape=("N_p", "N"),
            refers=("source_embs",),
            generation=True,
        ),
        Artifact(
            name="negative_tiers",
            kind="int",
            shape=("N_p", "N"),
            low=TIERS[0],
            high=TIERS[-1],
            generation=True,
        ),
        *(
            Artifact(
                name=f"{split}_idx", kind="int", shape=("n",), refers=("pair_index",), split=split
            )
            for split in SPLITS
        ),
    )
}
STORED: Final = tuple(a for a in ARTIFACTS.values() if not a.generation)
NEGATIVES: Final = tuple(a for a in ARTIFACTS.values() if a.generation)
# Which table each steering variant serves; the zero variant has none.
STEERING: Final = (
    None,
    "steering_centroid",
    "steering_keyword_weighted",
    "steering_residual",
)

# The tensors of a ragged artifact's file: row i is values[offsets[i]:offsets[i + 1]].
RAGGED_VALUES: Final = "values"
RAGGED_OFFSETS: Final = "offsets"


@dataclass(frozen=True)
class Column:
    """One key of a batch; a sample has the same without B."""

    name: str
    shape: tuple[str, ...]
    dtype: torch.dtype
    artifact: str | None = None
    """The table whose rows it holds, if that is the same for every row."""
    low: float | None = None
    high: float | None = None


class Batch(TypedDict):
    """What a loader yields; `COLUMNS` has the shapes and dtypes. A sample, `dataset[i]`, has the
    same keys without B. At run time both are dicts."""

    question_emb: torch.Tensor
    target_source_emb: torch.Tensor
    steering: torch.Tensor
    negative_embs: torch.Tensor
    cluster_id: torch.Tensor
    relevance: torch.Tensor
    centroid_distance: torch.Tensor
    steering_variant: torch.Tensor
    negative_tiers: torch.Tensor


COLUMNS: Final[dict[str, Column]] = {
    c.name: c
    for c in (
        Column("question_emb", ("B", "D"), torch.float32, "question_embs"),
        Column("target_source_emb", ("B", "D"), torch.float32, "source_embs"),
        Column("steering", ("B", "D"), torch.float32),
        Column("negative_embs", ("B", "N", "D"), torch.float32, "source_embs"),
        Column("cluster_id", ("B",), torch.int64, "pair_cluster_id", low=0),
        Column("relevance", ("B",), torch.float32, "pair_relevance", low=0.0, high=1.0),
        Column("centroid_distance", ("B",), torch.float32, "centroid_distances", low=0.0, high=2.0),
        Column("steering_variant", ("B",), torch.int64, low=0, high=len(VARIANTS) - 1),
        Column("negative_tiers", ("B", "N"), torch.int64, "negative_tiers", TIERS[0], TIERS[-1]),
    )
}
# The columns of embeddings, and those of single numbers.
WIDE: Final = tuple(c for c in COLUMNS.values() if "D" in c.shape)
PLAIN: Final = tuple(c for c in COLUMNS.values() if "D" not in c.shape)
# The tables that the embeddings of a batch come from.
GATHERED: Final = tuple(
    dict.fromkeys(name for name in (*(c.artifact for c in WIDE), *STEERING) if name)
)


def concrete(shape: tuple[str | int, ...], sizes: dict[str, int]) -> tuple[int | None, ...]:
    """The shape with letters replaced by their sizes; None where a letter has no size yet."""
    return tuple(d if isinstance(d, int) else sizes.get(d) for d in shape)
