"""The splits of `create_combined_splits` serve one generation, each in its own epoch."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import ConcatDataset, DataLoader

from jasper_mmap import Batch, JASPERSteeringDataset, set_epoch, watch_negatives
from jasper_mmap.errors import ClosedError, UsageError
from jasper_mmap.rules.names import Split
from tests.oracle import VARIANTS, Oracle
from tests.publishing import Witness, publish_numbered, until
from tests.serving import SPLITS, variants_in_epoch, variants_of

QUICK_S = 0.02

Splits = dict[Split, JASPERSteeringDataset]


@pytest.fixture
def splits(store: Path) -> Iterator[Splits]:
    """Return the three splits of `store`, over one set of mappings."""
    opened = JASPERSteeringDataset.create_combined_splits(store)
    yield opened
    for dataset in opened.values():
        dataset.close()


def served(splits: Splits, oracle: Oracle) -> list[int]:
    """Return the generation that a batch of each split is made from, those closed left out."""
    found = []
    for split, dataset in splits.items():
        if not dataset.closed:
            positions = list(range(8))
            batch = dataset.__getitems__(positions).columns
            found.append(Witness(oracle, split).generation_of(batch, positions, 1))
            assert dataset.generation == found[-1]
    return found


def by_reload(dataset: JASPERSteeringDataset, number: int) -> None:
    """Look for a newer generation now."""
    assert dataset.reload_negatives() == number


def by_watch(dataset: JASPERSteeringDataset, number: int) -> None:
    """Watch one of them."""
    with watch_negatives(dataset, QUICK_S):
        until(lambda: dataset.generation == number)


def by_epoch(dataset: JASPERSteeringDataset, number: int) -> None:
    """Watch one of them, which then begins an epoch."""
    with watch_negatives(dataset, QUICK_S, adopt="epoch"):
        until(lambda: dataset.adoption.nominee.number == number)
        assert dataset.generation < number
        dataset.set_epoch(1)


@pytest.mark.parametrize("switch", [by_reload, by_watch, by_epoch])
@pytest.mark.parametrize("through", SPLITS)
def test_switch_through_one_serves_all(
    splits: Splits,
    store: Path,
    oracle: Oracle,
    through: Split,
    switch: Callable[[JASPERSteeringDataset, int], None],
) -> None:
    """A validation loop compares with what training sees, whichever of them was told."""
    assert served(splits, oracle) == [1, 1, 1]
    for _ in range(2):
        number = publish_numbered(store, oracle)
        switch(splits[through], number)
        assert served(splits, oracle) == [number] * 3


def test_persistent_workers_of_the_other_splits_follow(
    splits: Splits, store: Path, oracle: Oracle
) -> None:
    """A switch through train reaches the workers of val, in a pass that begins after it."""
    loader: DataLoader[Any] = DataLoader(
        splits["val"], 8, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    witness = Witness(oracle, "val")
    for number in (1, 2, 3):
        if number > 1:
            assert publish_numbered(store, oracle) == number
            splits["train"].reload_negatives()
        for at, batch in enumerate(loader):
            positions = list(range(8 * at, 8 * at + len(batch["relevance"])))
            assert witness.generation_of(batch, positions, 1) == number
    del loader


def test_only_the_epoch_of_a_watched_split_adopts(
    splits: Splits, store: Path, oracle: Oracle
) -> None:
    """What the watch of train holds waits for an epoch of train."""
    with watch_negatives(splits["train"], QUICK_S, adopt="epoch"):
        publish_numbered(store, oracle)
        until(lambda: splits["train"].adoption.nominee.number == 2)
        set_epoch(splits["val"], 3)
        assert served(splits, oracle) == [1, 1, 1]
        set_epoch(splits["train"], 3)
        assert served(splits, oracle) == [2, 2, 2]


def test_epoch_and_forced_steering_stay_each_ones_own(splits: Splits, store: Path) -> None:
    """Only the generation is shared."""
    splits["train"].set_epoch(4)
    splits["val"].force_steering("residual")
    assert [dataset.current_epoch for dataset in splits.values()] == [4, 0, 0]
    assert variants_of(splits["train"]) == variants_in_epoch(store, "train", 4)
    assert set(variants_of(splits["val"])) == {VARIANTS.index("residual")}
    assert variants_of(splits["test"]) == variants_in_epoch(store, "test", 0)


def test_closing_one_leaves_the_others(splits: Splits, store: Path, oracle: Oracle) -> None:
    """They go on serving, and switching."""
    watcher = watch_negatives(splits["train"], QUICK_S)
    splits["train"].close()
    until(lambda: not watcher.running)
    with pytest.raises(ClosedError):
        splits["train"].reload_negatives()
    publish_numbered(store, oracle)
    splits["test"].reload_negatives()
    assert served(splits, oracle) == [2, 2]
    assert splits["test"].adoption.listeners == []


def test_copy_of_one_goes_its_own_way(splits: Splits, store: Path, oracle: Oracle) -> None:
    """A pickled split keeps its words, and switches for itself."""
    splits["val"].set_epoch(6)
    with pickle.loads(pickle.dumps(splits["val"])) as copy:
        publish_numbered(store, oracle)
        assert copy.reload_negatives() == 2
        copy.set_epoch(7)
        assert served(splits, oracle) == [1, 1, 1]
        assert splits["val"].current_epoch == 6
        assert served({"val": copy}, oracle) == [2]


# Several watches on one set


def test_watch_keeps_and_drops_only_what_it_holds_itself(
    splits: Splits, store: Path, oracle: Oracle
) -> None:
    """The end of one watch loses nothing that another one holds for its epoch."""
    with watch_negatives(splits["train"], QUICK_S, adopt="epoch"):
        with watch_negatives(splits["val"], QUICK_S, adopt="epoch"):
            publish_numbered(store, oracle)
            until(lambda: splits["train"].adoption.nominee.number == 2)
            until(lambda: all(w.held for w in splits["val"].adoption._running()))
        splits["val"].set_epoch(1)  # what its watch held ended with it
        assert served(splits, oracle) == [1, 1, 1]
        splits["train"].set_epoch(1)
        assert served(splits, oracle) == [2, 2, 2]


def test_watch_that_adopts_at_another_time_is_refused(splits: Splits) -> None:
    """Now or with the epoch: of what is served together there is one answer."""
    with watch_negatives(splits["train"], 3600, adopt="epoch"):
        with pytest.raises(UsageError, match=r"adopt='now'.*adopt='epoch'"):
            watch_negatives(splits["val"], 3600)
        both: ConcatDataset[Batch] = ConcatDataset([splits["val"], splits["test"]])
        watch_negatives(DataLoader(both), 3600, adopt="epoch").stop()
    watch_negatives(splits["val"], 3600).stop()


def test_refused_watch_of_several_sets_leaves_nothing(splits: Splits, store: Path) -> None:
    """Where one of the sets refuses, the others are not watched either."""
    with JASPERSteeringDataset(store, "train") as alone:
        several: ConcatDataset[Batch] = ConcatDataset([alone, splits["val"]])
        with watch_negatives(splits["train"], 3600, adopt="epoch"):
            with pytest.raises(UsageError):
                watch_negatives(several, 3600)
            assert alone.adoption.listeners == []
            assert alone.adoption._running() == []


def test_watch_of_several_sets_switches_each(store: Path, oracle: Oracle) -> None:
    """A loader over datasets that were opened one by one is watched as a whole."""
    told: list[int] = []
    parts = [JASPERSteeringDataset(store, split) for split in ("train", "val")]
    with watch_negatives(ConcatDataset(parts), QUICK_S, on_reload=told.append) as watcher:
        publish_numbered(store, oracle)
        until(lambda: [part.generation for part in parts] == [2, 2])
        until(lambda: told == [2, 2])
        parts[0].close()
        publish_numbered(store, oracle)
        until(lambda: parts[1].generation == 3)
        parts[1].close()
        until(lambda: not watcher.running)
