"""What a loader says of itself: planted slow sides, changed generations, and other loaders."""

import logging
import multiprocessing
import os
import select
import signal
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    SequentialSampler,
    Subset,
    default_collate,
)

from jasper_mmap import (
    JASPERDataLoader,
    JASPERSteeringDataset,
    create_loader,
    publish_negatives,
    set_epoch,
    stats,
    validate_first_batch,
)
from jasper_mmap.dataset.control import COUNTS
from jasper_mmap.errors import UsageError, WorkerError
from jasper_mmap.loader.passes import local_pass
from jasper_mmap.loader.passes.local_pass import PlanReader
from tests.oracle import Oracle
from tests.publishing import Tables, until
from tests.serving import CONTEXTS, loader_of

SLOW_S = 0.01
BATCHES = 10
_fill = PlanReader.fill


def slow_fill(*arguments: Any) -> None:
    """Make a batch, in as long as a slow disk would take."""
    time.sleep(SLOW_S)
    _fill(*arguments)


def slow_worker(_: int) -> None:
    """Begin as a worker whose batches are slow."""
    local_pass.PlanReader.fill = slow_fill  # type: ignore[assignment, method-assign]


def slow_loader(store: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> JASPERDataLoader:
    """Return a loader of slow batches, of which no more than one a worker is made ahead."""
    dataset = JASPERSteeringDataset(store, "train")
    if not workers:
        monkeypatch.setattr(PlanReader, "fill", slow_fill)
        return JASPERDataLoader(dataset, 8)
    options: dict[str, Any] = {"multiprocessing_context": "fork", "prefetch_factor": 1}
    return JASPERDataLoader(dataset, 8, num_workers=workers, worker_init_fn=slow_worker, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_slow_data_is_waited_for(
    demo_store: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer asks again at once: it waits for most batches, and most of the time."""
    loader = slow_loader(demo_store, workers, monkeypatch)
    for _ in islice(loader, BATCHES):
        pass
    seen = loader.stats()
    assert seen.waits is not None
    assert seen.waits.p50_s is not None
    assert seen.waits.p50_s >= SLOW_S / 2
    assert seen.waits.total_s >= BATCHES * SLOW_S / 2
    assert seen.waited_share is not None
    assert seen.waited_share > 0.5
    assert (seen.ready_share is None) == (not workers)
    assert (seen.ready_share or 0.0) <= 0.5
    assert seen.workers == workers
    del loader


def next_has_come(loader: Any, batches: Any) -> bool:
    """Return whether the only worker has made the next batch."""
    replies = loader._pool._replies.fd
    return batches.count in batches._ready or bool(select.select([replies], [], [], 0)[0])


def test_slow_trainer_does_not_wait(demo_store: Path) -> None:
    """Its steps last until the next batch has come, and longer: all are ready but the first."""
    loader = loader_of(demo_store, "train", 8, 1, prefetch_factor=2)
    batches = iter(loader)
    for batch in islice(batches, BATCHES):
        until(partial(next_has_come, loader, batches))
        time.sleep(SLOW_S)
        del batch
    seen = loader.stats()
    assert seen.ready_share is not None
    assert seen.ready_share >= (BATCHES - 1) / BATCHES
    assert seen.waits is not None
    assert seen.steps is not None
    assert seen.steps.p50_s is not None
    assert seen.steps.count == BATCHES - 1
    assert seen.steps.p50_s >= SLOW_S * 0.96
    assert seen.waited_share is not None
    outside = (BATCHES - 1) * SLOW_S
    assert seen.waited_share <= 1 - outside / seen.steps.total_s
    del batches, loader


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_are_those_of_the_batches(demo_store: Path, workers: int) -> None:
    """Of a pass with a short last batch; the next pass begins anew."""
    loader = loader_of(demo_store, "val", 7, workers, drop_last=False)
    for begun in range(1, 3):
        rows = [len(batch["relevance"]) for batch in loader]
        assert rows[-1] < 7
        seen = stats(loader)
        assert (seen.batches, seen.samples) == (len(rows), sum(rows))
        assert (seen.split, seen.epoch, seen.generation) == ("val", 0, 1)
        assert seen.batches_since_change == begun * len(rows)
        assert seen.steps is not None
        assert seen.steps.count == len(rows)
        assert stats(loader.dataset_obj) == loader.stats() == seen
    del loader


def collate(samples: Any) -> Any:
    """Collate samples one by one."""
    return default_collate([dict(sample) for sample in samples])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("own_collate", [False, True])
def test_counts_of_a_sampler_that_was_given(
    demo_store: Path, workers: int, own_collate: bool
) -> None:
    """Batches of any size, some in no slot, and through torch's own iterator too."""
    dataset = JASPERSteeringDataset(demo_store, "train")
    sampler: Any = [[3], [1, 2], [4] * 90, [5, 6, 7]]
    context = "fork" if workers else None
    options: dict[str, Any] = {"collate_fn": collate} if own_collate else {}
    loader = JASPERDataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context=context,
        **options,
    )
    assert [len(batch["relevance"]) for batch in loader] == [1, 2, 90, 3]
    seen = loader.stats()
    assert (seen.batches, seen.samples, seen.slot_fallbacks) == (4, 96, 0)
    assert seen.waits is not None
    assert seen.waits.count == 4
    assert (seen.ready_share is None) == (own_collate or not workers)
    del loader


def test_counts_of_batches_over_our_own_sampler(demo_store: Path) -> None:
    """A batch sampler that was given, and resumes by itself: through torch's iterator too."""
    own = create_loader(demo_store, "val", 8)
    batches = BatchSampler(own.sampler_obj, 7, False)
    options = {"batch_sampler": batches, "collate_fn": collate}
    loader = JASPERDataLoader(own.dataset_obj, **options)  # type: ignore[arg-type]
    rows = [len(batch["relevance"]) for batch in loader]
    assert rows[-1] < 7
    assert (loader.stats().batches, loader.stats().samples) == (len(rows), sum(rows))


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_batches_are_slot_fallbacks(demo_store: Path, workers: int) -> None:
    """As many as the loader's slots count."""
    loader = loader_of(demo_store, "train", 8, workers, prefetch_factor=1 if workers else None)
    kept = list(loader)
    assert loader.stats().slot_fallbacks == loader.slot_fallbacks > 0
    del kept
    for _ in loader:
        pass
    assert loader.stats().slot_fallbacks < loader.slot_fallbacks  # of this pass alone
    del loader


def test_changed_generation_is_counted_from(store: Path, new: Tables) -> None:
    """From the next batch, in later passes too; one that serves none yet has none."""
    loader = create_loader(store, "train", 8)
    for _ in islice(loader, 5):
        pass
    publish_negatives(store, *new)
    assert (stats(loader).generation, stats(loader).batches_since_change) == (1, 5)
    loader.dataset_obj.reload_negatives()
    assert (stats(loader).generation, stats(loader).batches_since_change) == (2, 0)
    for _ in islice(loader, 3):
        pass
    for _ in islice(loader, 4):
        pass
    seen = stats(loader)
    assert (seen.batches, seen.generation, seen.batches_since_change) == (4, 2, 7)


def test_a_dead_worker_and_a_closed_dataset_leave_an_answer(demo_store: Path) -> None:
    """What was measured before is there."""
    loader = loader_of(demo_store, "train", 8, 1, prefetch_factor=1)
    batches = iter(loader)
    for _ in islice(batches, 4):
        pass
    os.kill(loader._pool.pids[0], signal.SIGKILL)
    with pytest.raises(WorkerError):
        list(batches)
    before = stats(loader)
    assert before.batches >= 4
    loader.dataset_obj.close()
    assert stats(loader) == stats(loader.dataset_obj) == before
    del batches, loader


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of passes so far, and forget it."""
    said = [r.getMessage() for r in caplog.records if " since it changed" in r.getMessage()]
    assert {r.levelno for r in caplog.records} <= {logging.INFO}
    caplog.clear()
    return said


@pytest.mark.parametrize("workers", [0, 1])
def test_one_line_a_pass(demo_store: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """With its last batch, whether or not the loop asks once more; later if it was left early."""
    caplog.set_level(logging.INFO, "jasper_mmap")
    loader = loader_of(demo_store, "train", 32, workers)
    validate_first_batch(loader)
    assert stats(loader).batches == 0
    count = len(loader)
    for _ in loader:
        assert len(lines(caplog)) == (stats(loader).batches == count)
    assert lines(caplog) == []
    set_epoch(loader, 1)
    for _ in islice(loader, count):
        pass
    (line,) = lines(caplog)
    assert line.startswith(f"train epoch 1: {count} batches, {32 * count} samples, ")
    for _ in islice(loader, 3):
        pass
    assert lines(caplog) == []
    left = iter(loader)
    (line,) = lines(caplog)
    assert line.startswith("train epoch 1: 3 batches, 96 samples, ")
    next(left)
    both = iter(loader)  # the other one goes on: nothing has ended
    next(both)
    assert lines(caplog) == []
    del left, both, loader


@pytest.mark.parametrize("context", CONTEXTS)
def test_batches_of_torchs_loader_are_counted(
    demo_store: Path, context: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In its workers; waits are None, and that is said, in the line of the next epoch too."""
    caplog.set_level(logging.INFO, "jasper_mmap")
    dataset = JASPERSteeringDataset(demo_store, "train")
    loader = DataLoader(dataset, 32, num_workers=1, multiprocessing_context=context)
    rows = [len(batch["relevance"]) for batch in loader]
    seen = stats(loader)
    assert (seen.batches, seen.samples) == (len(rows), sum(rows)) == (len(loader), len(dataset))
    assert (seen.generation, seen.batches_since_change) == (1, len(rows))
    assert (seen.waits, seen.steps, seen.waited_share, seen.ready_share) == (None,) * 4
    assert "waits are not measured" in seen.note
    assert lines(caplog) == []
    set_epoch(loader, 1)
    assert lines(caplog) == [str(seen)]
    assert stats(loader).batches == 0
    assert stats(loader).batches_since_change == len(rows)
    dataset.close()
    assert stats(loader).epoch == 1


def rows_taken(dataset: JASPERSteeringDataset) -> int:
    """Return how many rows of counts are in use."""
    words = dataset.read_counts._words.control.page.words
    return sum(bool(words[at]) for at in COUNTS[::8])


def test_workers_of_many_epochs_and_of_two_loaders_are_all_counted(demo_store: Path) -> None:
    """Each batch once, in rows that do not become more with the epochs."""
    dataset = JASPERSteeringDataset(demo_store, "val")
    first, second = (
        DataLoader(dataset, 4, num_workers=1, multiprocessing_context="fork", collate_fn=collate)
        for _ in range(2)
    )
    made = 0
    for _ in range(3):
        made += sum(2 for _ in zip(first, second, strict=True))
    made += sum(1 for _ in DataLoader(dataset, 4))
    assert dataset.read_counts.total().batches == made == 7 * len(first)
    assert rows_taken(dataset) == 2  # as many as there were processes at once


def test_slot_fallbacks_and_generations_of_torchs_loader(store: Path, new: Tables) -> None:
    """Of reads in the trainer: four slots, and the first batch has memory of its own."""
    dataset = JASPERSteeringDataset(store, "train")
    loader = DataLoader(dataset, 8)
    kept = list(islice(loader, 10))
    assert stats(loader).slot_fallbacks == 10 - 1 - 4
    publish_negatives(store, *new)
    dataset.reload_negatives()
    assert stats(loader).batches_since_change == 0
    del kept[:]
    for _ in islice(loader, 2):
        pass
    seen = stats(loader)
    assert (seen.batches, seen.generation, seen.batches_since_change) == (12, 2, 2)
    dataset[0]
    assert stats(loader).samples == seen.samples + 1


def _read(dataset: JASPERSteeringDataset, queue: Any) -> None:
    _ = dataset[[1, 2, 3]]
    queue.put(stats(dataset).samples)


def test_another_process_counts_for_itself(demo_store: Path) -> None:
    """Neither does it count in the trainer's stats, nor does it begin with them."""
    dataset = JASPERSteeringDataset(demo_store, "train")
    _ = dataset[[0, 1]]
    dataset.set_epoch(1)
    _ = dataset[[0, 1]]
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    child = fork.Process(target=_read, args=(dataset, queue))
    child.start()
    assert queue.get() == 3
    child.join()
    assert stats(dataset).samples == 2


def test_stats_take_what_set_epoch_takes(demo_store: Path, demo_folder: Path) -> None:
    """Of several datasets the counts add up; what has none of ours is an error."""
    splits = JASPERSteeringDataset.create_combined_splits(demo_store)
    train, val = splits["train"], splits["val"]
    for _ in DataLoader(Subset(train, range(10)), 5):
        pass
    for _ in DataLoader(val, batch_sampler=BatchSampler(SequentialSampler(val), 5, False)):
        pass
    assert stats(Subset(train, [0])).batches == 2
    together = stats(ConcatDataset([train, val]))
    val_pairs = len(Oracle(demo_folder).splits["val"])
    assert together.samples == 10 + val_pairs
    assert together.batches == 2 + -(-val_pairs // 5)
    assert (together.split, together.epoch, together.generation) == ("train, val", 0, 1)
    assert together.waits is None
    assert "several datasets" in together.note
    train.set_epoch(4)
    assert stats(ConcatDataset([train, val])).epoch is None
    with pytest.raises(UsageError, match="stats takes"):
        stats([1, 2])  # type: ignore[arg-type]


def test_a_loader_of_torch_is_not_another_loader_of_its_dataset(demo_store: Path) -> None:
    """Each answers for itself, and the dataset for the latest pass of ours."""
    loader = create_loader(demo_store, "train", 8)
    assert stats(loader).batches == 0
    other = DataLoader(loader.dataset_obj, 16)
    assert sum(1 for _ in islice(other, 3)) == 3
    assert stats(loader).samples == 3 * 16  # as where a tool has made another loader of it
    assert sum(1 for _ in islice(loader, 2)) == 2
    assert (stats(other).samples, stats(loader).samples) == (48, 16)
    assert stats(loader.dataset_obj) == stats(loader)
