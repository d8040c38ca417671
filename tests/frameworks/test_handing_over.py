"""A public function that makes a loader again or wraps it gives every pair once, or an error."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.frameworks.handing_over import BATCH_SIZE, FUNCTIONS, SKIPPED, VALUES, WORLD
from tools.frameworks.numbered_store import make_numbered_store

ROOT = Path(__file__).parents[2]
TRAIN = 270
WHOLE = (
    "torch loader",
    "torch sampler",
    "torch batch_sampler",
    "torchdata sampler",
    "torchdata batch_sampler",
    "accelerate prepare_data_loader one process",
    "accelerate skip_first_batches",
    "lightning setup_dataloaders, undivided",
)
"""Functions that divide nothing: without `distributed` each rank gets everything."""


def assert_served_once(pairs: list[int], ranks: int, name: str) -> None:
    """No pair comes twice, and none is missed but for a partial step and what was skipped."""
    skipped = SKIPPED * BATCH_SIZE * ranks if "skip_first_batches" in name else 0
    assert len(pairs) == len(set(pairs)), name
    assert skipped <= TRAIN - len(pairs) < skipped + BATCH_SIZE * ranks, name


@pytest.mark.xdist_group("torchrun")
def test_two_ranks_receive_every_pair_once_or_an_error(tmp_path: Path) -> None:
    """Whatever `distributed` is; an error comes on both ranks, so that none waits for the other."""
    store = make_numbered_store(tmp_path / "numbered")
    packages = [package for package in FUNCTIONS if find_spec(package) is not None]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "tests.frameworks.handing_over"),
            *(str(store), str(tmp_path), *packages),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert len(answers) >= len(VALUES) * len(packages)
    for name, ranks in answers.items():
        function, _, distributed = name.rpartition(" ")
        if function in WHOLE and distributed == "False":
            for pairs in ranks:
                assert_served_once(pairs, 1, name)
        elif function.startswith("accelerate") and function not in WHOLE and distributed != "False":
            for error in ranks:
                assert "one of 2 parts already" in error, (name, error)
                assert "distributed=False" in error
        else:
            assert_served_once([pair for pairs in ranks for pair in pairs], WORLD, name)
