"""The stores that are checked, in a folder of our own: new negatives are published to them."""

import os
import shutil
from pathlib import Path

import torch

from converters import convert
from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.rules.integers import as_int64
from jasper_mmap.store.manifest import MANIFEST_FILE
from jasper_mmap.store.pointer import FOLDER
from tools.bench.inputs import make_folder

PAIRS = 50_000
MIXED_PAIRS = 2_000
MIXED = {"question_embs": torch.float16, "steering_keyword_weighted": torch.float64}
"""Dtypes that keep the tables of embeddings from being joined."""


def own_store(folder: Path | None, root: Path) -> Path:
    """Return a store in `root`: that of `folder`, with links to its data, or a random one."""
    store = root / "store"
    if folder is None:
        make_folder(root / "pt", PAIRS)
        folder = root / "pt"
    if not (folder / MANIFEST_FILE).exists():
        convert(folder, store)
        return store
    store.mkdir()
    for path in folder.resolve().iterdir():
        if path.name == FOLDER:
            shutil.copytree(path, store / FOLDER)
        elif path.is_file() and path.suffix != ".pt":
            os.symlink(path, store / path.name)  # noqa: PTH211
    return store


def mixed_store(root: Path) -> Path:
    """Return a small random store whose tables of embeddings have different dtypes."""
    folder, store = root / "mixed_pt", root / "mixed"
    make_folder(folder, MIXED_PAIRS)
    for name, dtype in MIXED.items():
        path = folder / f"{name}.pt"
        torch.save(torch.load(path, weights_only=True).to(dtype), path)
    convert(folder, store)
    return store


def other_negatives(store: Path) -> int:
    """Publish the negatives in another order of pairs; return the new generation's number."""
    with JASPERSteeringDataset(store, "train") as dataset:
        served = (dataset.hard_negatives, dataset.negative_tiers)
        tables = [as_int64(table).roll(1, 0) for table in served]
    return publish_negatives(store, *tables, allow_equal=True, republish=True)
