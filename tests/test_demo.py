"""The demonstration shows what it should on a builder's folder, and fails where it does not."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tools.demo import Epoch, Retrieval, save_remined, shortcomings, train

ROOT = Path(__file__).parents[1]
FIRST = Epoch(number=0, zero_share=0.5, generation=1, loss=2.0, seconds=1.0)
LAST = replace(FIRST, number=1, loss=1.0)
GOOD = Retrieval(accuracy=0.6, mean_rank=2.0)


def demo(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run `python -m tools.demo`."""
    command = (sys.executable, "-m", "tools.demo", *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_demo_adopts_published_negatives_and_learns(demo_folder: Path, tmp_path: Path) -> None:
    """On a builder's folder: two epochs of each generation, and every steering in the table."""
    new = save_remined(demo_folder, tmp_path / "new")
    options = ("--epochs", "4", "--batch-size", "32", "--store", tmp_path / "store")
    done = demo(demo_folder, "--new-negatives", new, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [done.stdout.count(f"generation {number}") for number in (1, 2, 3)] == [2, 2, 0]
    for name in ("zero", "centroid", "keyword", "residual", "(chance)"):
        assert f" {name} " in done.stdout
    assert (tmp_path / "store" / "negatives" / "000002.safetensors").exists()


def test_demo_fails_where_the_loss_cannot_fall(demo_folder: Path) -> None:
    """One epoch has no later loss: exit status 1 and the reason, not a success."""
    done = demo(demo_folder, "--epochs", "1")
    assert done.returncode == 1
    assert "the loss went from" in done.stderr


def test_demo_names_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    """A folder that is not there ends it with the package's own message."""
    done = demo(tmp_path / "nothing")
    assert done.returncode == 1
    assert "Dataset directory not found" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_trains_alike_every_time(demo_store: Path) -> None:
    """The losses of two runs are the same numbers."""
    first, second = (
        [epoch.loss for epoch in train(demo_store, 2, 64, new_negatives=None)[1]] for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("loss", [2.0, 1.7, 3.0, math.nan])
def test_demo_wants_the_loss_to_fall(loss: float) -> None:
    """A loss that stayed, hardly fell, rose or is no number is told."""
    assert shortcomings([FIRST, replace(LAST, loss=loss)], {"zero": GOOD}, n_neg=12)


@pytest.mark.parametrize(("n_neg", "accuracy"), [(12, 1 / 13), (12, 0.2), (1, 0.6), (12, math.nan)])
def test_demo_wants_retrieval_far_above_chance(n_neg: int, accuracy: float) -> None:
    """One steering at or near chance is told, however good the others are."""
    results = {"zero": replace(GOOD, accuracy=0.9), "centroid": replace(GOOD, accuracy=accuracy)}
    (told,) = shortcomings([FIRST, LAST], results, n_neg)
    assert told.startswith("centroid")


def test_demo_is_content_with_a_good_run() -> None:
    """A halved loss and six times chance pass."""
    assert shortcomings([FIRST, LAST], {"zero": GOOD}, n_neg=12) == []
