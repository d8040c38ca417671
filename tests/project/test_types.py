"""A user's program is checked by what the package declares: misspelt words are errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
from collections.abc import Iterable

import torch
from torch.utils.data import ConcatDataset, Subset

from jasper_mmap import (
    Batch,
    JASPERDataLoader,
    JASPERSteeringDataset,
    create_loader,
    set_epoch,
    validate_first_batch,
    watch_negatives,
)


def loss(batch: Batch) -> torch.Tensor:
    right = torch.einsum("bd,bd->b", batch["question_emb"], batch["target_source_emb"])
    wrong = torch.einsum("bd,bnd->bn", batch["question_emb"], batch["negative_emb"])  # wrong
    return wrong.sum() - right.sum()


def losses(loader: Iterable[Batch]) -> list[torch.Tensor]:
    return [loss(batch) for batch in loader]


loader: JASPERDataLoader = create_loader("store", "train", 8, watch="epoch", validate="full")
create_loader("store", "training", 8)  # wrong
create_loader("store", "val", 8, distributed="auto", pad=True).padding(0)
create_loader("store", "val", 8, distributed="automatic")  # wrong
create_loader("store", "train", 8, watch="epochs")  # wrong
create_loader("store", "train", 8, validate="fully")  # wrong
losses(loader)
for batch in loader:
    print(batch["relevance"].mean(), batch["relevence"])  # wrong
print(loader.dataset_obj.generation, loader.dataset_object)  # wrong
set_epoch(loader, 1)
loader.load_state_dict(loader.state_dict(), generation="state", other_store=False)
loader.load_state_dict(loader.state_dict(), generation="newest")  # wrong
validate_first_batch(loader)
with watch_negatives(loader, adopt="now") as watch:
    print(watch.running)
watch_negatives(loader, adopt="later")  # wrong

with JASPERSteeringDataset("store", "val", validate="auto") as dataset:
    for variant in ("zero", "centroid", "keyword", "residual", None):
        dataset.force_steering(variant)
    dataset.force_steering("keywords")  # wrong
    print(dataset[0]["steering"], dataset[0]["stearing"])  # wrong
    print(dataset.question_embs.shape, dataset.question_embeddings)  # wrong
    print([ids.tolist() for ids in dataset.pair_keyword_ids], dataset.split_indices.tolist())
    print(dataset.pair_keyword_ids.shape)  # wrong
    print(dataset.steering_probs["zero"], dataset.steering_probs["none"])  # wrong
    watch_negatives(Subset(dataset, range(3)))
JASPERSteeringDataset("store", "valid")  # wrong
JASPERSteeringDataset("store", "val", validate="none")  # wrong
splits = JASPERSteeringDataset.create_combined_splits("store")
print(splits["test"].hard_negatives, splits["tests"])  # wrong
watch_negatives(ConcatDataset([splits["train"], splits["val"]]))
"""


def test_mypy_tells_every_misspelt_word(tmp_path: Path) -> None:
    """Split, variant, adopt, validate, key and attribute; what is right passes in strict mode."""
    (tmp_path / "program.py").write_text(PROGRAM)
    ran = subprocess.run(
        # The project's strict options and cache: then torch is not analysed once more.
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "program.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    told = re.findall(r"^program.py:(\d+): error: ", ran.stdout, re.MULTILINE)
    wrong = [n for n, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("  # wrong")]
    assert [int(line) for line in told] == wrong, ran.stdout + ran.stderr
