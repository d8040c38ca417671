"""Slots of torch's workers come and go with them, and whatever happens leaves nothing behind."""

import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.dataset import received_batches
from jasper_mmap.errors import WorkerError
from tests.oracle import assert_batches_equal
from tests.publishing import IMPORTING
from tests.serving import CONTEXTS

SIZE = 16


@pytest.fixture
def dataset(demo_store: Path) -> Iterator[JASPERSteeringDataset]:
    """Return the train split of the tidy synthetic store."""
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        yield dataset


@pytest.fixture
def want(dataset: JASPERSteeringDataset) -> list[dict[str, Tensor]]:
    """Return its batches of an unshuffled pass, read one by one in this process."""
    starts = range(0, len(dataset), SIZE)
    return [
        dict(dataset.__getitems__([*range(len(dataset))][s : s + SIZE]).columns) for s in starts
    ]


def stock(dataset: Any, workers: int = 2, context: str = "fork", **options: Any) -> Any:
    """Return torch's own loader over all batches in order."""
    return DataLoader(
        dataset, SIZE, num_workers=workers, multiprocessing_context=context, **options
    )


def assert_pass(batches: Any, want: list[dict[str, Tensor]]) -> None:
    """Require exactly these batches."""
    for batch, expected in zip(batches, want, strict=True):
        assert_batches_equal(batch, expected)


def held() -> tuple[int, int]:
    """The number of descriptors of this process, and of its mappings of slots."""
    gc.collect()
    mappings = Path("/proc/self/maps").read_text().count("jasper-slots")
    return len([*Path("/proc/self/fd").iterdir()]), mappings


def slots_in_use() -> int:
    """The bytes of memory in the slots of workers that this process maps."""
    blocks = {}
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if "jasper-slots" in fd.readlink().name:
                status = fd.stat()
                blocks[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return sum(blocks.values())


@pytest.mark.parametrize("context", CONTEXTS)
def test_new_workers_in_every_epoch_leave_nothing(
    dataset: JASPERSteeringDataset, want: list[dict[str, Tensor]], context: str
) -> None:
    """Nor does a batch that outlives them, once it is dropped."""
    loader = stock(dataset, context=context)
    kept: Any = next(iter(loader))  # starts what multiprocessing keeps
    kept = None
    before = held()
    assert before[1] == 0
    for _ in range(8 if context == "fork" else 1):
        assert_pass(loader, want)
        batches = [*loader]
        kept = batches[-1]
        del batches
    assert_batches_equal(kept, want[-1])
    assert held()[1] > 0
    kept = None
    descriptors, mappings = held()
    assert descriptors <= before[0]
    assert mappings == 0
    assert not received_batches._known


def test_larger_batches_replace_the_slots_of_smaller_ones(dataset: JASPERSteeringDataset) -> None:
    """The trainer keeps the memory of the largest only."""
    sizes = [1, 2, 5, 3, 11, 40, 7, 100, 410, 1, 3, 3, 3, 3]
    sampler = [list(range(size)) for size in sizes]
    loader: Any = DataLoader(dataset, batch_sampler=sampler, num_workers=1, persistent_workers=True)
    for _ in range(2):
        for batch, positions in zip(loader, sampler, strict=True):
            assert len(batch["relevance"]) == len(positions)
            assert not batch["relevance"].is_shared()
    assert len(received_batches._known) == 1


def test_kept_batches_grow_the_memory_and_give_it_back(
    dataset: JASPERSteeringDataset, want: list[dict[str, Tensor]]
) -> None:
    """While the workers idle, too."""
    loader = stock(dataset, persistent_workers=True)
    assert_pass(loader, want)
    kept = [batch for _ in range(6) for batch in loader]
    full = slots_in_use()
    for number, batch in enumerate(kept):
        assert_batches_equal(batch, want[number % len(want)])
    assert full > len(kept) * want[0]["negative_embs"].nbytes
    del batch
    kept.clear()
    gc.collect()
    assert slots_in_use() < full / 2
    assert_pass(loader, want)


@pytest.mark.parametrize("persistent", [False, True])
def test_abandoned_iterators_lose_no_slot(
    dataset: JASPERSteeringDataset, want: list[dict[str, Tensor]], persistent: bool
) -> None:
    """Stopped early, again and again, with a batch in hand or none."""
    loader = stock(dataset, persistent_workers=persistent, prefetch_factor=4)
    batches = iter(loader)
    assert_pass(batches, want)
    used = slots_in_use()
    del batches
    for stop in (1, 5, 2, 9, 1, 1, 3):
        for number, batch in enumerate(loader):
            assert_batches_equal(batch, want[number])
            if number == stop:
                break
    if persistent:
        assert slots_in_use() <= used * 1.5
    assert_pass(loader, want)


def test_two_iterators_at_once_do_not_disturb_each_other(
    dataset: JASPERSteeringDataset, want: list[dict[str, Tensor]]
) -> None:
    """Nor do two loaders over one dataset."""
    loader = stock(dataset)
    for one, other, third, expected in zip(loader, loader, stock(dataset, 1), want, strict=True):
        for batch in (one, other, third):
            assert_batches_equal(batch, expected)


def test_batches_outlive_a_killed_worker(
    dataset: JASPERSteeringDataset, want: list[dict[str, Tensor]]
) -> None:
    """torch reports its death; what was taken stays right and gives everything back."""
    batches = iter(stock(dataset, prefetch_factor=1))
    kept = [next(batches) for _ in range(6)]
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        kept += batches
    del batches
    gc.collect()
    assert not received_batches._known
    for batch, expected in zip(kept, want, strict=False):
        assert_batches_equal(batch, expected)
    del batch
    kept.clear()
    assert held()[1] == 0


def test_a_number_of_unknown_slots_is_refused() -> None:
    """A process that did not get the first batch serves nothing."""
    with pytest.raises(WorkerError, match="does not know"):
        received_batches.receive(b"0" * 16, 0, 3)


class Diverting:
    """A collate that puts each batch into a queue of the user's own, too."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def __call__(self, samples: list[Any]) -> Any:
        batch = default_collate(samples)
        self.queue.put(batch)
        return batch


def test_other_queues_get_the_data(
    dataset: JASPERSteeringDataset, want: list[dict[str, Tensor]]
) -> None:
    """In a worker and in the trainer: only the result queue of a worker carries numbers."""
    workers, trainers = (multiprocessing.get_context("fork").Queue() for _ in range(2))
    loader = stock(dataset, 1, collate_fn=Diverting(workers))
    for batch, expected in zip(loader, want, strict=True):
        assert_batches_equal(batch, expected)
        trainers.put(batch)
        del batch
        for queue in (workers, trainers):
            taken = queue.get(timeout=60)
            assert all(column.is_shared() for column in taken.values())  # by torch's transport
            assert_batches_equal(taken, expected)
    for queue in (workers, trainers):
        queue.close()
        queue.join_thread()


def without_memfd(_worker: int = 0) -> None:
    """Make the system look like one without memfd_create, in this process."""

    def refuse(*_: Any) -> int:
        raise OSError(1, "Operation not permitted")

    os.memfd_create = refuse  # type: ignore[assignment]


def test_without_memfd_batches_travel_as_torch_sends_them(
    dataset: JASPERSteeringDataset, want: list[dict[str, Tensor]]
) -> None:
    """Where a sandbox forbids it in workers."""
    loader = stock(dataset, worker_init_fn=without_memfd)
    for batch, expected in zip(loader, want, strict=True):
        assert batch["relevance"].is_shared()
        assert_batches_equal(batch, expected)


def test_closing_the_dataset_leaves_batches(
    dataset: JASPERSteeringDataset, want: list[dict[str, Tensor]]
) -> None:
    """Those that were taken, with and without workers."""
    for workers in (0, 2):
        with JASPERSteeringDataset(dataset.dataset_dir, "train") as other:
            loader: Any = DataLoader(other, SIZE, num_workers=workers)
            kept = [*loader]
        assert_pass(kept, want)


def test_a_copy_by_pickle_has_slots_of_its_own(
    dataset: JASPERSteeringDataset, want: list[dict[str, Tensor]]
) -> None:
    """Both serve at once."""
    loader = stock(dataset, 0, None)  # type: ignore[arg-type]
    assert_pass(loader, want)
    twin = pickle.loads(pickle.dumps(dataset))
    for one, other, expected in zip(loader, stock(twin), want, strict=True):
        assert_batches_equal(one, expected)
        assert_batches_equal(other, expected)


SCRIPT = """
    import sys
    from torch.utils.data import DataLoader
    from jasper_mmap import JASPERSteeringDataset

    if __name__ == "__main__":
        dataset = JASPERSteeringDataset(sys.argv[1], "train")
        sampler = [list(range(400))] * 8
        batches = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=int(sys.argv[2])))
        kept = [next(batches) for _ in range(6)]
        cycle = kept[0], []
        cycle[1].append(cycle)
        print(sum(len(batch["relevance"]) for batch in kept))
"""


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=IMPORTING, check=False
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_interpreter_ends_quietly_with_batches_in_hand(
    demo_store: Path, tmp_path: Path, workers: int
) -> None:
    """Whatever is taken apart first."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    ended = run([sys.executable, str(script), str(demo_store), str(workers)])
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "2400\n", "")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_the_size_of_dev_shm_is_no_limit(demo_store: Path, tmp_path: Path) -> None:
    """Batches of a megabyte pass where it has no more than that."""
    small = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    if run(["unshare", "-rm", "sh", "-c", small]).returncode:
        pytest.skip("no mounting here")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = f"{small} && exec {sys.executable} {script} {demo_store} 2"
    ended = run(["unshare", "-rm", "sh", "-c", command])
    assert (ended.returncode, ended.stdout) == (0, "2400\n"), ended.stderr
