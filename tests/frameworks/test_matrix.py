"""The tool that makes the matrix: what it finds right, and what it finds wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap import set_epoch
from jasper_mmap.errors import JasperError
from tools.frameworks.adapters import own_loop
from tools.frameworks.launch import Result, plans_of, records_in
from tools.frameworks.leg import Leg
from tools.frameworks.numbered_store import make_numbered_store
from tools.frameworks.verdict import Verdict, judge
from tools.frameworks.ways import WAYS, Cell

ROOT = Path(__file__).parents[2]
WORLD = 2


def run(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run the tool on cells of two ranks; return their verdicts."""
    command = [sys.executable, "-m", "tools.frameworks", "--processes", str(WORLD), *arguments]
    done = subprocess.run(
        [*command, "--json", str(folder / "cells.json")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cells: list[dict[str, Any]] = json.loads((folder / "cells.json").read_text())["cells"]
    return cells


@pytest.mark.parametrize(
    ("package", "names", "distributed"),
    [
        ("torch", "torchrun", "auto"),
        ("lightning", "lightning-hook,lightning-predict,fabric", "False"),
        ("accelerate", "accelerate-uneven,accelerate-stateful", "False"),
        ("transformers", "trainer-loader,trainer-callback", "auto"),
    ],
)
def test_two_ranks_receive_every_pair_once(
    package: str, names: str, distributed: str, tmp_path: Path
) -> None:
    """Where the tool divides the loader too: no pair is missed or repeated."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra `frameworks`)")
    for cell in run(tmp_path, "--only", names, "--distributed", distributed):
        assert cell["word"] == "once", cell
        assert cell["reload"] != "never"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store whose batches tell the numbers of their pairs."""
    return make_numbered_store(tmp_path_factory.mktemp("numbered"))


def judged(train: Callable[[Leg], None], store: Path, folder: Path) -> Verdict:
    """Return the verdict of a way of training that runs in this process."""
    cell = Cell(way=WAYS["torchrun"], world=1, distributed=False)
    plans = plans_of(cell, store, folder, fast_store=None, measure_s=0)
    for plan in plans:
        if not Leg(plan=plan).run(train):
            break
    return judge(Result(cell=cell, legs=records_in(folder, plans)), plans)


def loop(
    change: Callable[[list[Any]], Iterable[Any]] = list, *, moves: bool = True
) -> Callable[[Leg], None]:
    """Return a way of training whose epochs are changed; it always begins at the beginning."""

    def train(leg: Leg) -> None:
        loader: Any = leg.loader()
        for epoch in range(leg.plan.epochs):
            if moves:
                set_epoch(loader, epoch)
            leg.epoch(epoch)
            for batch in change(list(loader)):
                if leg.received(batch):
                    return

    return train


def failing(error: Exception) -> Callable[[Leg], None]:
    """Return a way of training that raises."""

    def train(_: Leg) -> None:
        raise error

    return train


def test_own_loop_is_right(store: Path, tmp_path: Path) -> None:
    """Pairs, curriculum, order, resume, and new negatives from the next batch on."""
    verdict = judged(own_loop.train, store, tmp_path)
    assert (verdict.word, verdict.text, verdict.epochs) == ("once", "", [0, 1, 2])
    assert (verdict.in_order, verdict.devices) == (True, ["cpu"])
    assert (verdict.once, verdict.repeated, verdict.missed) == (264, 0, 6)
    assert (verdict.resume, verdict.reload) == ("exact", "1")


@pytest.mark.parametrize(
    ("train", "word", "says"),
    [
        (loop(lambda batches: batches + batches[:1]), "wrong", "8 repeated"),
        (loop(lambda batches: batches[1:]), "wrong", "14 of 270 missed"),
        (loop(moves=False), "wrong", "epochs 0 0 0"),
        (failing(JasperError("do it so")), "error", "JasperError: do it so"),
        (failing(OSError("broken")), "failed", "OSError: broken"),
    ],
    ids=["repeats", "misses", "stays", "ours", "another"],
)
def test_what_is_wrong_is_named(
    train: Callable[[Leg], None], word: str, says: str, store: Path, tmp_path: Path
) -> None:
    """Repeated and missing pairs, a curriculum that stays, an error of ours and any other."""
    verdict = judged(train, store, tmp_path)
    assert (verdict.word, verdict.text) == (word, says)


def test_other_orders_and_a_resume_from_the_beginning_are_seen(store: Path, tmp_path: Path) -> None:
    """Every pair once, but not in our order; what was trained before comes again."""
    verdict = judged(loop(lambda batches: reversed(batches)), store, tmp_path)
    assert (verdict.word, verdict.in_order) == ("once", False)
    assert verdict.resume.startswith("epoch 0: 264 repeated, 0 missed; epoch 1: 40 repeated")
