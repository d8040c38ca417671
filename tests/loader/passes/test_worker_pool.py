"""What is served is the oracle's, bit for bit, whoever serves it.

Workers are started in groups within a test, since a spawned one takes seconds to import torch.
"""

import pickle
import random
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jasper_mmap import JASPERSteeringDataset, validate_first_batch
from jasper_mmap.dataset import gather
from jasper_mmap.dataset.device import placed_store
from jasper_mmap.rules.names import Split
from tests.folders import SYNTHETIC
from tests.oracle import VARIANTS, Oracle, assert_batches_equal
from tests.serving import (
    CONTEXTS,
    SPLITS,
    Named,
    NamedOracle,
    assert_pass_equals_oracle,
    loader_of,
    next_positions,
    uneven_batch_size,
    variants_in_epoch,
    variants_of,
)

# Every batch is the oracle's


def test_batches_without_workers_equal_the_oracle(any_store: Path, any_oracle: Oracle) -> None:
    """Two passes over every split of every folder hold the rows the `.pt` files hold."""
    for split in SPLITS:
        loader = loader_of(any_store, split, uneven_batch_size(any_oracle, split))
        assert_pass_equals_oracle(loader, any_oracle, split)
        assert_pass_equals_oracle(loader, any_oracle, split)


def test_single_samples_equal_the_oracle(any_store: Path, any_oracle: Oracle) -> None:
    """A sample is a row of a batch without `B`."""
    for split in SPLITS:
        with JASPERSteeringDataset(any_store, split) as dataset:
            assert len(dataset) == len(any_oracle.splits[split])
            for position in range(min(len(dataset), 20)):
                sample = dataset[position]
                want = any_oracle.sample(split, position, int(sample["steering_variant"]))
                assert_batches_equal(sample, want, tolerance=any_oracle.tolerance)


@pytest.mark.parametrize("context", CONTEXTS)
def test_real_batches_from_workers_equal_the_oracle(
    real_store: Path, oracle_named: NamedOracle, context: str
) -> None:
    """Every split of the real data is served right by one and by two workers."""
    oracle = oracle_named("real")
    every = list(product(SPLITS, (1, 2)))
    for split, workers in every if context == "fork" else every[1::2]:
        loader = loader_of(real_store, split, 64, workers, context)
        assert_pass_equals_oracle(loader, oracle, split, variants_in_epoch(real_store, split, 0))
        del loader


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_batches_from_forked_workers_equal_the_oracle(
    name: str, store_named: Named, oracle_named: NamedOracle
) -> None:
    """Two passes over every split of an untidy folder are right with one and with two workers."""
    oracle = oracle_named(name)
    for split, workers in product(SPLITS, (1, 2)):
        size = uneven_batch_size(oracle, split)
        loader = loader_of(store_named(name), split, size, workers, "fork")
        assert_pass_equals_oracle(loader, oracle, split)
        assert_pass_equals_oracle(loader, oracle, split)
        del loader


@pytest.mark.parametrize(("number", "name"), list(enumerate(SYNTHETIC)))
def test_synthetic_batches_from_fresh_workers_equal_the_oracle(
    number: int, name: str, store_named: Named, oracle_named: NamedOracle
) -> None:
    """Workers that inherit nothing open an untidy folder's store for themselves."""
    oracle = oracle_named(name)
    context, workers = (("spawn", 1), ("forkserver", 2), ("forkserver", 1), ("spawn", 2))[
        number % 4
    ]
    filled = [split for split in SPLITS if oracle.splits[split]]
    split = filled[number % len(filled)]
    loader = loader_of(store_named(name), split, uneven_batch_size(oracle, split), workers, context)
    assert_pass_equals_oracle(loader, oracle, split)
    del loader


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_many_small_batches_of_several_passes_equal_the_oracle(
    demo_store: Path, oracle_named: NamedOracle, workers: int
) -> None:
    """What a worker looked up ahead in one pass does not turn up in the next."""
    loader = loader_of(demo_store, "train", 2, workers)
    for _ in range(3):
        assert_pass_equals_oracle(loader, oracle_named("demo"), "train")
    del loader


@pytest.mark.parametrize("name", SYNTHETIC)
def test_narrow_tables_are_widened_in_pieces(
    name: str, store_named: Named, oracle_named: NamedOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pieces a batch takes."""
    monkeypatch.setattr(gather, "_PIECE_BYTES", 100)
    oracle = oracle_named(name)
    loader = loader_of(store_named(name), "train", uneven_batch_size(oracle, "train"))
    assert_pass_equals_oracle(loader, oracle, "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_tables_that_cannot_be_joined_are_read_one_by_one(
    real_store: Path, oracle_named: NamedOracle, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """As of different dtypes, or where the system refuses the mapping."""
    monkeypatch.setattr(placed_store, "map_stacked", lambda paths, like, huge: None)
    for split in SPLITS:
        loader = loader_of(real_store, split, 64, workers)
        assert_pass_equals_oracle(loader, oracle_named("real"), split)
        del loader


# The order of a pass


def test_train_is_shuffled_whole_and_the_other_splits_keep_their_order(
    demo_store: Path, oracle_named: NamedOracle
) -> None:
    """Every position comes once; each train pass has an order of its own."""
    for split in SPLITS:
        loader, n = loader_of(demo_store, split, 1), len(oracle_named("demo").splits[split])
        first = [int(position) for position in loader.sampler_obj]
        list(loader)
        second = [int(position) for position in loader.sampler_obj]
        assert sorted(first) == sorted(second) == list(range(n))
        if split == "train":
            assert first != second
            assert first != list(range(n))
        else:
            assert first == second == list(range(n))


def test_last_partial_batch_is_dropped_in_train_only(
    demo_store: Path, oracle_named: NamedOracle
) -> None:
    """Train batches are all full; val and test serve every pair."""
    for split, workers in product(SPLITS, (0, 2)):
        n = len(oracle_named("demo").splits[split])
        size = next(size for size in range(7, n) if n % size)
        loader = loader_of(demo_store, split, size, workers)
        sizes = [len(batch["relevance"]) for batch in loader]
        rest = [] if split == "train" else [n % size]
        assert sizes == [size] * (n // size) + rest
        del loader


def test_looking_at_the_first_batch_does_not_count_as_a_pass(
    demo_store: Path, oracle_named: NamedOracle
) -> None:
    """`validate_first_batch` leaves the order of the next pass as it was."""
    for workers in (0, 2):
        loader = loader_of(demo_store, "train", 16, workers)
        before = next_positions(loader)
        assert validate_first_batch(loader) is True
        assert next_positions(loader) == before
        assert_pass_equals_oracle(loader, oracle_named("demo"), "train")
        del loader


@pytest.mark.parametrize("workers", [0, 2])
def test_abandoned_pass_does_not_disturb_the_next_one(
    demo_store: Path, oracle_named: NamedOracle, workers: int
) -> None:
    """After a `break` the next pass starts at its own beginning, with nothing left over."""
    loader = loader_of(demo_store, "train", 16, workers)
    for served, _ in enumerate(loader):
        if served == 2:
            break
    assert_pass_equals_oracle(loader, oracle_named("demo"), "train")
    del loader


# Batches belong to the caller


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_kept_by_the_caller_stay_as_they_were(
    demo_store: Path, oracle_named: NamedOracle, workers: int
) -> None:
    """A pass kept whole is still right when its last batch has come."""
    oracle = oracle_named("demo")
    loader = loader_of(demo_store, "train", 8, workers)
    promised, kept = next_positions(loader), list(loader)
    for positions, batch in zip(promised, kept, strict=True):
        want = oracle.batch("train", positions, batch["steering_variant"].tolist())
        assert_batches_equal(batch, want)
    del loader


@pytest.mark.parametrize("workers", [0, 2])
def test_part_of_a_batch_outlives_the_rest_of_it(demo_store: Path, workers: int) -> None:
    """One column, or a view of a few of its rows, is not overwritten after its batch is dropped."""
    loader = loader_of(demo_store, "train", 8, workers)
    kept = []
    for batch in loader:
        view = batch["negative_embs"][2:4, 1:]
        kept.append((view, view.clone()))
        del batch
    assert all(torch.equal(view, copied) for view, copied in kept)
    del loader


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_changed_by_the_caller_change_nothing_served_later(
    demo_store: Path, oracle_named: NamedOracle, workers: int
) -> None:
    """In-place writes to a batch reach neither the tables nor another batch."""
    loader = loader_of(demo_store, "val", 8, workers)
    for batch in loader:
        for column in batch.values():
            column.fill_(-7)
    assert_pass_equals_oracle(loader, oracle_named("demo"), "val")
    del loader


# Variants


def test_shares_of_variants_follow_the_curriculum(any_store: Path, any_oracle: Oracle) -> None:
    """In every epoch and split each variant's share is less than one sample off its probability."""
    for split in filter(any_oracle.splits.get, SPLITS):
        with JASPERSteeringDataset(any_store, split) as dataset:
            for epoch in (0, 1, 2, 3, 9, 10, 55, 100, 1000):
                dataset.set_epoch(epoch)
                want = any_oracle.curriculum(epoch)
                assert dataset.steering_probs == pytest.approx(want)
                drawn = variants_of(dataset)
                for number, name in enumerate(VARIANTS):
                    off = drawn.count(number) - want[name] * len(dataset)
                    assert abs(off) < 1, f"{split}, epoch {epoch}: {name} is {off} samples off"


def test_variant_of_a_position_ignores_how_it_is_read(demo_store: Path) -> None:
    """Batch size, worker count and order of reading do not change a position's variant."""
    want = variants_in_epoch(demo_store, "train", 3)
    with JASPERSteeringDataset(demo_store, "train", epoch=3) as dataset:
        for order in (range(len(want)), reversed(range(len(want))), [5, 5, 0, 5]):
            assert all(int(dataset[i]["steering_variant"]) == want[i] for i in order)
    for size, workers in product((1, 7, 64), (0, 2)):
        loader = loader_of(demo_store, "train", size, workers, epoch=3)
        for _ in range(2):
            positions = list(chain.from_iterable(next_positions(loader)))
            served = torch.cat([batch["steering_variant"] for batch in loader]).tolist()
            assert served == [want[position] for position in positions]
        del loader


@pytest.mark.parametrize("split", SPLITS)
def test_variants_are_drawn_anew_for_each_epoch_and_seed(demo_store: Path, split: Split) -> None:
    """Neither two epochs with the same probabilities nor two seeds agree on every position."""
    settled = variants_in_epoch(demo_store, split, 20)
    assert settled == variants_in_epoch(demo_store, split, 20)
    assert settled != variants_in_epoch(demo_store, split, 21)
    assert settled != variants_in_epoch(demo_store, split, 20, seed=43)


# Global generators


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_neither_used_nor_touched(demo_store: Path, workers: int) -> None:
    """Opening and two passes leave the generators alone, and do not depend on them."""

    def two_passes() -> list[Tensor]:
        loader = loader_of(demo_store, "train", 16, workers)
        columns = [batch["question_emb"].clone() for _ in range(2) for batch in loader]
        del loader
        return columns

    def states() -> list[bytes]:
        kinds = (torch.get_rng_state().tolist(), np.random.get_state(), random.getstate())
        return [pickle.dumps(state) for state in kinds]

    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = states()
    served = two_passes()
    assert states() == before
    torch.manual_seed(6)
    np.random.seed(6)
    random.seed(6)
    assert all(map(torch.equal, served, two_passes()))
