"""A folder in which something of every kind is planted."""

from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert
from tests.converting import SMALL, change, edit, load
from tests.similarity.slow import Slow
from tools.demo.folder import make_builder_folder


@pytest.fixture(scope="package")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small folder with each kind of negative, zero vectors, and odd splits."""
    folder = make_builder_folder(tmp_path_factory.mktemp("planted") / "folder", seed=3, **SMALL)
    pairs = load(folder, "pair_index").tolist()
    splits = {name: load(folder, f"{name}_idx").tolist() for name in ("train", "val", "test")}
    in_train = {pairs[p][1] for p in splits["train"]}
    questions = [q for q, _ in pairs]
    several = next(p for p in splits["train"] if questions.count(pairs[p][0]) > 1)
    question, own = pairs[several]
    other = next(s for q, s in pairs if q == question and s != own)
    hidden = next(s for p in splits["val"] if (s := pairs[p][1]) not in in_train)
    sources = range(len(load(folder, "source_embs")))
    unused, another = [s for s in sources if s not in {s for _, s in pairs}][:2]
    far = splits["train"][1]

    def plant_sources(table: torch.Tensor) -> None:
        table[unused] = 2.5 * table[other]  # a right source under another number, and longer
        table[pairs[splits["test"][0]][1]] = 0
        table[pairs[far][1]] *= -1  # farther than a right angle from its question
        table[another] = table[pairs[far][1]]
        table[another, 0] += 0.03  # near that one, but not of the same content

    def plant_negatives(table: torch.Tensor) -> None:
        table[several] = torch.tensor([own, other, unused, hidden])
        table[far, 0] = another
        table[splits["train"][-1]] = table[splits["train"][-1]][0].clone()  # one source, 4 times

    change(folder, "source_embs", plant_sources)
    change(folder, "hard_negatives", plant_negatives)
    change(folder, "question_embs", lambda t: t[pairs[splits["val"][0]][0]].zero_())
    change(folder, "centroid_embs", lambda t: t[0].zero_())
    edit(folder, "test_idx", lambda t: torch.cat([t, t.new_tensor(splits["val"][-1:])]))
    edit(folder, "train_idx", lambda t: t[1:])  # a pair in no split
    return folder


@pytest.fixture(scope="package")
def planted(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return its store."""
    store = tmp_path_factory.mktemp("planted_store") / "store"
    convert(planted_folder, store)
    return store


@pytest.fixture(scope="package")
def slow(planted_folder: Path) -> Any:
    """Return the slow look at it."""
    return Slow(planted_folder)
