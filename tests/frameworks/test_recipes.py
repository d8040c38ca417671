"""The recipes of `jasper_mmap/loader/README.md` train, and resume, with the real packages.

Each runs as it stands on two ranks, in processes of its own. `loss_of`, which is the user's,
records the pairs of every batch.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.project.test_readme import LOADER, Block, blocks
from tools.frameworks.numbered_store import make_numbered_store

ROOT = Path(__file__).parents[2]
YOURS = """
import json, os
import torch

# Beside this file: Ray's workers have working folders of their own.
RECEIVED = os.path.join(os.path.dirname(__file__), f"received.{os.environ.get('RANK', 0)}")


def loss_of(model, batch):
    if model.training:
        with open(RECEIVED, "a") as file:
            print(json.dumps(batch["question_emb"][:, 0].long().tolist()), file=file)
    predicted = model(torch.cat([batch["question_emb"], batch["steering"]], 1))
    return (predicted - batch["target_source_emb"]).pow(2).mean()
"""
BATCH_SIZE, EPOCHS, TRAIN = 16, 3, 270
ALONE = ("ray", "torchdata")
"""Recipes that torchrun does not start: Ray starts its ranks, and the other needs only one."""


RECIPES = [
    pytest.param(
        block,
        marks=[pytest.mark.ray] if block.package == "ray" else [],
        id=f"{block.package}:{block.line}",
    )
    for block in blocks("python", of=[LOADER])
    if block.package
]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store whose batches tell the numbers of their pairs."""
    return make_numbered_store(tmp_path_factory.mktemp("numbered"))


def run(recipe: Block, folder: Path) -> list[list[list[int]]]:
    """Run the recipe; return the pairs of each batch of each rank."""
    for path in folder.glob("received.*"):
        path.unlink()
    ranks = [] if recipe.package in ALONE else ["torch.distributed.run", "--standalone"]
    ranks = ["-m", *ranks, "--nproc-per-node", "2"] if ranks else []
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *ranks, "train.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    received = sorted(folder.glob("received.*"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in received]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_on_every_pair_once_and_resumes(
    recipe: Block, numbered: Path, tmp_path: Path
) -> None:
    """Each epoch gives every pair once over the ranks, but for a partial step. Run again, it goes
    on in the middle of the last epoch, with the batches that it had there before."""
    if find_spec(recipe.package) is None:
        extra = "ray" if recipe.package == "ray" else "frameworks"
        pytest.skip(f"{recipe.package} is not installed (extra `{extra}`)")
    shutil.copytree(numbered, tmp_path / "my_dataset")
    (tmp_path / "yours.py").write_text(YOURS)
    (tmp_path / "train.py").write_text(f"{recipe.given}\n{recipe.code}")
    ranks = run(recipe, tmp_path)
    assert len(ranks) == (1 if recipe.package == "torchdata" else 2)
    steps = TRAIN // (BATCH_SIZE * len(ranks))
    assert [len(batches) for batches in ranks] == [EPOCHS * steps] * len(ranks)
    orders = []
    for epoch in range(EPOCHS):
        own = [batches[epoch * steps : (epoch + 1) * steps] for batches in ranks]
        pairs = [pair for batches in own for batch in batches for pair in batch]
        assert len(pairs) == len(set(pairs)) == steps * BATCH_SIZE * len(ranks)
        orders.append(pairs)
    assert orders[0] != orders[1] != orders[2]

    if "done" in recipe.given:
        return  # its place is kept by the user
    # The Trainer saves at the end too.
    shutil.rmtree(tmp_path / "checkpoints" / f"checkpoint-{EPOCHS * steps}", ignore_errors=True)
    again = run(recipe, tmp_path)
    left = len(again[0])
    assert 0 < left < steps
    assert again == [batches[-left:] for batches in ranks]
