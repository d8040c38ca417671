"""Passes are counted, and a state goes on at the very sample where it was taken."""

import gc
import itertools
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch.utils.data import RandomSampler, SequentialSampler

from converters import convert
from jasper_mmap import (
    JASPERSteeringDataset,
    create_loader,
    set_epoch,
    validate_first_batch,
)
from jasper_mmap.errors import JasperError, StoreChangedError, UsageError
from jasper_mmap.loader.passes.order import PassCounter
from tests.loader.test_sampler import batches, whole_order
from tests.serving import loader_of, next_positions


@pytest.fixture
def loader(demo_store: Path) -> Iterator[Any]:
    """Return a shuffled loader of train without workers."""
    made = loader_of(demo_store, "train", 16)
    yield made
    made.dataset_obj.close()


def after(loader: Any, count: int) -> dict[str, Any]:
    """Take `count` batches of a new pass, then the state."""
    taken = iter(loader)
    for _ in range(count):
        next(taken)
    state: dict[str, Any] = loader.state_dict()
    return state


def served_order(loader: Any) -> list[int]:
    """Return the positions that the next pass serves, and serve it."""
    order = list(itertools.chain(*next_positions(loader)))
    assert len(list(loader)) == len(next_batches(order, loader.batch_size))
    return order


def next_batches(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut an order into batches."""
    return [order[i : i + size] for i in range(0, len(order), size)]


def test_every_pass_of_an_epoch_has_its_own_order(loader: Any, demo_store: Path) -> None:
    """Passes are counted from `set_epoch`, on the loader or on its dataset alone."""
    first, second = served_order(loader), served_order(loader)
    assert first != second
    set_epoch(loader, 1)
    in_one = served_order(loader)
    assert in_one not in (first, second)
    loader.dataset_obj.set_epoch(0)
    assert [served_order(loader), served_order(loader)] == [first, second]
    set_epoch(loader, 0)
    assert served_order(loader) == first


def test_looking_at_the_order_counts_no_pass(loader: Any) -> None:
    """Neither the sampler, nor lengths, nor the first positions move it."""
    before = next_positions(loader)
    assert len(loader.sampler_obj) == len(loader.dataset_obj)
    assert len(loader) == len(before)
    assert loader.first_positions() == before[0]
    assert next_positions(loader) == before


@pytest.mark.parametrize(("size", "done"), [(16, 5), (7, 5), (16, 0), (50, 1)])
def test_state_resumes_in_the_middle_of_a_pass(
    loader: Any, demo_store: Path, size: int, done: int
) -> None:
    """A new loader, of another batch size too, serves the rest of the interrupted pass, then the
    passes that would have followed."""
    list(loader)
    whole = whole_order(loader.sampler_obj.passes.peek())
    resumed = loader_of(demo_store, "train", size)
    resumed.load_state_dict(after(loader, done))
    rest = next_batches(whole[done * 16 :], size)
    assert next_positions(resumed) == [batch for batch in rest if len(batch) == size]
    assert len(resumed) == len(whole) // size  # that of a whole pass
    assert len(list(resumed)) == (len(whole) - done * 16) // size
    assert whole_order(resumed.sampler_obj.passes.peek()) == whole_order(
        loader.sampler_obj.passes.peek()
    )
    assert resumed.sampler_obj.passes.peek().start == 0


def test_prefetched_batches_are_not_counted(demo_store: Path) -> None:
    """What workers have made and nobody has taken comes again after a resume."""
    loader = loader_of(demo_store, "train", 16, 2, prefetch_factor=4)
    whole = whole_order(loader.sampler_obj.passes.peek())
    taken = iter(loader)
    for count in range(1, 6):
        next(taken)
        time.sleep(0.05)  # let the workers make as many as they may
        state = loader.state_dict()
        assert state["consumed"] == 16 * count
        resumed = loader_of(demo_store, "train", 16)
        resumed.load_state_dict(state)
        assert next_positions(resumed)[0] == whole[16 * count : 16 * count + 16]
    del loader, taken


def test_resumed_batches_equal_those_of_the_unbroken_pass(loader: Any, demo_store: Path) -> None:
    """Bit for bit, with the steering that was drawn."""
    unbroken = [{k: v.clone() for k, v in batch.items()} for batch in loader]
    set_epoch(loader, 0)
    state = after(loader, 3)
    resumed = loader_of(demo_store, "train", 16)
    resumed.load_state_dict(state)
    served = 3
    for batch in resumed:
        assert all(torch.equal(batch[key], unbroken[served][key]) for key in batch)
        served += 1
    assert served == len(unbroken)


def test_set_epoch_after_loading_keeps_the_place(loader: Any, demo_store: Path) -> None:
    """A training loop calls `set_epoch` at the top of every epoch: the same epoch keeps the
    place, another one begins anew."""
    set_epoch(loader, 4)
    state = after(loader, 2)
    rest = loader_of(demo_store, "train", 16, epoch=4)
    rest.load_state_dict(state)
    want = next_positions(rest)
    set_epoch(rest, 4)
    assert next_positions(rest) == want
    set_epoch(rest, 5)
    fresh = loader_of(demo_store, "train", 16, epoch=5)
    assert next_positions(rest) == next_positions(fresh)


def test_state_moves_the_epoch_and_is_plain(loader: Any, demo_store: Path) -> None:
    """The state alone says where training stands; it is made of numbers and words."""
    set_epoch(loader, 7)
    state = after(loader, 1)
    assert all(isinstance(value, int | str) for value in state.values())
    resumed = loader_of(demo_store, "train", 16)
    resumed.load_state_dict(state)
    assert resumed.dataset_obj.current_epoch == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_state_after_a_whole_pass_has_an_empty_rest(
    loader: Any, demo_store: Path, workers: int
) -> None:
    """Whether the loop saw its end or not; then comes the next pass, in that epoch or another."""
    state = after(loader, len(loader))
    assert state["consumed"] == len(loader.dataset_obj)
    for epochs in ([], [0], [0, 1], [1]):
        resumed = loader_of(demo_store, "train", 7, workers)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        for epoch in epochs:
            set_epoch(resumed, epoch)
            if epoch == 0:
                assert next_positions(resumed) == list(resumed) == []
                assert resumed.state_dict()["consumed"] == len(loader.dataset_obj)
        if not epochs:
            assert list(resumed) == []
        one = loader_of(demo_store, "train", 7)
        if 1 in epochs:
            set_epoch(one, 1)
        else:
            list(one)
        for _ in range(2):
            assert next_positions(resumed) == next_positions(one)
            assert len(list(resumed)) == len(list(one)) == len(one)
        del resumed


def test_loop_from_the_epoch_of_a_state_trains_no_epoch_twice(demo_store: Path) -> None:
    """Wherever it was interrupted, the last batch of an epoch and `set_epoch` included."""
    whole = loader_of(demo_store, "train", 16, drop_last=False)
    expected = []
    for epoch in range(3):
        set_epoch(whole, epoch)
        expected += next_positions(whole)
        list(whole)
    per_epoch = len(whole)
    for stop in (1, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch):
        first = loader_of(demo_store, "train", 16, drop_last=False)
        seen = []
        for epoch in range(3):
            set_epoch(first, epoch)
            promised = next_positions(first)
            for _, positions in zip(first, promised, strict=False):
                seen.append(positions)
                if len(seen) == stop:
                    break
            if len(seen) >= stop:
                break
        state = first.state_dict()
        again = loader_of(demo_store, "train", 16, drop_last=False)
        again.load_state_dict(state)
        for epoch in range(state["epoch"], 3):
            set_epoch(again, epoch)
            seen += next_positions(again)
            list(again)
        assert seen == expected


def test_first_batch_of_an_empty_rest_is_that_of_the_next_pass(
    loader: Any, demo_store: Path
) -> None:
    """`validate_first_batch` counts nothing: the rest is empty as before."""
    resumed = loader_of(demo_store, "train", 16)
    resumed.load_state_dict(after(loader, len(loader)))
    assert resumed.first_positions() == next_positions(loader)[0]
    assert validate_first_batch(resumed)
    assert list(resumed) == []
    assert next_positions(resumed) == next_positions(loader)


@pytest.mark.parametrize("rest", [0, 20])
@pytest.mark.parametrize(
    ("workers", "options"), [(0, {}), (2, {}), (2, {"persistent_workers": False})]
)
def test_iterator_that_was_made_before_set_epoch_follows_it(
    demo_store: Path, workers: int, options: dict[str, Any], rest: int
) -> None:
    """Lightning makes it first; nobody may have taken a batch. The rest may be empty."""
    loader = loader_of(demo_store, "train", 16, workers, **options)
    loader.load_state_dict(after(loader, len(loader) - rest))
    begun = iter(loader)
    assert len(begun) == rest
    time.sleep(0.1)  # let workers make some of its batches
    set_epoch(loader, 1)
    assert loader.state_dict()["consumed"] == 0
    one = loader_of(demo_store, "train", 16, epoch=1)
    expected = [{k: v.clone() for k, v in batch.items()} for batch in one]
    for count, (batch, its) in enumerate(zip(begun, expected, strict=True), 1):
        assert all(torch.equal(batch[key], its[key]) for key in its)
        assert loader.state_dict()["consumed"] == (16 * count if count < len(one) else 410)
        assert len(begun) == len(one)
        del batch
    assert list(begun) == []
    assert not workers or loader.slot_fallbacks <= workers  # slots came back
    assert next_positions(loader) == next_positions(one)
    del begun, loader


def test_iterator_follows_no_epoch_after_its_first_batch(demo_store: Path) -> None:
    """Nor without its loader, and the same epoch moves nothing."""
    loader = loader_of(demo_store, "train", 16)
    begun = iter(loader)
    set_epoch(loader, 0)
    next(begun)
    set_epoch(loader, 1)
    assert len([None for _ in begun]) == len(loader) - 1
    begun = iter(loader)
    dataset = loader.dataset_obj
    del loader
    gc.collect()
    dataset.set_epoch(2)
    assert len([None for _ in begun]) == len(begun)


def test_state_of_a_resumed_pass_counts_on(loader: Any, demo_store: Path) -> None:
    """Interrupted twice, with two batch sizes, nothing is served twice or left out."""
    whole = whole_order(loader.sampler_obj.passes.peek())
    second = loader_of(demo_store, "train", 5)
    second.load_state_dict(after(loader, 3))
    third = loader_of(demo_store, "train", 16)
    third.load_state_dict(after(second, 4))
    assert next_positions(third)[0] == whole[3 * 16 + 4 * 5 :][:16]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": "val"}, "split"),
        ({"seed": 1}, "seed was 1, is 42"),
        ({"pairs": 3}, "pairs"),
        ({"consumed": -1}, "-1"),
        ({"consumed": 10**9}, "1000000000"),
        ({"pass": -1}, "-1"),
        ({"epoch": -1}, "-1"),
    ],
)
def test_state_of_another_loader_is_refused(loader: Any, change: Any, words: str) -> None:
    """What differs is named, and nothing is moved."""
    state = after(loader, 2)
    before = next_positions(loader)
    with pytest.raises(JasperError, match=words):
        loader.load_state_dict({**state, **change})
    assert next_positions(loader) == before


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "it has no split, pairs, seed, epoch, pass, consumed."),
        ({"epoch": 1, "pass": 0, "consumed": 0, "seed": 42}, "it has no split, pairs."),
        (5, "it must be the dict that state_dict() returned, not a int."),
        ([], "it must be the dict that state_dict() returned, not a list."),
        (None, "it must be the dict that state_dict() returned, not a NoneType."),
    ],
)
def test_what_is_no_state_is_refused(loader: Any, state: Any, words: str) -> None:
    """Whatever was handed over, the error is ours and says what is missing."""
    with pytest.raises(UsageError, match=f"^{re.escape('not the state of a loader: ' + words)}$"):
        loader.load_state_dict(state)


def test_state_may_be_any_mapping(loader: Any) -> None:
    """Some frameworks wrap what they restore."""
    next(iter(loader))
    state = loader.state_dict()
    next(iter(loader))
    loader.load_state_dict(MappingProxyType(state))
    assert loader.state_dict() == state


def test_samplers_are_the_torch_ones_they_stand_for(demo_store: Path) -> None:
    """Tools that rewrap a loader look at types."""
    assert isinstance(loader_of(demo_store, "train", 8).sampler_obj, RandomSampler)
    assert isinstance(loader_of(demo_store, "val", 8).sampler_obj, SequentialSampler)


def test_distributed_needs_a_process_group(demo_store: Path) -> None:
    """The error says what to call first."""
    with pytest.raises(UsageError, match="init_process_group"):
        create_loader(demo_store, "train", 8, distributed=True)


def test_ranks_of_real_loaders_share_one_pass(demo_store: Path) -> None:
    """Counters of two ranks give plans that together are the plan of one."""
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        counters = [PassCounter(dataset, 8, True, True, rank, 2) for rank in range(2)]
        for _ in range(2):
            plans = [counter.begin() for counter in counters]
            one = replace(plans[0], rank=0, world=1)
            together = [[*a, *b] for a, b in zip(*map(batches, plans), strict=True)]
            flat = list(itertools.chain(*together))
            assert flat == whole_order(one)[: len(flat)]
        assert plans[0].pass_number == 1


@pytest.mark.parametrize("look", [False, True])
def test_loop_over_the_epochs_before_keeps_the_place(
    loader: Any, demo_store: Path, look: bool
) -> None:
    """A loop that passes over what was trained already finds the place, whether or not somebody
    looks on the way; a pass of another epoch that begins loses it."""
    set_epoch(loader, 2)
    state = after(loader, 3)
    resumed = loader_of(demo_store, "train", 16)
    resumed.load_state_dict(state)
    want = next_positions(resumed)
    for epoch in range(3):
        set_epoch(resumed, epoch)
        if look:
            assert len(resumed.sampler_obj) == len(resumed.dataset_obj)
            assert (resumed.state_dict()["consumed"] > 0) == (epoch == 2)
    assert next_positions(resumed) == want
    set_epoch(resumed, 1)
    next(iter(resumed))
    set_epoch(resumed, 2)
    assert resumed.state_dict()["consumed"] == 0


# An epoch that is begun anew in the middle of a pass


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_begun_anew_is_the_state(demo_store: Path, workers: int) -> None:
    """Saved after `set_epoch` of the same epoch, a resumed run serves all that a run which was not
    interrupted serves from there on."""
    loader = loader_of(demo_store, "train", 16, workers)
    taken = iter(loader)
    for _ in range(5):
        next(taken)
    set_epoch(loader, 0)
    state = loader.state_dict()
    assert (state["pass"], state["consumed"], state["next_pass"]) == (0, 0, 1)
    resumed = loader_of(demo_store, "train", 16)
    resumed.load_state_dict(state)
    assert [served_order(resumed), served_order(resumed)] == [
        served_order(loader),
        served_order(loader),
    ]
    del loader, taken


def test_old_iterator_that_goes_on_is_the_state_until_a_new_one(demo_store: Path) -> None:
    """Its place, and that pass 0 follows; once a new one was begun it no longer counts."""
    loader = loader_of(demo_store, "train", 16)
    list(loader)
    old = iter(loader)
    for _ in range(3):
        next(old)
    set_epoch(loader, 0)
    next(old)
    state = loader.state_dict()
    assert (state["pass"], state["consumed"], state["next_pass"]) == (1, 64, 0)
    resumed = loader_of(demo_store, "train", 16)
    resumed.load_state_dict(state)
    whole = whole_order(replace(resumed.sampler_obj.passes.peek(), start=0))
    rest = next_batches(whole[64:], 16)
    assert next_positions(resumed) == [batch for batch in rest if len(batch) == 16]
    list(resumed)
    assert resumed.sampler_obj.passes.peek().pass_number == 0

    begun = iter(loader)
    next(old)
    assert loader.state_dict()["consumed"] == 0
    next(begun)
    next(old)
    state = loader.state_dict()
    assert (state["pass"], state["consumed"], state["next_pass"]) == (0, 16, 1)


def test_other_epoch_in_the_middle_of_a_pass_is_the_state(demo_store: Path) -> None:
    """Its first pass, whatever the iterator of the epoch before still hands out."""
    loader = loader_of(demo_store, "train", 16)
    old = iter(loader)
    next(old)
    set_epoch(loader, 3)
    for _ in range(2):
        state = loader.state_dict()
        assert (state["epoch"], state["pass"], state["consumed"]) == (3, 0, 0)
        next(old)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 2**70},
        {"pass": 2**70},
        {"next_pass": -1},
        {"next_pass": "x"},
        {"consumed": 1.5},
        {"epoch": None},
    ],
)
def test_state_is_checked_before_anything_moves(demo_store: Path, change: Any) -> None:
    """Also what no control word can hold."""
    loader = loader_of(demo_store, "train", 16, epoch=2)
    state = after(loader, 2)
    before = loader.state_dict(), next_positions(loader)
    with pytest.raises(UsageError, match="not the state of a loader"):
        loader.load_state_dict({**state, **change})
    assert (loader.state_dict(), next_positions(loader)) == before
    assert loader.dataset_obj.current_epoch == 2


# Stores


def test_state_of_another_store_is_refused_unless_allowed(
    demo_folder: Path, demo_store: Path, tmp_path: Path
) -> None:
    """Both are named, and both ways to go on where the pairs are the same."""
    other = convert(demo_folder, tmp_path / "other", embeddings_dtype="float16")
    loader = loader_of(demo_store, "train", 16)
    state = after(loader, 3)
    assert state["store_id"] == loader.dataset_obj.store_id != other.store_id
    resumed = loader_of(other.store, "train", 16)
    before = next_positions(resumed)
    with pytest.raises(StoreChangedError) as refusal:
        resumed.load_state_dict(state)
    for words in (state["store_id"], other.store_id, "other_store=True", "'store_id'"):
        assert words in str(refusal.value)
    assert next_positions(resumed) == before
    resumed.load_state_dict(state, other_store=True)
    allowed = next_positions(resumed)
    assert allowed == before[3:]
    resumed = loader_of(other.store, "train", 16)
    del state["store_id"]
    resumed.load_state_dict(state)
    assert next_positions(resumed) == allowed
    with pytest.raises(JasperError, match="split"):
        loader_of(other.store, "val", 16).load_state_dict(state, other_store=True)


def test_state_of_the_first_version_loads(demo_store: Path) -> None:
    """It named neither the store nor the pass that follows."""
    loader = loader_of(demo_store, "train", 16)
    list(loader)
    state = after(loader, 3)
    first = {k: v for k, v in state.items() if k not in ("store_id", "next_pass")}
    resumed = [loader_of(demo_store, "train", 16) for _ in range(2)]
    for one, its in zip(resumed, (state, first), strict=True):
        one.load_state_dict(its)
    assert served_order(resumed[0]) == served_order(resumed[1])
    assert served_order(resumed[0]) == served_order(resumed[1])


def test_state_is_there_after_close(demo_store: Path) -> None:
    """A last checkpoint may be written when the dataset is closed already."""
    loader = loader_of(demo_store, "train", 16)
    state = after(loader, 4)
    loader.dataset_obj.close()
    assert loader.state_dict() == state
    assert "closed" in repr(loader)
