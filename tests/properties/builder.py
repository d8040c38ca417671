"""Builder's folders that Hypothesis draws: any sizes, dtypes and storages that DESIGN allows.

Shape letters: `D` embedding_dim, `N` n_neg, `N_q` questions, `N_s` sources, `N_k` keywords,
`N_c` clusters, `N_p` pairs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from jasper_mmap.rules.names import SPLITS, Split
from jasper_mmap.rules.schema import ARTIFACTS, FLOAT_DTYPES, INT_DTYPES, Artifact
from tests.oracle import EARLIER_CURRICULUM, VARIANTS

FORMS = ("plain", "view", "strided", "transposed", "expanded", "negated", "parameter")
"""How the values of a table lie in the storage that is saved with them."""
NOT_IN_LEGACY = (torch.uint16, torch.uint32, torch.uint64)
SMALL = (1, 1, 2, 3, 5, 8, 13, 33)
WIDTHS = (1, 2, 3, 4, 7, 8, 15, 16, 16, 31, 32, 64, 65, 128, 255, 1024, 1030)
PAIRS = (1, 2, 3, 7, 16, 31, 65, 130)
REALS = (0.0, -0.0, 1e-45, -1.1754944e-38, 6e4)
LARGE = (3e38, -3.4e38)
NOT_FINITE = (float("nan"), float("inf"), -float("inf"))
NOT_COPIED = ("question_embs", "centroid_embs")
"""The distance is derived from these where its file is missing."""


@dataclass(frozen=True)
class BuilderFolder:
    """What is in a folder; the numbers in its tables follow from `seed`."""

    seed: int
    sizes: Mapping[str, int]
    """Of each shape letter."""
    splits: Mapping[Split, int]
    """Pairs of each split; pairs may be repeated, and be in several."""
    dtypes: Mapping[str, torch.dtype]
    forms: Mapping[str, str]
    legacy: frozenset[str]
    """The artifacts in torch's pre-zip format, which torch itself reads for some dtypes only."""
    with_distances: bool
    allow_nonfinite: bool
    embeddings_dtype: str | None
    """What the conversion narrows to."""
    config: Mapping[str, Any]

    def write(self, folder: Path) -> Path:
        """Write the folder."""
        folder.mkdir()
        generator = torch.Generator().manual_seed(self.seed)
        for artifact in ARTIFACTS.values():
            name = artifact.name
            value = (
                self._lists(generator)
                if artifact.kind == "ragged"
                else saved_as(self.table(artifact, generator), self.forms[name])
            )
            if name != "centroid_distances" or self.with_distances:
                zipped = name not in self.legacy or self.dtypes[name] in NOT_IN_LEGACY
                path = folder / f"{name}.pt"
                torch.save(value, path, _use_new_zipfile_serialization=zipped)
        sizes = {"embedding_dim": self.sizes["D"], "n_neg": self.sizes["N"]}
        (folder / "config.json").write_text(json.dumps({**self.config, **sizes}))
        return folder

    def table(self, artifact: Artifact, generator: torch.Generator) -> Tensor:
        """Return the values of an artifact."""
        rows = self.splits[artifact.split] if artifact.split else 0
        shape = [d if isinstance(d, int) else self.sizes.get(d, rows) for d in artifact.shape]
        dtype = self.dtypes[artifact.name]
        if artifact.kind == "float":
            return self._floats(artifact, shape, generator).to(dtype)
        limits = [self.sizes[str(ARTIFACTS[t].shape[0])] for t in artifact.refers] or [4]
        least = int(artifact.low or 0)
        columns = [torch.randint(n, shape[:1] + shape[2:], generator=generator) for n in limits]
        if len(columns) < 2:
            columns = [torch.randint(limits[0], shape, generator=generator)]
        table = torch.stack(columns, 1) if len(columns) > 1 else columns[0]
        return (table + least).to(dtype)

    def _floats(self, artifact: Artifact, shape: list[int], generator: torch.Generator) -> Tensor:
        table = torch.randn(shape, generator=generator, dtype=torch.float64)
        if artifact.high is not None:
            return table.abs().clamp(0, artifact.high)
        dtype, special = self.dtypes[artifact.name], [*REALS]
        if dtype != torch.float16 and self.embeddings_dtype != "float16":
            special += LARGE if dtype != torch.bfloat16 and not self.embeddings_dtype else LARGE[:1]
        if self.allow_nonfinite and artifact.name not in NOT_COPIED:
            special += NOT_FINITE
        chosen = torch.randint(len(special), shape, generator=generator)
        values = torch.tensor(special, dtype=torch.float64)[chosen]
        table = torch.where(torch.rand(shape, generator=generator) < 0.1, values, table)
        zero = torch.rand(shape[0], generator=generator) < 0.1
        return torch.where(zero[:, None], 0.0, table)

    def _lists(self, generator: torch.Generator) -> list[Any]:
        """Rows of keyword numbers: lists and tuples, many empty, all empty without keywords."""
        most = 5 if self.sizes["N_k"] else 1
        counts = torch.randint(most, (self.sizes["N_p"],), generator=generator).tolist()
        return [
            (tuple if count == 3 else list)(
                torch.randint(self.sizes["N_k"] or 1, (count,), generator=generator).tolist()
            )
            for count in counts
        ]


def saved_as(table: Tensor, form: str) -> Tensor:
    """Return the same values (of "expanded": those of row 0), lying as `form` says."""
    floating = table.dtype.is_floating_point
    poison = torch.nan if floating else torch.iinfo(table.dtype).max
    if form == "view":
        edge = torch.full((3,), poison, dtype=table.dtype)
        return torch.cat([edge, table.flatten(), edge])[3:-3].view(table.shape)
    if form == "strided":
        return torch.stack([table, torch.full_like(table, poison)], -1)[..., 0]
    if form == "transposed" and table.ndim == 2:
        return table.mT.contiguous().mT
    if form == "expanded" and len(table):
        return table[:1].clone().expand_as(table)
    if form == "negated" and table.dtype.is_signed:
        return torch._neg_view(-table)
    if form == "parameter" and floating:
        return torch.nn.Parameter(table)
    return table


def _dtypes(artifact: Artifact, sizes: Mapping[str, int]) -> tuple[torch.dtype, ...]:
    """Return the dtypes that hold an artifact's values."""
    if artifact.kind != "int":
        return FLOAT_DTYPES
    letters = (str(ARTIFACTS[table].shape[0]) for table in artifact.refers)
    most = max((sizes[letter] for letter in letters), default=4)
    return tuple(dtype for dtype in INT_DTYPES if torch.iinfo(dtype).max >= most)


@st.composite
def builder_folders(draw: st.DrawFn) -> BuilderFolder:
    """Draw a folder; shrinks towards one pair of one number, plain tables of one dtype."""
    sizes = {letter: draw(st.sampled_from(SMALL)) for letter in ("N_q", "N_s", "N_c", "N")}
    sizes |= {"D": draw(st.sampled_from(WIDTHS)), "N_p": draw(st.sampled_from(PAIRS))}
    sizes["N_k"] = draw(st.sampled_from((0, *SMALL)))
    if sizes["D"] > 256:  # what the oracle reads row by row has its price
        sizes |= {"N": min(sizes["N"], 5), "N_p": min(sizes["N_p"], 31)}
    splits = {split: draw(st.integers(0, sizes["N_p"])) for split in SPLITS}
    splits["train"] = max(1, splits["train"])
    names = [artifact.name for artifact in ARTIFACTS.values()]
    common = draw(st.sampled_from(FLOAT_DTYPES))
    alike = draw(st.booleans())
    dtypes = {
        a.name: common if alike and a.kind == "float" else draw(st.sampled_from(_dtypes(a, sizes)))
        for a in ARTIFACTS.values()
    }
    forms = {name: draw(st.sampled_from(FORMS)) for name in names}
    weights = draw(st.tuples(*[st.integers(0, 4)] * 4))
    weights = weights if any(weights) else (1, 0, 0, 0)
    config: dict[str, Any] = {
        "steering_probabilities": {
            name: weight / sum(weights) for name, weight in zip(VARIANTS, weights, strict=True)
        }
    }
    curriculum = draw(
        st.sampled_from(("absent", None, {}, {"mode": "linear"}, EARLIER_CURRICULUM))
        | st.fixed_dictionaries(
            {
                "zero_prob_start": st.sampled_from((0.0, 0.3, 1.0)),
                "zero_prob_end": st.sampled_from((0.0, 0.5, 1.0)),
                "epochs_total": st.sampled_from((0, 1, 3, 4.0)),
            }
        )
    )
    if curriculum != "absent":
        config["curriculum"] = curriculum
    return BuilderFolder(
        seed=draw(st.integers(0, 1 << 16)),
        sizes=sizes,
        splits=splits,
        dtypes=dtypes,
        forms=forms,
        legacy=draw(st.frozensets(st.sampled_from(names), max_size=4)),
        with_distances=draw(st.booleans()),
        allow_nonfinite=draw(st.integers(0, 3)) == 3,
        embeddings_dtype=draw(st.sampled_from((None, "float16", "bfloat16"))),
        config=config,
    )
