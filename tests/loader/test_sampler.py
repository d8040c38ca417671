"""The order of a pass: one for all ranks, resumable anywhere, and computed by parts."""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from jasper_mmap import create_loader
from jasper_mmap.loader.passes import plan as plans
from jasper_mmap.loader.passes.plan import PassPlan
from jasper_mmap.rules.permutation import permute


def plan(n: int = 100, **options: Any) -> PassPlan:
    """Return a plan for one rank of one, shuffled, keeping the tail, unless told otherwise."""
    defaults = {
        "split": "train",
        "shuffle": True,
        "seed": 42,
        "epoch": 0,
        "pass_number": 0,
        "start": 0,
        "batch_size": 8,
        "drop_last": False,
        "rank": 0,
        "world": 1,
    }
    return PassPlan(n=n, **{**defaults, **options})


def batches(of: PassPlan) -> list[list[int]]:
    """Return the positions of each batch, asked for one by one."""
    return [of.positions(range(k, k + 1)).tolist() for k in range(len(of))]


def whole_order(of: PassPlan) -> list[int]:
    """Return the global order that the plan is a part of, from the beginning of the pass."""
    alone = replace(of, start=0, rank=0, world=1, batch_size=of.n, drop_last=False)
    result: list[int] = alone.positions(range(1)).tolist()
    return result


def ranks(of: PassPlan, world: int) -> list[PassPlan]:
    """Return the plans of all ranks."""
    return [replace(of, rank=rank, world=world) for rank in range(world)]


GRID = list(itertools.product((1, 7, 65, 100), (1, 2, 3, 8), (1, 2, 9)))
TAILS = ("share", "pad", "cut")


def consumed_by(plans: list[PassPlan]) -> list[int]:
    """Return what ranks consume together, batch by batch, one rank after the other."""
    together = itertools.zip_longest(*map(batches, plans), fillvalue=[])
    return [position for k in together for batch in k for position in batch]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("tail", TAILS)
def test_ranks_together_consume_what_a_single_process_would(tail: str, drop_last: bool) -> None:
    """Batch k of all ranks, one rank after the other, is batch k of a process with a batch as
    large as theirs together; the tail is divided, goes on from the beginning, or is cut."""
    for n, world, size in GRID:
        one = plan(n, batch_size=size, drop_last=drop_last, tail=tail)
        order, together = whole_order(one), ranks(one, world)
        consumed = consumed_by(together)
        case = f"n={n} world={world} batch_size={size}"
        run = world * size
        if drop_last:
            assert consumed == order[: n // run * run], case
        elif tail == "cut":
            assert consumed == order[: n // world * world], case
        elif tail == "pad":
            assert consumed == (order * world)[: -(-n // world) * world], case
        else:
            assert consumed == order, case
        for k in range(n // run - 1):
            assert [of.rows(k) for of in together] == [size] * world, case


def test_ranks_that_share_have_as_many_batches_and_differ_by_one_row() -> None:
    """As many as with padding, wherever every batch of every rank can have a row."""
    for n, world, size in GRID:
        together = ranks(plan(n, batch_size=size), world)
        count = -(-n // (world * size))
        if n >= world * count:
            assert [len(of) for of in together] == [count] * world
        else:
            assert {len(of) for of in together} == {count - 1, count}
        for k in range(min(map(len, together))):
            rows = [of.rows(k) for of in together]
            assert max(rows) - min(rows) <= 1
            assert 1 <= min(rows) <= max(rows) <= size


def test_padding_is_what_comes_after_the_whole_order() -> None:
    """It is at the end of a batch, and only where repeating was asked for."""
    for n, world, size in GRID:
        together = ranks(plan(n, batch_size=size, tail="pad"), world)
        seen = 0
        for k in range(len(together[0])):
            for of in together:
                real = max(0, min(of.rows(k), n - seen))
                assert of.padding(k) == of.rows(k) - real
                seen += of.rows(k)
            assert of.padding(len(of)) == 0  # there is no such batch
        for other in ({}, {"tail": "cut"}, {"tail": "pad", "drop_last": True}):
            shared = ranks(plan(n, batch_size=size, **other), world)
            assert {of.padding(k) for of in shared for k in range(of.all_batches + 1)} == {0}


def test_blocks_of_batches_equal_single_ones() -> None:
    """Positions computed for many batches at once are those of each."""
    for (n, world, size), tail in itertools.product(GRID, (*TAILS, None)):
        one = plan(n, batch_size=size, tail=tail or "share", drop_last=tail is None)
        for of in ranks(one, world):
            single = batches(of)
            for first in range(0, len(of), 3):
                want = list(itertools.chain(*single[first : first + 3]))
                assert of.positions(range(first, min(first + 3, len(of)))).tolist() == want
                every_other = list(itertools.chain(*single[first::2]))
                assert of.positions(range(first, len(of), 2)).tolist() == every_other
            assert [of.rows(k) for k in range(len(of))] == [len(batch) for batch in single]


class Numbered(torch.utils.data.Dataset[int]):
    """A dataset of n numbers."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


def test_ranks_get_as_many_samples_as_from_torch() -> None:
    """Every rank's share has the size that `DistributedSampler` gives it."""
    for n, world, drop_last in itertools.product(
        (1, 2, 5, 16, 17, 99), (1, 2, 3, 8), (False, True)
    ):
        for rank, of in enumerate(ranks(plan(n, drop_last=drop_last, tail="pad"), world)):
            torchs: DistributedSampler[int] = DistributedSampler(
                Numbered(n), world, rank, drop_last=drop_last
            )
            if drop_last and n < world:
                assert of.samples == 0  # torch's own count is wrong there
                continue
            assert of.samples == len(torchs) == len(list(torchs))


@pytest.mark.parametrize("tail", [*TAILS, None])
def test_resume_anywhere_gives_exactly_the_rest(tail: str | None) -> None:
    """After any number of batches, also with another world and batch size, the order goes on at
    the very sample where it stopped."""
    drop_last = tail is None
    for n, (world, size), (world2, size2) in itertools.product(
        (50, 97), ((1, 8), (2, 4), (3, 5)), ((1, 8), (1, 3), (4, 2), (2, 4))
    ):
        first = plan(n, batch_size=size, world=world, drop_last=drop_last, tail=tail or "share")
        order = whole_order(first)
        together = ranks(first, world)
        for done in range(len(first)):
            start = first.consumed(done)
            assert start == sum(of.rows(k) for of in together for k in range(done))
            later = ranks(replace(first, batch_size=size2, start=start), world2)
            consumed, rest = consumed_by(later), order[start:]
            if tail == "share":
                assert consumed == rest
            cut = len(rest) // (world2 * size2) * world2 * size2 if drop_last else len(rest)
            cut = cut // world2 * world2 if tail == "cut" else cut
            assert consumed[:cut] == rest[:cut]
            assert len(consumed) - cut < (1 if drop_last else world2)
        assert first.consumed(len(first)) == n


def test_unshuffled_order_is_the_order_of_the_split() -> None:
    """Whatever seed, epoch and pass are."""
    of = plan(30, shuffle=False, epoch=3, pass_number=2, seed=1)
    assert list(itertools.chain(*batches(of))) == list(range(30))


def test_order_of_a_pass_is_that_of_its_key() -> None:
    """A checkpoint names seed, split, epoch and pass alone: their order must never change."""
    of = plan(50, epoch=3, pass_number=2, batch_size=7)
    key = ("order", 42, "train", 3, 2)
    assert whole_order(of) == permute(np.arange(50), 50, *key).tolist()


def test_positions_end_where_the_pass_ends() -> None:
    """Batches that are not there have none, wherever the range that asks for them begins."""
    for of in (plan(20), plan(20, shuffle=False), plan(50, world=3, rank=2, drop_last=True)):
        count = of.all_batches
        rest = [p for k in range(1, count) for p in of.positions(range(k, k + 1)).tolist()]
        assert of.positions(range(1, count + 5)).tolist() == rest
        for nothing in (range(0), range(1, 1), range(count, count + 3)):
            assert of.positions(nothing).shape == (0,)
            assert of.positions(nothing).dtype == np.int64


def test_order_depends_on_seed_epoch_pass_and_split() -> None:
    """Each of them gives another order of the same positions; nothing else does."""
    first = plan(200)
    orders = [
        whole_order(replace(first, **change))
        for change in ({}, {"seed": 1}, {"epoch": 1}, {"pass_number": 1}, {"split": "val"})
    ]
    assert all(sorted(order) == list(range(200)) for order in orders)
    assert len(set(map(tuple, orders))) == len(orders)
    assert whole_order(replace(first, batch_size=3, world=5, rank=2)) == orders[0]


def test_plan_of_a_hundred_million_pairs_costs_nothing() -> None:
    """No permutation is stored: any batch of any rank is there at once."""
    started = time.process_time()
    of = plan(10**8, batch_size=512, rank=3, world=8)
    assert len(of) == -(-12_500_000 // 512)
    last = of.positions(range(len(of) - 1, len(of)))
    assert len(last) == of.rows(len(of) - 1)
    assert np.unique(of.positions(range(16))).size == 16 * 512
    assert time.process_time() - started < 0.5


def test_an_order_of_many_blocks_is_that_of_one(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions are computed some thousand at a time, here eight."""
    loader = create_loader(demo_store, "train", 3, drop_last=False, pin_memory=False)
    whole = [int(position) for position in loader.sampler_obj]
    monkeypatch.setattr(plans, "_BLOCK", 8)
    assert [int(position) for position in loader.sampler_obj] == whole
    assert sorted(whole) == list(range(len(loader.dataset_obj)))


def test_sampler_of_a_split_in_order_moves_its_dataset(demo_store: Path) -> None:
    """Tools set the epoch of the sampler that they find."""
    loader = create_loader(demo_store, "val", 16, pin_memory=False)
    loader.sampler_obj.set_epoch(4)
    assert loader.dataset_obj.current_epoch == 4
