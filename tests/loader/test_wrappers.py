"""`set_epoch` reaches through what tools wrap around loaders; stand-ins do as the real ones do."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from jasper_mmap import (
    JASPERSteeringDataset,
    create_loader,
    set_epoch,
    validate_first_batch,
    watch_negatives,
)
from tests.loader.test_rebuilt import assert_serves, joined, made_again
from tests.oracle import Oracle
from tests.serving import loader_of, next_positions


class Shard(BatchSampler):
    """Every second batch, as `BatchSamplerShard` of Accelerate gives them to rank 1 of 2."""

    def __init__(self, batches: BatchSampler) -> None:
        self.batch_sampler = batches
        self.batch_size, self.drop_last = batches.batch_size, batches.drop_last

    def __iter__(self) -> Iterator[list[int]]:
        return (batch for k, batch in enumerate(self.batch_sampler) if k % 2)

    def __len__(self) -> int:
        return len(self.batch_sampler) // 2


class Prepared(DataLoader[Any]):
    """Counts its passes and moves what is below at each, as `DataLoaderShard` of Accelerate."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        assert isinstance(loader.batch_sampler, BatchSampler)
        super().__init__(loader.dataset, batch_sampler=Shard(loader.batch_sampler))
        self.iteration = 0

    def set_epoch(self, epoch: int) -> None:
        self.iteration = epoch
        self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]

    def __iter__(self) -> Any:
        self.set_epoch(self.iteration)
        yield from super().__iter__()
        self.iteration += 1


class Counted:
    """Sets the epoch of the sampler to how often it was iterated, as Fabric's wrapper does."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.__dict__.update(loader.__dict__)
        self._dataloader = loader
        self._num_iter_calls = 0

    def __iter__(self) -> Iterator[Any]:
        sampler: Any = self._dataloader.sampler
        sampler.set_epoch(self._num_iter_calls)
        self._num_iter_calls += 1
        yield from self._dataloader


@pytest.mark.parametrize("kind", [Prepared, Counted])
def test_epoch_of_a_wrapper_that_counts_is_not_overwritten(demo_store: Path, kind: Any) -> None:
    """Its next pass is of that epoch, the one after it of the next."""
    loader = create_loader(demo_store, "train", 16)
    wrapped = kind(loader)
    for epoch in (0, 5, 2):
        set_epoch(wrapped, epoch)
        seen = []
        for batch in wrapped:
            seen.append(loader.dataset_obj.current_epoch)
            assert len(batch["relevance"]) == 16
        assert set(seen) == {epoch}
    next(iter(wrapped))
    assert loader.dataset_obj.current_epoch == 3


def test_wrapper_around_a_wrapper_is_seen_through(demo_store: Path) -> None:
    """Also where it leads to several loaders, or back to itself; each dataset is moved once."""
    loaders = [create_loader(demo_store, split, 8) for split in ("train", "val")]
    outer: Any = SimpleNamespace(flattened=[SimpleNamespace(loader=made) for made in loaders])
    outer.dataloader = outer
    calls = [made.dataset_obj.epoch_calls for made in loaders]
    set_epoch(outer, 6)
    assert [made.dataset_obj.current_epoch for made in loaders] == [6, 6]
    assert [made.dataset_obj.epoch_calls for made in loaders] == [count + 1 for count in calls]
    with watch_negatives(outer, 3600) as watcher:
        assert watcher.running


@pytest.mark.parametrize("kind", [Prepared, Counted])
def test_first_batch_of_a_wrapper_counts_no_pass(demo_store: Path, kind: Any) -> None:
    """Neither there nor in the loader below; a wrapper of a dataset has a first batch too."""
    loader = create_loader(demo_store, "train", 16)
    wrapped, promised = kind(loader), next_positions(loader)
    assert validate_first_batch(wrapped)
    assert next_positions(loader) == promised
    assert vars(wrapped).get("_num_iter_calls", 0) == vars(wrapped).get("iteration", 0) == 0
    leading: Any = SimpleNamespace(dataset=loader.dataset_obj)
    assert validate_first_batch(leading)


def test_sampler_of_a_wrapped_torch_loader_is_moved(demo_store: Path) -> None:
    """As Ray leaves it to the user to do."""
    dataset = JASPERSteeringDataset(demo_store, "train")
    sampler: Any = DistributedSampler(dataset, 2, 0)
    wrapped: Any = SimpleNamespace(_dataloader=DataLoader(dataset, 8, sampler=sampler))
    set_epoch(wrapped, 9)
    assert (sampler.epoch, dataset.current_epoch) == (9, 9)


# The place in a sampler that was given


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [4, 6])
def test_state_of_a_given_sampler_resumes_behind_what_was_returned(
    demo_store: Path, oracle: Oracle, workers: int, size: int
) -> None:
    """With batches of another size too: the rest of a batch that was begun comes first."""
    positions = [(7 * i) % 100 for i in range(60)]

    def batches(size: int) -> list[list[int]]:
        return [positions[i : i + size] for i in range(0, len(positions), size)]

    loader = loader_of(demo_store, "train", 4, workers)
    interrupted = made_again(loader, batch_sampler=batches(4))
    taken = iter(interrupted)
    for _ in range(5):
        next(taken)
    state = interrupted.state_dict()
    assert state["consumed"] == 20
    resumed = made_again(loader_of(demo_store, "train", 4, workers), batch_sampler=batches(size))
    resumed.load_state_dict(state)
    rest = [batch for batch in batches(size) if positions.index(batch[-1]) >= 20]
    rest[0] = [position for position in rest[0] if positions.index(position) >= 20]
    assert joined(rest) == positions[20:]
    assert_serves(resumed, oracle, "train", rest)
    assert_serves(resumed, oracle, "train", batches(size))
    del loader, interrupted, taken, resumed


def test_batches_over_a_sampler_of_ours_count_its_passes(demo_store: Path, oracle: Oracle) -> None:
    """A framework may put it into a batch sampler of its own."""
    loader = loader_of(demo_store, "train", 16)
    sampler = BatchSampler(loader.sampler, 16, drop_last=False)
    again = made_again(loader, batch_sampler=sampler)
    passes = []
    for _ in range(2):
        passes.append(list(sampler))
        assert_serves(again, oracle, "train", passes[-1])
    assert passes[0] != passes[1]
    fresh = loader_of(demo_store, "train", 16, drop_last=False)
    assert next_positions(fresh) == passes[0]


class Skipping(BatchSampler):
    """Leaves out the first batches, as `skip_first_batches` of Accelerate does in a resume."""

    def __init__(self, batches: BatchSampler, skipped: int) -> None:
        self.batch_sampler = batches
        self.batch_size, self.drop_last = batches.batch_size, batches.drop_last
        self._skipped = skipped

    def __iter__(self) -> Iterator[list[int]]:
        return (batch for k, batch in enumerate(self.batch_sampler) if k >= self._skipped)

    def __len__(self) -> int:
        return len(self.batch_sampler) - self._skipped


def test_epoch_set_at_the_batch_sampler_moves_order_and_curriculum(
    demo_store: Path, oracle: Oracle
) -> None:
    """The Trainer resumes so: a plain loader over the rest of the batches, whose epoch it sets at
    the batch sampler below."""
    whole = loader_of(demo_store, "train", 16)
    set_epoch(whole, 3)
    order = next_positions(whole)[4:]
    loader = loader_of(demo_store, "train", 16)
    assert type(loader.batch_sampler) is BatchSampler  # Lightning makes a subclass again
    rest: Any = DataLoader(loader.dataset, batch_sampler=Skipping(loader.batch_sampler, 4))
    rest.batch_sampler.batch_sampler.set_epoch(3)
    assert loader.dataset_obj.current_epoch == 3
    assert_serves(rest, oracle, "train", order)
