"""How a watch ends, and where there can be none."""

import gc
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from jasper_mmap import JASPERSteeringDataset, watch_negatives
from jasper_mmap.errors import UsageError
from jasper_mmap.loader import watcher as watcher_module
from tests.oracle import Oracle
from tests.publishing import (
    DATA,
    IMPORTING,
    file_of,
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


@pytest.mark.parametrize(
    "arguments",
    [
        {"adopt": "later"},
        *({"interval_s": s} for s in (0, -1.0, math.inf, math.nan, 1e300, "1", True)),
    ],
)
def test_watch_refuses_arguments_that_cannot_be(store: Path, arguments: dict[str, Any]) -> None:
    """A misspelt mode, or an interval that cannot be waited for, is an error at once."""
    with (
        JASPERSteeringDataset(store, "train") as dataset,
        pytest.raises(UsageError, match=next(iter(arguments))),
    ):
        watch_negatives(dataset, **arguments)


@pytest.mark.parametrize("interval_s", [np.float32(0.02), np.int64(1), threading.TIMEOUT_MAX])
def test_watch_takes_any_number_of_seconds(store: Path, interval_s: Any) -> None:
    """Of numpy too, and the longest that a thread can wait."""
    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, interval_s) as watcher,
    ):
        time.sleep(0.1)
        assert watcher.running


# Callbacks


ANYTHING = (
    RuntimeError("mine"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    MemoryError(),
)


@pytest.mark.parametrize("failure", ANYTHING, ids=lambda failure: type(failure).__name__)
def test_callback_that_raises_anything_is_told_to_on_error(
    failure: BaseException, store: Path, oracle: Oracle
) -> None:
    """In the watch's own thread nothing passes, and the next generation is adopted as well."""
    told: list[BaseException] = []

    def fail(_: object) -> None:
        raise failure

    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, QUICK_S, on_reload=fail, on_error=told.append) as watcher,
    ):
        for count in (1, 2):
            number = publish_numbered(store, oracle)
            until(lambda count=count: len(told) == count)
            assert dataset.generation == number
        assert watcher.running
    assert told == [failure, failure]


@pytest.mark.parametrize("failure", ANYTHING, ids=lambda failure: type(failure).__name__)
def test_failing_on_error_ends_no_watch(
    failure: BaseException, store: Path, oracle: Oracle
) -> None:
    """It hears of its own failure from nobody but the log."""
    calls: list[object] = []

    def fail(error: object) -> None:
        calls.append(error)
        raise failure

    with JASPERSteeringDataset(store, "train") as dataset:
        file_of(store, publish_numbered(store, oracle)).write_bytes(b"spoilt")
        watcher = watch_negatives(dataset, QUICK_S, on_error=fail)
        until(lambda: calls)
        number = publish_numbered(store, oracle)
        until(lambda: dataset.generation == number)
        assert watcher.running
    assert len(calls) == 1


@pytest.mark.parametrize("failure", ANYTHING, ids=lambda failure: type(failure).__name__)
def test_callback_in_the_trainers_thread_lets_interrupts_pass(
    failure: BaseException, store: Path, oracle: Oracle
) -> None:
    """`SystemExit` there ends the training as anywhere; an error is told to on_error."""
    told: list[BaseException] = []

    def fail(_: object) -> None:
        raise failure

    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, 3600, on_reload=fail, on_error=told.append) as watcher,
    ):
        number = publish_numbered(store, oracle)
        if isinstance(failure, Exception):
            assert dataset.reload_negatives() == number
            assert told == [failure]
        else:
            with pytest.raises(type(failure)):
                dataset.reload_negatives()
            assert told == []
        assert dataset.generation == number
        assert watcher.running


def test_handler_of_the_log_that_fails_ends_no_watch(
    store: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A logger may hand every record to a trainer's own code."""
    reached: list[object] = []

    def fail(*words: object) -> None:
        reached.append(words)
        raise SystemExit(3)

    monkeypatch.setattr(watcher_module._log, "error", fail)
    with JASPERSteeringDataset(store, "train") as dataset:
        file_of(store, publish_numbered(store, oracle)).write_bytes(b"spoilt")
        watcher = watch_negatives(dataset, QUICK_S)
        until(lambda: reached)
        number = publish_numbered(store, oracle)
        until(lambda: dataset.generation == number)
        assert watcher.running


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
