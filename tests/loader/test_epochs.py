"""`set_epoch` and its kin reach every dataset that what they are given leads to."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Subset,
    TensorDataset,
)

from jasper_mmap import (
    JASPERSteeringDataset,
    create_loader,
    set_epoch,
    validate_first_batch,
    watch_negatives,
)
from jasper_mmap.errors import UsageError
from jasper_mmap.rules.names import Split
from tests.oracle import Oracle
from tests.publishing import publish_numbered, until
from tests.serving import loader_of, next_positions, variants_in_epoch, variants_of

Setter = Callable[[Any, int], None]

SETTERS: dict[str, Setter] = {
    "function": set_epoch,
    "loader": lambda loader, epoch: loader.set_epoch(epoch),
    "sampler": lambda loader, epoch: loader.sampler_obj.set_epoch(epoch),
}


@pytest.fixture
def dataset(demo_store: Path) -> Iterator[JASPERSteeringDataset]:
    """Return the train split of the tidy store."""
    with JASPERSteeringDataset(demo_store, "train") as opened:
        yield opened


@pytest.mark.parametrize("setter", SETTERS)
@pytest.mark.parametrize(("split", "workers"), [("train", 0), ("val", 0), ("train", 2)])
def test_every_way_to_set_the_epoch_is_the_same(
    demo_store: Path, setter: str, split: Split, workers: int
) -> None:
    """Order, curriculum and workers move, and passes are counted anew."""
    loader = loader_of(demo_store, split, 16, workers)
    list(loader)
    for epoch in (5, 5, 9):
        SETTERS[setter](loader, epoch)
        fresh = loader_of(demo_store, split, 16, epoch=epoch)
        promised = next_positions(fresh)
        assert next_positions(loader) == promised
        want = variants_in_epoch(demo_store, split, epoch)
        steered = [batch["steering_variant"].tolist() for batch in loader]
        assert steered == [[want[i] for i in positions] for positions in promised]
    del loader


@pytest.mark.parametrize("setter", SETTERS)
def test_every_way_to_set_the_epoch_adopts(store: Path, oracle: Oracle, setter: str) -> None:
    """What waits for the epoch is served then."""
    loader = loader_of(store, "train", 16)
    with watch_negatives(loader, 0.02, adopt="epoch"):
        number = publish_numbered(store, oracle)
        until(lambda: loader.dataset_obj.adoption.nominee.number == number)
        SETTERS[setter](loader, 1)
        assert loader.dataset_obj.generation == number


def test_dataset_and_what_wraps_it_are_taken(dataset: JASPERSteeringDataset) -> None:
    """A torch loader, a subset, a concatenation, and each over another."""
    part = Subset(dataset, range(40))
    targets: list[Any] = [
        dataset,
        DataLoader(dataset, 8),
        part,
        DataLoader(Subset(part, range(20)), 8),
        DataLoader(ConcatDataset([part, dataset]), 8),
    ]
    for epoch, target in enumerate(targets, 1):
        calls = dataset.epoch_calls
        set_epoch(target, epoch)
        assert dataset.current_epoch == epoch
        assert dataset.epoch_calls == calls + 1, "reached twice"
        assert validate_first_batch(target)
        with watch_negatives(target, 3600) as watcher:
            assert watcher.running


def test_each_of_several_datasets_is_reached(demo_store: Path) -> None:
    """A concatenation of splits moves as a whole."""
    splits = JASPERSteeringDataset.create_combined_splits(demo_store)
    loader: DataLoader[Any] = DataLoader(ConcatDataset(list(splits.values())), 32)
    set_epoch(loader, 6)
    assert [split.current_epoch for split in splits.values()] == [6, 6, 6]
    steered = [v for batch in loader for v in batch["steering_variant"].tolist()]
    assert steered == [v for s in splits for v in variants_in_epoch(demo_store, s, 6)]


class Remembers(DistributedSampler[Any]):
    """A sampler of the user's own that counts how often it is moved."""

    moved = 0

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.moved += 1


class RemembersBatches(BatchSampler):
    """A batch sampler that has the method itself."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_sampler_of_a_torch_loader_is_moved_once(dataset: JASPERSteeringDataset) -> None:
    """Given as sampler, as batch sampler, or inside of one; one of ours is not called back."""

    def sampler() -> Remembers:
        return Remembers(dataset, num_replicas=2, rank=0)

    first = sampler()
    set_epoch(DataLoader(dataset, 8, sampler=first), 3)
    assert (first.epoch, first.moved) == (3, 1)
    inside = sampler()
    set_epoch(DataLoader(dataset, batch_sampler=BatchSampler(inside, 8, drop_last=True)), 4)
    assert (inside.epoch, inside.moved) == (4, 1)
    batches = RemembersBatches(RandomSampler(dataset), 8, drop_last=False)
    set_epoch(DataLoader(dataset, batch_sampler=batches), 5)
    assert batches.epoch == dataset.current_epoch == 5


def test_our_sampler_in_a_torch_loader_moves_its_own_dataset_once(demo_store: Path) -> None:
    """It goes with its dataset, which is set once."""
    own = create_loader(demo_store, "train", 8)
    stock: DataLoader[Any] = DataLoader(own.dataset_obj, 8, sampler=own.sampler_obj)
    calls = own.dataset_obj.epoch_calls
    set_epoch(stock, 7)
    assert own.dataset_obj.epoch_calls == calls + 1
    assert len(list(own.sampler_obj)) == len(own.dataset_obj)


@pytest.mark.parametrize(
    "target",
    [
        TensorDataset(torch.zeros(4)),
        DataLoader(TensorDataset(torch.zeros(4))),
        ConcatDataset([TensorDataset(torch.zeros(4))]),
        "my_dataset",
        None,
        5,
    ],
    ids=["dataset", "loader", "concat", "path", "None", "number"],
)
@pytest.mark.parametrize("ask", [lambda t: set_epoch(t, 1), validate_first_batch, watch_negatives])
def test_what_leads_to_no_dataset_of_ours_is_refused(
    target: Any, ask: Callable[[Any], object]
) -> None:
    """In our words, with what is taken."""
    with pytest.raises(UsageError, match=r"takes a JASPERSteeringDataset.*not (a \w+|None)"):
        ask(target)


@pytest.mark.parametrize("epoch", [-1, 2**63, 2**70, 0.5, "1", None])
@pytest.mark.parametrize("setter", [*SETTERS, "dataset"])
def test_epoch_that_cannot_be_moves_nothing(demo_store: Path, setter: str, epoch: Any) -> None:
    """An integer from 0 on, that the control words can hold."""
    loader = create_loader(demo_store, "train", 8, epoch=2)
    setters: dict[str, Setter] = {
        **SETTERS,
        "dataset": lambda loader, epoch: loader.dataset_obj.set_epoch(epoch),
    }
    calls = loader.dataset_obj.epoch_calls
    with pytest.raises(UsageError, match="epoch must be an integer"):
        setters[setter](loader, epoch)
    assert (loader.dataset_obj.current_epoch, loader.dataset_obj.epoch_calls) == (2, calls)


# Arguments of loaders and datasets


def test_loader_that_serves_nothing_warns(
    demo_store: Path, caplog: pytest.LogCaptureFixture, oracle_named: Callable[[str], Oracle]
) -> None:
    """A training would run to its end and learn nothing; both numbers are named."""
    pairs = len(oracle_named("demo").splits["train"])
    with caplog.at_level(logging.WARNING):
        loader = create_loader(demo_store, "train", pairs + 1)
    assert len(loader) == len(list(loader)) == 0
    (record,) = caplog.records
    assert f"{pairs} pairs" in record.getMessage()
    assert f"batch_size={pairs + 1}" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert len(create_loader(demo_store, "train", pairs)) == 1
        assert len(create_loader(demo_store, "train", pairs + 1, drop_last=False)) == 1
    assert caplog.records == []


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_larger_than_the_split_costs_no_more_than_the_split(
    demo_store: Path, workers: int
) -> None:
    """Three hundred million of a few hundred rows is a batch of a few hundred rows."""
    before = peak_bytes()
    loader = loader_of(demo_store, "train", 300_000_000, workers, drop_last=False)
    (batch,) = list(loader)
    assert len(batch["relevance"]) == len(loader.dataset_obj)
    assert [len(b["relevance"]) for b in loader] == [len(loader.dataset_obj)]
    assert sorted(loader.sampler_obj) == list(range(len(loader.dataset_obj)))
    assert peak_bytes() - before < 200 << 20
    del loader, batch


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmPeak"):
            return int(line.split()[1]) << 10
    raise AssertionError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 64.0}, "batch_size must be an integer, not 64.0"),
        ({"batch_size": "64"}, "batch_size must be an integer, not '64'"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, not 0"),
        ({"batch_size": 2**60}, "batch_size must be an integer <= "),
        ({"num_workers": -1}, "num_workers must be an integer >= 0, not -1"),
        ({"num_workers": None}, "num_workers must be an integer, not None"),
        ({"seed": 0.5}, "seed must be an integer, not 0.5"),
        ({"epoch": 2**70}, "epoch must be an integer <= "),
        ({"validate": "no"}, "validate must be"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    demo_store: Path, arguments: dict[str, Any], words: str
) -> None:
    """In our words, naming argument and value."""
    with pytest.raises(UsageError) as refusal:
        create_loader(demo_store, "train", **{"batch_size": 8, **arguments})
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("split", "nearest"), [("training", "train"), ("Val", "val"), ("tst", "test"), (7, "")]
)
def test_unknown_split_names_the_three_and_the_nearest(
    demo_store: Path, split: Any, nearest: str
) -> None:
    """As an error that either kind of program catches."""
    for expected in (UsageError, FileNotFoundError):
        with pytest.raises(expected, match=r"Split file not found.*train, val, test") as refusal:
            create_loader(demo_store, split, 8)
        assert repr(nearest) in str(refusal.value) or not nearest


def test_no_device_is_the_cpu(demo_store: Path) -> None:
    """As programs pass it that have none."""
    loader = create_loader(demo_store, "val", 8, 1, device=None)
    assert loader.dataset_obj.device == torch.device("cpu")
    splits = JASPERSteeringDataset.create_combined_splits(demo_store, device=None)
    assert {str(split.device) for split in splits.values()} == {"cpu"}
    del loader


def test_representation_says_what_it_is(demo_store: Path) -> None:
    """Store, split, sizes, epoch, generation and device; a closed one too."""
    loader = create_loader(demo_store, "val", 8, epoch=3)
    dataset = loader.dataset_obj
    assert dataset.dataset_dir == demo_store
    known = [str(demo_store), "'val'", f"pairs={len(dataset)}", "D=32", "N=12", "epoch=3"]
    known += ["generation=1", "device=cpu"]
    for text in (repr(dataset), repr(loader)):
        assert [words for words in known if words not in text] == []
    assert "batch_size=8" in repr(loader)
    dataset.close()
    assert "closed" in repr(dataset)
    assert dataset.dataset_dir == demo_store


def test_first_batch_of_a_dataset_is_of_its_epoch(dataset: JASPERSteeringDataset) -> None:
    """To validate moves nothing."""
    dataset.set_epoch(2)
    before = variants_of(dataset)
    assert validate_first_batch(dataset)
    assert variants_of(dataset) == before
