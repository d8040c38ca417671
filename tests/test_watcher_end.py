"""How a watch ends, and where there can be none."""

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from jasper_mmap import JASPERSteeringDataset, watch_negatives
from jasper_mmap.errors import UsageError
from jasper_mmap.negatives import FOLDER, file_name
from tests.oracle import Oracle
from tests.publishing import (
    DATA,
    IMPORTING,
    Witness,
    numbered,
    own_copy,
    publish_numbered,
    until,
)
from tests.serving import Named, NamedOracle, loader_of

QUICK_S = 0.02


@pytest.fixture
def store(store_named: Named, tmp_path: Path) -> Path:
    """Return a store that the test may change."""
    return own_copy(store_named(DATA), tmp_path / "store")


@pytest.fixture
def oracle(oracle_named: NamedOracle) -> Oracle:
    """Return the oracle of that store."""
    return oracle_named(DATA)


@pytest.fixture
def dataset(store: Path) -> Iterator[JASPERSteeringDataset]:
    """Return the train split of that store."""
    with JASPERSteeringDataset(store, "train") as opened:
        yield opened


def generation_served(dataset: JASPERSteeringDataset, oracle: Oracle, first: int = 1) -> int:
    """Return the generation that a batch of the dataset is made from."""
    positions = list(range(8))
    batch = {k: v.cpu() for k, v in dataset.__getitems__(positions).columns.items()}
    return Witness(oracle, dataset.split).generation_of(batch, positions, first)


def file_of(store: Path, generation: int) -> Path:
    """Return the path of a generation's file."""
    return store / FOLDER / file_name(generation)


# How a watch ends


def test_watch_ends_with_its_dataset_or_loader(store: Path) -> None:
    """Closed or dropped, what is watched for takes the thread with it."""
    dataset = JASPERSteeringDataset(store, "train")
    watcher = watch_negatives(dataset, QUICK_S)
    dataset.close()
    until(lambda: not watcher.running)
    watcher.stop()

    loader = loader_of(store, "train", 8, watch=True)
    watcher, kept = loader.watcher, loader.dataset_obj
    del loader
    gc.collect()
    until(lambda: not watcher.running)
    assert kept.adoption.listeners == []


def test_stop_joins_the_thread_and_may_be_called_from_it(store: Path, oracle: Oracle) -> None:
    """After `stop()` nothing is adopted; a callback may stop its own watch."""
    with JASPERSteeringDataset(store, "train") as dataset:
        watcher = watch_negatives(dataset, 3600)
        watcher.stop()
        watcher.stop()
        assert not watcher.running
        publish_numbered(store, oracle)
        assert dataset.generation == 1
        dataset.reload_negatives()
        watcher = watch_negatives(dataset, QUICK_S, on_reload=lambda _: watcher.stop())
        publish_numbered(store, oracle)
        until(lambda: not watcher.running)
        assert dataset.generation == 3


def test_forgotten_watch_hangs_nothing(store: Path) -> None:
    """A process that never stops its watch, and leaves its loader half-way, ends at once."""
    program = (
        "import sys; from jasper_mmap import create_loader;"
        "loader = create_loader(sys.argv[1], 'train', 8, 2, watch=True);"
        "batch = next(iter(loader)); print('end', flush=True)"
    )
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(store)],
        capture_output=True,
        text=True,
        timeout=60,
        env=IMPORTING,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "end\n", "")
    assert time.monotonic() - started < 30


class WatchesInItsWorker(JASPERSteeringDataset):
    """A dataset that does in a worker what only the main process may do."""

    def __getitems__(self, indices: Any) -> Any:
        for act in (lambda: watch_negatives(self), self.reload_negatives):
            with pytest.raises(UsageError):
                act()
        return super().__getitems__(indices)


def test_workers_neither_watch_nor_adopt(store: Path) -> None:
    """Both are refused there; a worker has one thread."""
    dataset = WatchesInItsWorker(store, "train")
    assert len(list(DataLoader(dataset, 64, num_workers=1, multiprocessing_context="fork"))) > 0


@pytest.mark.parametrize("arguments", [{"adopt": "later"}, {"interval_s": 0}])
def test_watch_refuses_arguments_that_cannot_be(store: Path, arguments: dict[str, Any]) -> None:
    """A misspelt mode or an interval of nothing is an error at once."""
    with JASPERSteeringDataset(store, "train") as dataset, pytest.raises(UsageError):
        watch_negatives(dataset, **arguments)


# Read-only


def test_watcher_on_a_read_only_mount_adopts(store: Path, oracle: Oracle, tmp_path: Path) -> None:
    """What is published through the writable path is served through the read-only one."""
    mount = tmp_path / "read_only"
    mount.mkdir()
    script = 'mount --bind "$0" "$1" && mount -o remount,bind,ro "$1" && exec "${@:2}"'
    program = (
        "import sys, time; from jasper_mmap import JASPERSteeringDataset, watch_negatives\n"
        "d = JASPERSteeringDataset(sys.argv[1], 'train')\n"
        "with watch_negatives(d, 0.02):\n"
        "    print('open', d.generation, flush=True)\n"
        "    while d.generation == 1: time.sleep(0.01)\n"
        "print(d[0]['negative_tiers'].tolist(), d.reload_negatives())\n"
    )
    command = ["unshare", "-m", "bash", "-c", script, str(store), str(mount)]
    reader = subprocess.Popen(
        [*command, sys.executable, "-W", "ignore", "-c", program, str(mount)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=IMPORTING,
        text=True,
    )
    assert reader.stdout is not None
    if reader.stdout.readline() != "open 1\n":
        reader.wait()
        pytest.skip(f"cannot mount here: {reader.stderr.read() if reader.stderr else ''}")
    number = publish_numbered(store, oracle)
    answer, complaint = reader.communicate(timeout=60)
    tiers = numbered(oracle, number)[1][oracle.splits["train"][0]].tolist()
    assert answer == f"{tiers} {number}\n", complaint
