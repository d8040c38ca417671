"""What a batch must hold, read row by row from the builder's `.pt` files: slow and plain.

Shape letters: `B` batch, `D` embedding_dim, `N` n_neg.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VARIANTS = ("zero", "centroid", "keyword", "residual")
STEERING_FILES = {1: "steering_centroid", 2: "steering_keyword_weighted", 3: "steering_residual"}
NARROWED = ("question_embs", "source_embs", *STEERING_FILES.values())
"""What `embeddings_dtype` narrows."""
EARLIER_CURRICULUM = {"zero_prob_start": 0.5, "zero_prob_end": 0.1, "epochs_total": 100}
"""The curriculum where `config.json` has one with none of these keys."""
DERIVED_TOLERANCE = 1e-6  # of a centroid distance computed because its file is missing


class Oracle:
    """One builder's folder; its `hard_negatives` and `negative_tiers` (rows) may be replaced.

    `embeddings_dtype` is what its conversion narrows to.
    """

    def __init__(self, folder: Path, embeddings_dtype: torch.dtype | None = None) -> None:
        self._narrowed = embeddings_dtype
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tables: dict[str, Any] = {
            path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")
        }
        self.hard_negatives: list[list[int]] = self.tables["hard_negatives"].tolist()
        self.negative_tiers: list[list[int]] = self.tables["negative_tiers"].tolist()
        self.pair_index: list[list[int]] = self.tables["pair_index"].tolist()
        self.cluster_ids: list[int] = self.tables["pair_cluster_id"].tolist()
        self.splits: dict[str, list[int]] = {
            split: self.tables[f"{split}_idx"].tolist() for split in ("train", "val", "test")
        }
        derived = "centroid_distances" not in self.tables
        self.tolerance = {"centroid_distance": DERIVED_TOLERANCE} if derived else {}

    def batch(
        self, split: str, positions: Sequence[int], variants: Sequence[int]
    ) -> dict[str, Tensor]:
        """Return the batch of these positions of a split, steered by these variants `[B]`."""
        rows = [
            self.sample(split, position, variant)
            for position, variant in zip(positions, variants, strict=True)
        ]
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def sample(self, split: str, position: int, variant: int) -> dict[str, Tensor]:
        """Return one row of a batch."""
        pair = self.splits[split][position]
        question, source = self.pair_index[pair]
        negatives = [self._float_row("source_embs", row) for row in self.hard_negatives[pair]]
        return {
            "question_emb": self._float_row("question_embs", question),
            "target_source_emb": self._float_row("source_embs", source),
            "steering": self._steering(pair, variant),
            "negative_embs": torch.stack(negatives),
            "cluster_id": torch.tensor(self.cluster_ids[pair], dtype=torch.int64),
            "relevance": self._float_row("pair_relevance", pair),
            "centroid_distance": self._centroid_distance(pair),
            "steering_variant": torch.tensor(variant, dtype=torch.int64),
            "negative_tiers": torch.tensor(self.negative_tiers[pair], dtype=torch.int64),
        }

    def curriculum(self, epoch: int) -> dict[str, float]:
        """Return the probability of each variant in an epoch.

        Zero's goes linearly from `zero_prob_start` to `zero_prob_end`, which epoch `epochs_total`
        is the first to have. The others share the rest in proportion to their
        `steering_probabilities`; where those are all 0, centroid takes it.
        """
        base = {name: float(self.config["steering_probabilities"][name]) for name in VARIANTS}
        rule = self.config.get("curriculum")
        if not rule:
            return base
        if not rule.keys() & EARLIER_CURRICULUM:
            rule = EARLIER_CURRICULUM
        start, end = rule["zero_prob_start"], rule["zero_prob_end"]
        total = max(1, rule["epochs_total"])
        zero = end if epoch >= total else start + (end - start) * epoch / total
        others = base["centroid"] + base["keyword"] + base["residual"]
        if others == 0:
            return {"zero": zero, "centroid": 1 - zero, "keyword": 0.0, "residual": 0.0}
        shared = {name: (1 - zero) * base[name] / others for name in VARIANTS[1:]}
        return {"zero": zero, **shared}

    def _float_row(self, table: str, row: int) -> Tensor:
        stored: Tensor = self.tables[table][row]
        narrowed = self._narrowed
        if narrowed and table in NARROWED and narrowed.itemsize < stored.dtype.itemsize:
            stored = stored.to(narrowed)
        return stored.detach().to(torch.float32)

    def _steering(self, pair: int, variant: int) -> Tensor:
        if variant == 0:
            return torch.zeros(self.config["embedding_dim"], dtype=torch.float32)
        return self._float_row(STEERING_FILES[variant], pair)

    def _centroid_distance(self, pair: int) -> Tensor:
        if "centroid_distances" in self.tables:
            return self._float_row("centroid_distances", pair)
        question = self.tables["question_embs"][self.pair_index[pair][0]].tolist()
        centroid = self.tables["centroid_embs"][self.cluster_ids[pair]].tolist()
        norms = math.hypot(*question) * math.hypot(*centroid)
        cosine = (
            math.fsum(q * c for q, c in zip(question, centroid, strict=True)) / norms
            if norms
            else 0.0
        )
        return torch.tensor(1.0 - cosine, dtype=torch.float64).to(torch.float32)


def assert_batches_equal(
    got: Mapping[str, Any],
    want: Mapping[str, Any],
    *,
    tolerance: Mapping[str, float] | None = None,
    where: str = "",
) -> None:
    """Require the same keys, dtypes, shapes and bits, but for a key's slack in `tolerance`."""
    assert set(got) == set(want), f"{where} keys differ: {sorted(set(got) ^ set(want))}"
    for key, expected in want.items():
        column, slack = got[key], (tolerance or {}).get(key, 0.0)
        label = f"{where} {key}"
        assert column.dtype == expected.dtype, f"{label}: {column.dtype}, not {expected.dtype}"
        assert column.shape == expected.shape, (
            f"{label}: shape {tuple(column.shape)}, not {tuple(expected.shape)}"
        )
        if slack:
            worst = (column.double() - expected.double()).abs().max().item()
            assert worst <= slack, f"{label}: off by {worst}, more than {slack}"
        elif not torch.equal(_bits(column), _bits(expected)):
            differs = _bits(column) != _bits(expected)
            first = tuple(differs.nonzero()[0].tolist())
            raise AssertionError(
                f"{label}: {int(differs.sum())} of {differs.numel()} values differ, first at "
                f"{list(first)}: {column[first].item()!r}, not {expected[first].item()!r}"
            )


def _bits(column: Tensor) -> Tensor:
    """Return float32 as its bits, so that NaN equals itself and -0.0 is not 0.0.

    Every NaN has the same: torch widens the payload of one in float16 otherwise at the end of a run
    of values than in the middle.
    """
    if not column.is_floating_point():
        return column
    return torch.where(column.isnan(), torch.nan, column).view(torch.int32)
