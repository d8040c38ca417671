"""Generations whose content tells their number, and a process that publishes them.

Shape letters: `B` batch, `N` n_neg, `N_p` pairs, `N_s` sources.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.files.safetensors import Written
from jasper_mmap.negatives.write import successor
from jasper_mmap.store.pointer import FOLDER, POINTER, Pointer, file_name, read_pointer
from tests.oracle import Oracle

SOAK_S = float(os.environ.get("JASPER_SOAK_S", "1.5"))
"""How long each soak lasts; with 30, in `LONG` form, the promises were checked."""
LONG = SOAK_S >= 10
DATA = "real" if LONG else "demo"
"""Name of the folder whose store is published to."""

ROOT = Path(__file__).parents[1]
IMPORTING = {**os.environ, "PYTHONPATH": str(ROOT)}
"""The environment of a program, wherever it lies, that imports the packages of this checkout."""

STAMPS = {"hard_negatives": {"bytes": 1, "mtime_ns": 2}}
"""Of the builder's files that a generation of `pointer_chain` was made from."""

Tables = tuple[Tensor, Tensor]
NAMES = ("hard_negatives", "negative_tiers")


def own_copy(store: Path, target: Path) -> Path:
    """Return a copy of a store that a test may change."""
    shutil.copytree(store, target)
    return target


def numbered(oracle: Oracle, number: int, pairs: Tensor | slice = slice(None)) -> Tables:
    """Return negatives and tiers `[N_p,N]` (of some pairs) that no other number has in any row.

    The first negative of every row is the source of that number.
    """
    sources = len(oracle.tables["source_embs"])
    negatives = (oracle.tables["hard_negatives"][pairs].to(torch.int64) + number) % sources
    negatives[:, 0] = number % sources
    tiers = (oracle.tables["negative_tiers"][pairs].to(torch.int64) + number) % 4 + 1
    return negatives, tiers


def publish_numbered(store: Path, oracle: Oracle, **options: Any) -> int:
    """Publish what tells the next number; nobody else may publish meanwhile."""
    number = read_pointer(store).generation + 1
    assert publish_negatives(store, *numbered(oracle, number), **options) == number
    return number


def publishing(store: Path, folder: Path, interval_s: float) -> multiprocessing.Process:
    """Start a process that publishes numbered generations, one every `interval_s`, until ended."""
    process = multiprocessing.get_context("forkserver").Process(
        target=_publish_for_ever, args=(store, folder, interval_s), daemon=True
    )
    process.start()
    return process  # type: ignore[return-value]


def _publish_for_ever(store: Path, folder: Path, interval_s: float) -> None:
    torch.set_num_threads(1)
    oracle = Oracle(folder)
    due = time.monotonic()
    while True:
        publish_numbered(store, oracle)
        due += interval_s
        time.sleep(max(0, due - time.monotonic()))


class Witness:
    """Tells which generation a batch was made from, and that it was made from no other."""

    def __init__(self, oracle: Oracle, split: str) -> None:
        self._oracle = oracle
        self._pairs = torch.tensor(oracle.splits[split])
        self._sources: Tensor = oracle.tables["source_embs"].to(torch.float32)
        self._number_of = {row.numpy().tobytes(): i for i, row in enumerate(self._sources)}
        assert len(self._number_of) == len(self._sources)

    def generation_of(self, batch: Mapping[str, Any], positions: list[int], first: int) -> int:
        """Return the number of the generation; it is above `first`, or `first` itself.

        `first` is not numbered: it holds what the builder's folder holds.
        """
        pairs = self._pairs[torch.tensor(positions)]
        number = self._number_of[batch["negative_embs"][0, 0].numpy().tobytes()]
        negatives, tiers = numbered(self._oracle, number, pairs)
        if not torch.equal(batch["negative_embs"][:, 0], self._sources[negatives[:, 0]]):
            number = first
            files = (self._oracle.tables["hard_negatives"], self._oracle.tables["negative_tiers"])
            negatives, tiers = (table[pairs].to(torch.int64) for table in files)
        assert torch.equal(batch["negative_embs"], self._sources[negatives]), "torn negatives"
        assert torch.equal(batch["negative_tiers"], tiers), "tiers of another generation"
        return number


def until(done: Callable[..., object], patience_s: float = 30.0) -> None:
    """Wait until `done()` is true; fail after `patience_s`."""
    end = time.monotonic() + patience_s
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def pointer_chain(*notes: str, sources: tuple[int, ...] = ()) -> Pointer:
    """Return the pointer after one generation a note; those in `sources` were made from files."""
    pointer: Pointer | None = None
    for number, note in enumerate(notes, 1):
        pointer = successor(
            pointer,
            number,
            Written(10 * number, f"sha{number}", 100 * number),
            store_id="id",
            source=STAMPS if number in sources else {},
            lint={"own_source_rows": number},
            files=["/home/miner/run/negatives.pt", "tiers.pt"] if note else [],
            rows=7,
            changed_rows=number - 1,
            similarity={"own": 0.5} if number == 2 else None,
            **({"note": note} if note else {}),
        )
    assert pointer is not None
    return pointer


def saved(tables: Tables, folder: Path, prefix: str = "") -> tuple[Path, Path]:
    """Write both tables as `.pt` files."""
    folder.mkdir(exist_ok=True)
    first, second = (folder / f"{prefix}{name}.pt" for name in NAMES)
    torch.save(tables[0], first)
    torch.save(tables[1], second)
    return first, second


def current_pointer(store: Path) -> dict[str, Any]:
    """Return the content of the pointer's file, read without the package."""
    pointer: dict[str, Any] = json.loads((store / FOLDER / POINTER).read_text())
    return pointer


def contents(store: Path) -> dict[str, bytes]:
    """Return every file of the folder of generations."""
    return {path.name: path.read_bytes() for path in (store / FOLDER).iterdir()}


def generations_left(store: Path) -> list[int]:
    """Return the numbers of the generations whose files are there."""
    return sorted(int(path.stem) for path in (store / FOLDER).glob("*.safetensors"))


def with_value(tables: Tables, at: int, row: int, column: int, value: int) -> Tables:
    """Return copies of both tables, one value of table `at` replaced."""
    changed = (tables[0].clone(), tables[1].clone())
    changed[at][row, column] = value
    return changed


def mounted(store: Path, options: str, program: str, *arguments: str) -> str:
    """Run a program that sees `store` under a mount of its own; skip where that is not allowed."""
    script = f'mount {options} && exec "$@"'
    command = ["unshare", "-m", "bash", "-c", script, "bash", sys.executable, "-W", "ignore"]
    ran = subprocess.run(
        [*command, "-c", program, str(store), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=IMPORTING,
        check=False,
    )
    if "unshare:" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip(f"cannot mount here: {ran.stderr}")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def generation_served(dataset: JASPERSteeringDataset, oracle: Oracle, first: int = 1) -> int:
    """Return the generation that a batch of the dataset is made from."""
    positions = list(range(8))
    batch = {k: v.cpu() for k, v in dataset.__getitems__(positions).columns.items()}
    return Witness(oracle, dataset.split).generation_of(batch, positions, first)


def file_of(store: Path, generation: int) -> Path:
    """Return the path of a generation's file."""
    return store / FOLDER / file_name(generation)
