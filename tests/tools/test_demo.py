"""The demonstration shows what it should on a builder's folder, and fails where it does not."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tools.demo.__main__ import save_remined, train
from tools.demo.folder import make_builder_folder
from tools.demo.results import Epoch, Retrieval, shortcomings

ROOT = Path(__file__).parents[2]
FIRST = Epoch(number=0, zero_share=0.5, generation=1, loss=2.0, seconds=1.0)
LAST = replace(FIRST, number=1, loss=1.0)
GOOD = Retrieval(accuracy=0.6, mean_rank=2.0)


def run(module: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run `python -m module`."""
    command = (sys.executable, "-m", module, *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def demo(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run `python -m tools.demo`."""
    return run("tools.demo", *arguments)


def test_demo_adopts_published_negatives_and_learns(demo_folder: Path, tmp_path: Path) -> None:
    """On a builder's folder: two epochs of each generation, and every steering in the table."""
    new = save_remined(demo_folder, tmp_path / "new")
    options = ("--epochs", "4", "--batch-size", "32", "--store", tmp_path / "store")
    done = demo(demo_folder, "--new-negatives", new, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [done.stdout.count(f"generation {number}") for number in (1, 2, 3)] == [2, 2, 0]
    for name in ("zero", "centroid", "keyword", "residual", "(chance)"):
        assert re.search(rf"^{re.escape(name)} ", done.stdout, re.MULTILINE)
    assert (tmp_path / "store" / "negatives" / "000002.safetensors").exists()


def test_demo_fails_where_the_loss_cannot_fall() -> None:
    """One epoch has no later loss: on its own data exit status 1 and the reason, not a success."""
    done = demo("--epochs", "1")
    assert done.returncode == 1
    assert "the loss went from" in done.stderr


def test_demo_reports_on_a_hard_folder(demo_folder: Path) -> None:
    """A folder of somebody's own that misses the thresholds is told so, and is no failure."""
    done = demo(demo_folder, "--epochs", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "hard to learn from: the loss went from" in done.stdout
    assert "Target among 12 negatives" in done.stdout


def test_demo_reports_on_a_folder_without_anything_to_evaluate_on(tmp_path: Path) -> None:
    """val and test may be empty."""
    untidy = frozenset({"empty_val", "empty_test"})
    folder = make_builder_folder(tmp_path / "b", n_pairs=60, dim=8, untidy=untidy)
    done = demo(folder, "--epochs", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to evaluate on" in done.stdout
    assert "generation 1" in done.stdout


def test_demo_fails_where_the_loss_is_no_number(tmp_path: Path) -> None:
    """The largest floats are finite and sound, but nothing can be trained on them."""
    folder = make_builder_folder(tmp_path / "b", n_pairs=60, dim=8)
    questions = torch.load(folder / "question_embs.pt", weights_only=True)
    torch.save(torch.full_like(questions, 3e38), folder / "question_embs.pt")
    done = demo(folder, "--epochs", "1")
    assert done.returncode == 1
    assert "the loss of epoch 0 is nan" in done.stderr
    assert "Traceback" not in done.stderr


BUILDER = {"mode": "linear", "start_distance": 0.3, "end_distance": 0.7, "warmup_epochs": 10}


def test_default_folder_of_the_builder_goes_all_the_way(tmp_path: Path) -> None:
    """Its configuration as it writes it, through jasper-convert, inspect and the demonstration."""
    folder = make_builder_folder(
        tmp_path / "b", n_pairs=300, dim=16, config_changes={"curriculum": BUILDER}
    )
    values = "zero_prob_start 0.5, zero_prob_end 0.1, epochs_total 100"
    convert = run("converters", folder, tmp_path / "store")
    assert (convert.returncode, values in convert.stdout) == (0, True), convert.stderr
    assert "warning: config.json: 'curriculum' has none of the keys" in convert.stdout
    again = run("converters", folder, tmp_path / "store", "--json")
    assert values in json.loads(again.stdout)["notes"][0]
    inspect = run("jasper_mmap", "inspect", tmp_path / "store")
    assert (inspect.returncode, inspect.stderr) == (0, "")
    assert "warning: config.json: 'curriculum' has none of the keys" in inspect.stdout
    assert re.search(r"^ *0 +0\.5000", inspect.stdout, re.MULTILINE)
    assert re.search(r"^ *100 +0\.1000", inspect.stdout, re.MULTILINE)
    told = json.loads(run("jasper_mmap", "inspect", tmp_path / "store", "--json").stdout)
    assert values in told["notes"][0]
    kept = json.loads((tmp_path / "store" / "config.json").read_text())
    assert kept["curriculum"] == BUILDER
    done = demo(folder, "--epochs", "2")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert values in done.stdout


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
