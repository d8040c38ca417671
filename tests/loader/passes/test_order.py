"""Which pass comes next, and what the samplers give of it: against a count kept by hand.

The dataset is a stand-in without a store: its epoch and its split are all that counts.
"""

import logging
import random
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from jasper_mmap.loader import sampler as samplers
from jasper_mmap.loader.passes.order import PassCounter
from jasper_mmap.loader.passes.plan import PassPlan
from jasper_mmap.loader.passes.state import State
from jasper_mmap.loader.sampler import (
    OrderedSampler,
    PlannedBatches,
    RankSampler,
    ReplacingSampler,
    ShuffledSampler,
    is_torchs,
    own_sampler,
)

N = 50


class StandIn:
    """The dataset of a split of 50 pairs."""

    split, seed, store_id, closed, collective = "train", 7, "id", False, False
    identity = (4, "sha4")

    def __init__(self) -> None:
        self.current_epoch, self.epoch_calls = 0, 0
        self.ended: list[Any] = []
        self.adoption = SimpleNamespace(pinned="pin", unpin=self.ended.append)

    def __len__(self) -> int:
        return N

    def __getitem__(self, position: int) -> int:
        return position

    def set_epoch(self, epoch: int) -> None:
        """As a dataset."""
        self.current_epoch = epoch
        self.epoch_calls += 1


def counter_of(dataset: Any, **options: Any) -> PassCounter:
    """Return a counter of batches of 8, shuffled, the last one kept."""
    given = {"batch_size": 8, "drop_last": False, "shuffle": True, **options}
    return PassCounter(dataset, **given)


def planned(number: int, start: int = 0, epoch: int = 0, **options: Any) -> PassPlan:
    """Return the plan of a pass of the stand-in."""
    given: dict[str, Any] = {
        "n": N,
        "split": "train",
        "shuffle": True,
        "seed": 7,
        "batch_size": 8,
        "drop_last": False,
        "rank": 0,
        "world": 1,
        **options,
    }
    return PassPlan(pass_number=number, start=start, epoch=epoch, **given)


def state_of(number: int, consumed: int, following: int, epoch: int) -> State:
    """Return the state of the stand-in's loader."""
    return State(
        split="train",
        pairs=N,
        seed=7,
        store_id="id",
        epoch=epoch,
        number=number,
        consumed=consumed,
        following=following,
        generation=4,
        sha256="sha4",
    )


# Passes


def test_plan_has_what_the_counter_was_made_with() -> None:
    """Each option in its place."""
    dataset: Any = StandIn()
    dataset.set_epoch(3)
    options: dict[str, Any] = {"shuffle": False, "rank": 1, "world": 3, "tail": "pad"}
    counter = counter_of(dataset, batch_size=4, drop_last=True, **options)
    assert counter.world == 3
    want = planned(0, epoch=3, batch_size=4, drop_last=True, **options)
    assert counter.peek() == counter.begin() == want
    assert counter_of(dataset).peek() == planned(0, epoch=3)
    assert counter_of(dataset).world == 1


def test_passes_count_from_the_call_that_set_their_epoch() -> None:
    """Looking counts none; a call for the same epoch begins again at the first."""
    dataset: Any = StandIn()
    counter, dice, number = counter_of(dataset), random.Random(1), 0
    for _ in range(300):
        step = dice.choice(["begin", "begin", "look", "epoch"])
        if step == "epoch":
            dataset.set_epoch(dice.randrange(3))
            number = 0
        elif step == "begin":
            assert counter.begin() == planned(number, epoch=dataset.current_epoch)
            number += 1
        assert counter.peek() == counter.first() == planned(number, epoch=dataset.current_epoch)
        assert not counter.resuming


def test_place_of_a_state_waits_for_its_epoch() -> None:
    """Calls for other epochs in between, by a loop that starts at its first, do not lose it; a pass
    of another epoch does."""
    dataset: Any = StandIn()
    counter = counter_of(dataset)
    for other in (False, True):
        counter.resume(state_of(2, 24, 5, 1))
        assert dataset.current_epoch == 1
        assert counter.resuming
        assert counter.peek() == planned(2, 24, 1)
        dataset.set_epoch(0)
        assert not counter.resuming
        assert counter.peek() == planned(0)
        if other:
            assert counter.begin() == planned(0)
            dataset.set_epoch(1)
            assert counter.peek() == planned(0, epoch=1)
            continue
        dataset.set_epoch(1)
        assert counter.resuming
        assert counter.begin() == planned(2, 24, 1)
        assert not counter.resuming
        assert [counter.begin() for _ in range(2)] == [planned(5, epoch=1), planned(6, epoch=1)]


def test_resumed_pass_that_is_over_is_passed_by() -> None:
    """Where something left to serve is asked for; one that has some left is not."""
    dataset: Any = StandIn()
    counter = counter_of(dataset)
    counter.resume(state_of(2, N, 5, 1))
    assert len(counter.peek()) == 0
    assert counter.first() == planned(5, epoch=1)
    counter.resume(state_of(2, N - 1, 5, 1))
    assert counter.first() == counter.peek() == planned(2, N - 1, 1)
    empty = counter_of(dataset, batch_size=N + 1, drop_last=True)
    assert empty.first() == empty.peek() == planned(0, 0, 1, batch_size=N + 1, drop_last=True)


def test_next_pass_ends_the_pin_of_a_resumed_one() -> None:
    """Neither the resumed one itself does, nor one of a closed dataset."""
    dataset: Any = StandIn()
    counter = counter_of(dataset)
    counter.resume(state_of(0, 8, 1, 0))
    counter.begin()
    assert dataset.ended == []
    counter.begin()
    assert dataset.ended == ["pin"]
    dataset.closed = True
    counter.begin()
    assert dataset.ended == ["pin"]


def test_state_says_what_is_consumed_and_what_follows() -> None:
    """Of the pass that is given while it is of this epoch, else of the next one."""
    dataset: Any = StandIn()
    counter = counter_of(dataset)
    assert counter.state(None, 0) == state_of(0, 0, 1, 0)
    first = counter.begin()
    assert counter.state(first, 3) == state_of(0, 24, 1, 0)
    assert counter.state(first, 7) == state_of(0, N, 1, 0)
    assert counter.state(None, 3) == state_of(1, 0, 2, 0)
    second = counter.begin()
    assert counter.state(first, 1) == state_of(0, 8, 2, 0)
    assert counter.state(second, 1) == state_of(1, 8, 2, 0)
    dataset.set_epoch(2)
    assert counter.state(second, 1) == state_of(0, 0, 1, 2)
    counter.resume(state_of(3, 16, 9, 2))
    assert counter.state(None, 1) == counter.state(second, 1) == state_of(3, 16, 9, 2)


def test_other_batches_are_of_the_same_pass_and_counted_apart() -> None:
    """The same batches are the same counter."""
    dataset: Any = StandIn()
    counter = counter_of(dataset)
    counter.begin()
    assert counter.with_batches(8, False) is counter
    for size, drop_last in ((8, True), (4, False)):
        other = counter.with_batches(size, drop_last)
        assert other.begin() == planned(1, batch_size=size, drop_last=drop_last)
    assert counter.begin() == planned(1)


# Samplers


def test_samplers_are_those_of_torch_that_they_stand_for() -> None:
    """With their lengths and their positions, of the next pass, on every rank."""
    dataset: Any = StandIn()
    dataset.set_epoch(1)
    shuffled = ShuffledSampler(dataset, counter_of(dataset))
    ordered = OrderedSampler(dataset, counter_of(dataset, shuffle=False))
    order = [p for k in range(7) for p in planned(0, epoch=1).positions(range(k, k + 1)).tolist()]
    assert isinstance(shuffled, RandomSampler)
    assert isinstance(ordered, SequentialSampler)
    assert [*shuffled] == [*shuffled] == order
    assert [*ordered] == [*range(N)]
    assert len(shuffled) == len(ordered) == N
    assert shuffled.dataset is ordered.dataset is dataset
    ranks = [
        RankSampler(
            dataset,
            counter_of(dataset, rank=rank, world=3),
            rank=rank,
            world=3,
            shuffle=True,
            drop_last=True,
        )
        for rank in range(3)
    ]
    for rank, of in enumerate(ranks):
        assert (of.rank, of.num_replicas, of.shuffle, of.seed, of.drop_last) == (
            rank,
            3,
            True,
            7,
            True,
        )
        assert isinstance(of, DistributedSampler)
        assert len(of) == len([*of])
    assert sorted(chain(*ranks)) == [*range(N)]
    ranks[1].set_epoch(6)
    assert (dataset.current_epoch, ranks[1].epoch) == (6, 6)
    shuffled.set_epoch(7)
    assert (dataset.current_epoch, dataset.epoch_calls) == (7, 3)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("block", [1, 8, 20, 1 << 14])
def test_positions_come_in_blocks(
    monkeypatch: pytest.MonkeyPatch, block: int, drop_last: bool
) -> None:
    """All of them from a sampler, in batches from a batch sampler; also of a pass that goes on."""
    monkeypatch.setattr("jasper_mmap.loader.passes.plan._BLOCK", block)
    dataset: Any = StandIn()
    counter = counter_of(dataset, drop_last=drop_last)
    counter.resume(state_of(0, 3, 1, 0))
    whole = planned(0).positions(range(7)).tolist()[3:]
    assert [*ShuffledSampler(dataset, counter)] == whole
    batches = PlannedBatches(counter.peek())
    want = [whole[at : at + 8] for at in range(0, 47, 8)]
    assert [*batches] == (want[:-1] if drop_last else want)
    assert len(batches) == (6 if drop_last else 7)
    begun = iter(batches)
    batches.plan = planned(1)
    assert next(begun) == want[0]


def replacing(dataset: Any, seed: int, **options: Any) -> ReplacingSampler:
    """Return what stands for torch's of rank 1 of 2."""
    replaced: Any = DistributedSampler(dataset, 2, 1, seed=seed, **options)
    return ReplacingSampler(replaced, dataset, counter_of(dataset, rank=1, world=2))


def test_replacing_sampler_takes_the_place_and_follows_the_epoch() -> None:
    """Of the one that a framework has; a call for ours moves that too."""
    dataset: Any = StandIn()
    one = replacing(dataset, 7, shuffle=False, drop_last=True)
    assert (one.rank, one.num_replicas, one.shuffle, one.drop_last) == (1, 2, False, True)
    assert len(one) == 25
    replaced = one._replaced
    one.follow()
    assert dataset.epoch_calls == 0
    replaced.set_epoch(4)
    for _ in range(2):
        one.follow()
        assert (dataset.current_epoch, dataset.epoch_calls) == (4, 1)
    one.set_epoch(5)
    one.follow()
    assert (dataset.current_epoch, dataset.epoch_calls, replaced.epoch) == (5, 2, 5)
    replaced.set_epoch(0)
    one.follow()
    assert (dataset.current_epoch, dataset.epoch_calls) == (0, 3)


def test_seed_that_is_not_used_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it would have shuffled, and is another one than the dataset's."""
    monkeypatch.setattr(samplers, "_other_seeds", set())
    dataset: Any = StandIn()
    with caplog.at_level(logging.INFO, "jasper_mmap"):
        for seed, shuffle in ((7, True), (9, False), (9, True), (9, True), (8, True)):
            replacing(dataset, seed, shuffle=shuffle)
    assert [record.getMessage() for record in caplog.records] == [
        f"the order of a DistributedSampler with seed={seed} is replaced by the dataset's own, with"
        " seed=7"
        for seed in (9, 8)
    ]


class Reversed(DistributedSampler[Any]):
    """One with an order of its own."""

    def __iter__(self) -> Any:
        return iter(range(N)[::-1])


class Named(DistributedSampler[Any]):
    """One with torch's order."""


def test_only_torchs_order_over_the_whole_split_is_replaced() -> None:
    """A subclass with its own order keeps that, as does one over other positions."""
    dataset: Any = StandIn()
    for kind, known in ((DistributedSampler, True), (Named, True), (Reversed, False)):
        assert is_torchs(kind(dataset, 2, 0), of=N) == known
    assert not is_torchs(DistributedSampler(dataset, 2, 0), of=N + 1)
    assert not is_torchs(SequentialSampler(dataset), of=N)
    other: Any = StandIn()
    counter = counter_of(dataset)
    ranked = {"rank": 0, "world": 1, "shuffle": True, "drop_last": False}
    for own in (
        ShuffledSampler(dataset, counter),
        OrderedSampler(dataset, counter),
        RankSampler(dataset, counter, **ranked),  # type: ignore[arg-type]
    ):
        assert own_sampler(own, dataset) is own
        assert own_sampler(own, other) is None
    assert own_sampler(DistributedSampler(dataset, 2, 0), dataset) is None
