"""A loader that a framework makes again from what a DataLoader shows serves as it did before."""

import gc
import inspect
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from jasper_mmap import JASPERDataLoader, JASPERSteeringDataset, set_epoch
from jasper_mmap.errors import IndexRangeError, UsageError
from tests.oracle import Oracle, assert_batches_equal
from tests.publishing import publish_numbered, until
from tests.serving import CONTEXTS, loader_of, next_positions


def made_again(loader: JASPERDataLoader, **changed: Any) -> JASPERDataLoader:
    """Make it from its public attributes, as Lightning does: those that `__init__` names."""
    shown = {name: value for name, value in vars(loader).items() if not name.startswith("_")}
    shown["multiprocessing_context"] = loader.multiprocessing_context
    known = {**inspect.signature(type(loader).__init__).parameters}
    known |= inspect.signature(DataLoader.__init__).parameters
    options = {
        name: shown[name]
        for name, parameter in known.items()
        if name in shown and shown[name] is not parameter.default
    }
    if "batch_sampler" in changed:
        options |= {"sampler": None, "batch_size": 1, "drop_last": False}
    else:
        options |= {"sampler": loader.sampler, "batch_sampler": None}
    return type(loader)(**{**options, "shuffle": False, **changed})


def assert_serves(loader: Any, oracle: Oracle, split: str, promised: list[list[int]]) -> None:
    """Serve one pass of these batches of positions, bit for bit."""
    for served, (positions, batch) in enumerate(zip(promised, loader, strict=True)):
        want = oracle.batch(split, positions, batch["steering_variant"].tolist())
        assert_batches_equal(batch, want, where=f"batch {served}")


def joined(batches: Iterable[Iterable[Any]]) -> list[Any]:
    """Return what is in all batches."""
    return [row for batch in batches for row in batch]


class Backwards(DistributedSampler[Any]):
    """A subclass with an order of its own, as Lightning's wrappers are."""

    def __iter__(self) -> Iterator[Any]:
        positions = range(len(self.dataset))[::-1]  # type: ignore[arg-type]
        return iter(positions[self.rank :: self.num_replicas])


def test_sampler_of_torch_is_replaced_by_the_part_of_its_rank(
    demo_store: Path, oracle: Oracle
) -> None:
    """Ranks together serve what one loader would; the owner's `set_epoch` is followed."""
    alone = loader_of(demo_store, "train", 32)
    halves = [loader_of(demo_store, "train", 16) for _ in range(2)]
    samplers: list[DistributedSampler[Any]] = [
        DistributedSampler(half.dataset, 2, rank, seed=rank) for rank, half in enumerate(halves)
    ]
    again = [made_again(h, sampler=s) for h, s in zip(halves, samplers, strict=True)]
    for epoch in (0, 3):
        set_epoch(alone, epoch)
        for sampler in samplers:
            sampler.set_epoch(epoch)
        whole = next_positions(alone)
        for rank, half in enumerate(again):
            promised = [batch[16 * rank :][:16] for batch in whole]
            assert len(half) == len(promised)
            assert_serves(half, oracle, "train", promised)
            assert half.dataset_obj.current_epoch == epoch


def test_seed_of_a_replaced_sampler_is_logged_once(
    demo_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The order is the dataset's."""
    loader = loader_of(demo_store, "train", 16, seed=5)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            made_again(loader, sampler=DistributedSampler(loader.dataset, 2, 0, seed=77))
    (record,) = [record for record in caplog.records if "seed=77" in record.getMessage()]
    assert "seed=5" in record.getMessage()


def test_unshuffled_sampler_of_torch_gives_the_order_of_the_split(
    demo_store: Path, oracle: Oracle
) -> None:
    """For a split that is shuffled else too; and every pair once, also where torch repeats."""
    seen: list[int] = []
    for rank in range(3):
        loader = loader_of(demo_store, "val", 4)
        sampler: Any = DistributedSampler(loader.dataset, 3, rank, shuffle=False)
        again = made_again(loader, sampler=sampler)
        promised = next_positions(again)
        assert_serves(again, oracle, "val", promised)
        seen += joined(promised)
    assert sorted(seen) == list(range(len(oracle.splits["val"])))


SAMPLERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "random": lambda d: {"sampler": RandomSampler(d, generator=torch.Generator())},
    "sequential": lambda d: {"sampler": SequentialSampler(d)},
    "subclass": lambda d: {"sampler": Backwards(d, 2, 1)},
    "repeating": lambda d: {"sampler": [3, 3, 0, 3] * 9},
    "tensors": lambda d: {"sampler": [torch.tensor(i) for i in range(50)]},
    "numpy": lambda d: {"sampler": torch.arange(50).numpy()},
    "batches": lambda d: {"batch_sampler": BatchSampler(SequentialSampler(d), 7, False)},
    "uneven": lambda d: {"batch_sampler": [[4], [1, 2, 3], list(range(90)), [], [5, 5], [0]]},
    "arrays": lambda d: {"batch_sampler": [torch.arange(9), torch.arange(4).numpy()]},
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_other_samplers_are_iterated(
    demo_store: Path, oracle: Oracle, name: str, workers: int
) -> None:
    """Whatever they give, pass by pass, with workers that stay."""
    loader = loader_of(demo_store, "train", 16, workers)
    given = SAMPLERS[name](loader.dataset)
    again = made_again(loader, **given)
    for _ in range(2):
        if name == "random":
            given["sampler"].generator.manual_seed(1)
        promised = [[int(i) for i in batch] for batch in again.batch_sampler]
        if name == "random":
            given["sampler"].generator.manual_seed(1)
        assert len(again) == len(promised)
        empty = [k for k, positions in enumerate(promised) if not positions]
        served = list(again)
        assert [len(served[k]["relevance"]) for k in empty] == [0] * len(empty)
        for positions, batch in zip(promised, served, strict=True):
            if positions:
                steered = batch["steering_variant"].tolist()
                assert_batches_equal(batch, oracle.batch("train", positions, steered))
    del loader, again, served


@pytest.mark.parametrize("context", CONTEXTS)
def test_positions_travel_whatever_the_start_method(
    demo_store: Path, oracle: Oracle, context: str
) -> None:
    """Thousands of them in a batch, more than a pipe passes on whole."""
    loader = loader_of(demo_store, "train", 16, 2, context)
    n = len(loader.dataset)
    promised = [[(7 * k + i) % n for i in range(n)] for k in range(12)]
    again = made_again(loader, batch_sampler=promised)
    for _ in range(2):  # first slots are too small, then they are not
        assert_serves(again, oracle, "train", promised)
    del loader, again


class Counting(BatchSampler):
    """A batch sampler that counts what was taken from it."""

    taken = 0

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            self.taken += 1
            yield batch


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_taken_once_and_not_far_ahead(demo_store: Path, workers: int) -> None:
    """No further than batches may be in flight."""
    loader = loader_of(demo_store, "train", 4, workers, prefetch_factor=3 if workers else None)
    sampler = Counting(SequentialSampler(loader.dataset), 4, False)
    again = made_again(loader, batch_sampler=sampler)
    batches = iter(again)
    for count in range(1, 12):
        next(batches)
        assert count <= sampler.taken <= count + 3 * workers + 1
    assert sum(1 for _ in batches) + 11 == len(sampler) == sampler.taken
    del loader, again, batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("wrong", [10**6, -1, 0.5, "error"])
def test_wrong_batch_is_an_error_at_its_turn(demo_store: Path, workers: int, wrong: Any) -> None:
    """Those before it are served, and the iteration ends after it."""

    def give() -> Iterator[list[Any]]:
        yield from ([[1], [2]])
        if wrong == "error":
            raise LookupError("said by the test")
        yield [wrong]

    class Wrong(BatchSampler):
        def __iter__(self) -> Iterator[list[Any]]:
            return give()

    loader = loader_of(demo_store, "train", 4, workers)
    sampler = Wrong(SequentialSampler(loader.dataset), 1, False)
    batches = iter(made_again(loader, batch_sampler=sampler))
    assert [len(next(batches)["relevance"]) for _ in range(2)] == [1, 1]
    expected = {10**6: IndexRangeError, -1: IndexRangeError, 0.5: UsageError}
    with pytest.raises(expected.get(wrong, LookupError)):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    del loader, batches


def test_kept_batches_of_a_given_sampler_stay(demo_store: Path, oracle: Oracle) -> None:
    """However many are kept."""
    loader = loader_of(demo_store, "train", 4, 2)
    order = [[i, i + 1, i] for i in range(60)]
    again = made_again(loader, batch_sampler=order)
    for positions, batch in zip(order, list(again), strict=True):
        want = oracle.batch("train", positions, batch["steering_variant"].tolist())
        assert_batches_equal(batch, want)
    del loader, again, batch


def test_own_sampler_keeps_its_place(demo_store: Path) -> None:
    """Order, pass and the rest of a pass; with another batch size too."""
    loader, other = (loader_of(demo_store, "train", 16) for _ in range(2))
    list(loader), list(other)
    loader.load_state_dict(other.state_dict() | {"consumed": 32})
    want = next_positions(loader)
    again = made_again(loader, sampler=loader.sampler)
    assert again.sampler is loader.sampler
    assert next_positions(again) == want
    smaller = made_again(loader, sampler=loader.sampler, batch_size=8)
    assert joined(next_positions(smaller))[: 16 * len(want)] == joined(want)
    list(again)
    assert next_positions(loader) == next_positions(again)  # one counter


def test_sampler_of_another_dataset_is_iterated(demo_store: Path, oracle: Oracle) -> None:
    """One of ours over another split, and torch's over something longer or shorter."""
    loader, val = loader_of(demo_store, "train", 4), loader_of(demo_store, "val", 4)
    again = made_again(loader, sampler=val.sampler)
    assert_serves(again, oracle, "train", next_positions(val))
    twenty: Any = range(20)
    shorter: Any = DistributedSampler(twenty, 2, 1, shuffle=False)
    again = made_again(loader, sampler=shorter)
    assert_serves(again, oracle, "train", [[1, 3, 5, 7], [9, 11, 13, 15]])


# Options


def test_options_are_kept(demo_store: Path, tmp_path: Path) -> None:
    """What the workers do, what was forced, and what else `create_loader` was told."""
    loader = loader_of(demo_store, "train", 16, 2, prefetch_factor=3, warm=True, pad=True)
    loader.dataset_obj.force_steering("keyword")

    def init(worker: int) -> None:
        (tmp_path / str(worker)).touch()

    loader.worker_init_fn = init
    again = made_again(loader, sampler=DistributedSampler(loader.dataset, 2, 0))
    kept = ("num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "drop_last")
    for name in (*kept, "worker_init_fn", "read_ahead", "pad", "batch_size", "collate_fn"):
        assert getattr(again, name) == getattr(loader, name)
    assert again.multiprocessing_context is loader.multiprocessing_context
    for batch in again:
        assert batch["steering_variant"].unique().tolist() == [2]
    assert {path.name for path in tmp_path.iterdir()} <= {"0", "1"}
    del loader, again


def test_watch_is_taken_over(store: Path, oracle: Oracle) -> None:
    """One thread watches, as long as either loader lives; a stopped one stays stopped."""
    loader = loader_of(store, "train", 16, watch="epoch")
    again = made_again(loader, sampler=DistributedSampler(loader.dataset, 2, 0))
    watcher = again.watcher
    assert watcher is not None
    assert watcher is loader.watcher
    del loader
    gc.collect()
    number = publish_numbered(store, oracle)
    until(lambda: again.dataset_obj.adoption.nominee.number == number)
    assert watcher.running
    watcher.stop()
    third = made_again(again)
    assert (third.watcher, watcher.running) == (watcher, False)


def test_watch_ends_with_the_last_loader(store: Path) -> None:
    """Not with the first."""
    loader = loader_of(store, "train", 16, watch=True)
    again = made_again(loader)
    watcher = again.watcher
    assert watcher is not None
    del loader
    gc.collect()
    assert watcher.running
    del again
    gc.collect()
    until(lambda: not watcher.running)


def test_workers_of_the_loader_before_end(demo_store: Path) -> None:
    """Unless a pass needs them; what was stopped early does not."""
    loader = loader_of(demo_store, "train", 16, 2)
    for _ in loader:
        break
    before = {child.pid for child in multiprocessing.active_children()}
    again = made_again(loader)
    assert not before & {child.pid for child in multiprocessing.active_children()}
    running = iter(loader)
    next(running)
    third = made_again(again)
    assert len(list(running)) == len(loader) - 1
    del loader, again, third, running


def test_custom_collate_sees_the_batches_of_a_given_sampler(demo_store: Path) -> None:
    """As torch's loader does."""
    loader = loader_of(demo_store, "train", 4)

    def collate(samples: list[dict[str, Tensor]]) -> list[float]:
        return [float(sample["relevance"]) for sample in samples]

    again = made_again(loader, batch_sampler=[[1, 2], [3]], collate_fn=collate)
    stock: Any = DataLoader(loader.dataset, batch_sampler=[[1, 2], [3]], collate_fn=collate)
    assert list(again) == list(stock)
    assert len(iter(again)) == 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("collate", [None, list])
def test_batch_sampler_may_have_no_length(
    demo_store: Path, workers: int, collate: Callable[[Any], Any] | None
) -> None:
    """Then the loader has none either."""

    class Endless:
        def __iter__(self) -> Iterator[list[int]]:
            return iter([[1, 2], [3], [4, 5, 6]])

    loader = loader_of(demo_store, "train", 4, workers)
    options = {} if collate is None else {"collate_fn": collate}
    again = made_again(loader, batch_sampler=Endless(), **options)
    for _ in range(2):
        assert sum(1 for _ in again) == 3
    with pytest.raises(TypeError):
        len(again)
    del loader, again


@pytest.mark.parametrize("workers", [0, 2])
def test_sampler_of_batches_without_batch_size(
    demo_store: Path, oracle: Oracle, workers: int
) -> None:
    """`dataset[positions]` is a batch, in our loader and in torch's."""
    dataset = JASPERSteeringDataset(demo_store, "train")
    batches = BatchSampler(SequentialSampler(dataset), 32, drop_last=False)
    for kind in (DataLoader, JASPERDataLoader):
        loader: Any = kind(dataset, None, sampler=batches, num_workers=workers)
        assert_serves(loader, oracle, "train", list(batches))
        single: Any = kind(dataset, None)
        assert next(iter(single))["question_emb"].shape == (32,)
        del loader, single


def test_other_arguments_of_torch(demo_store: Path) -> None:
    """Given by place or by name; without a sampler the order is ours."""
    dataset = JASPERSteeringDataset(demo_store, "train")
    shuffled, plain = JASPERDataLoader(dataset, 16, True), JASPERDataLoader(dataset, 16)
    assert next_positions(shuffled) == next_positions(
        loader_of(demo_store, "train", 16, drop_last=False)
    )
    assert next_positions(plain)[0] == list(range(16))
    with pytest.raises(UsageError, match="mutually exclusive"):
        JASPERDataLoader(dataset, 16, batch_sampler=[[1]])
    with pytest.raises(UsageError, match="serves a JASPERSteeringDataset"):
        JASPERDataLoader(torch.utils.data.Subset(dataset, [1]), 16)  # type: ignore[arg-type]
