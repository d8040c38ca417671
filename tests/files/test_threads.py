"""Threads that iterate one loader: each has a pass of its own; an iterator is for one thread."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import default_collate

from jasper_mmap.errors import UsageError
from jasper_mmap.loader.passes.order import PassCounter
from tests.serving import loader_of

THREADS = 4


@pytest.fixture(autouse=True)
def _hostile_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Callable[[], Any]) -> list[Any]:
    """Do `work` in several threads at once; return what each returned or raised."""
    start, found = threading.Barrier(THREADS), []

    def run() -> None:
        start.wait()
        try:
            found.append(work())
        except Exception as error:  # noqa: BLE001
            found.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def collate(samples: Any) -> Any:
    """Collate as a user might, who sees samples."""
    return default_collate(list(samples))


def relevance_of(loader: Any) -> list[list[float]]:
    """Serve a pass; return the relevance of each batch."""
    return [batch["relevance"].tolist() for batch in loader]


def take(iterator: Any, taken: list[Any], refused: list[UsageError]) -> None:
    """Take batches until there are no more."""
    while True:
        try:
            taken.append(next(iterator))
        except StopIteration:
            return
        except UsageError as error:
            refused.append(error)


@pytest.mark.parametrize(("workers", "foreign"), [(0, False), (2, False), (0, True)])
def test_each_thread_has_a_pass_of_its_own(demo_store: Path, workers: int, foreign: bool) -> None:
    """Every pass is whole, and no two threads are given the same one."""
    loader = loader_of(demo_store, "train", 16, workers)
    if foreign:  # torch's own iterator
        loader.collate_fn = collate
    iterate = partial(relevance_of, loader)
    first = iterate()
    assert len(first) == len(loader)
    for _ in range(5):
        found = in_threads(iterate)
        assert [len(batches) for batches in found] == [len(loader)] * THREADS
        assert len({str(batches) for batches in (first, *found)}) == 1 + THREADS
    assert loader.sampler_obj.passes.peek().pass_number == 1 + 5 * THREADS
    del loader, iterate


@pytest.mark.parametrize("workers", [0, 2])
def test_no_batch_of_an_iterator_comes_twice(demo_store: Path, workers: int) -> None:
    """Whoever comes while another thread takes a batch is told so; together they miss nothing."""
    loader = loader_of(demo_store, "train", 8, workers)
    iterator = iter(loader)
    taken: list[Any] = []
    refused: list[UsageError] = []
    in_threads(partial(take, iterator, taken, refused))
    assert len(taken) == len(loader)
    assert all("one thread at a time" in str(error) for error in refused)
    del loader, iterator, taken


def test_passes_begun_at_once_are_counted_one_by_one(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes to count one."""
    loader = loader_of(demo_store, "train", 64)
    count = PassCounter._coming

    def slow(*arguments: Any) -> Any:
        coming = count(*arguments)
        time.sleep(0.05)
        return coming

    monkeypatch.setattr(PassCounter, "_coming", slow)
    begun = in_threads(lambda: iter(loader).plan.pass_number)
    assert sorted(begun) == list(range(THREADS))
