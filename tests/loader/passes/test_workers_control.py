"""Epoch and forced steering reach every worker, under every start method."""

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from jasper_mmap import JASPERSteeringDataset, set_epoch
from tests.oracle import VARIANTS
from tests.serving import (
    CONTEXTS,
    NamedOracle,
    assert_pass_equals_oracle,
    loader_of,
    next_positions,
    variants_in_epoch,
    variants_of,
)


@pytest.mark.parametrize("context", CONTEXTS)
def test_forced_steering_reaches_persistent_workers(
    demo_store: Path, oracle_named: NamedOracle, context: str
) -> None:
    """A forced variant rules all but the batches already queued, until it is lifted."""
    oracle, drawn = oracle_named("demo"), variants_in_epoch(demo_store, "train", 0)
    loader = loader_of(demo_store, "train", 8, 2, context)
    queued = 2 * (loader.prefetch_factor or 2)
    for served, batch in enumerate(loader):
        if served == 0:
            loader.dataset_obj.force_steering("residual")
        elif served > queued:
            assert batch["steering_variant"].unique().tolist() == [VARIANTS.index("residual")]
    assert served > queued
    for number, name in enumerate(VARIANTS):
        loader.dataset_obj.force_steering(name)
        assert_pass_equals_oracle(loader, oracle, "train", [number] * len(drawn))
    loader.dataset_obj.force_steering(None)
    assert_pass_equals_oracle(loader, oracle, "train", drawn)
    del loader


@pytest.mark.parametrize("context", CONTEXTS)
def test_set_epoch_reaches_persistent_workers(
    demo_store: Path, oracle_named: NamedOracle, context: str
) -> None:
    """After `set_epoch` the same workers serve what a loader opened in that epoch serves."""
    oracle = oracle_named("demo")
    loader = loader_of(demo_store, "train", 8, 2, context)
    assert_pass_equals_oracle(loader, oracle, "train", variants_in_epoch(demo_store, "train", 0))
    workers = {child.pid for child in multiprocessing.active_children()}
    for epoch in (1, 12):
        set_epoch(loader, epoch)
        newcomer = loader_of(demo_store, "train", 8, epoch=epoch)
        assert next_positions(loader) == next_positions(newcomer)
        want = variants_in_epoch(demo_store, "train", epoch)
        assert_pass_equals_oracle(loader, oracle, "train", want)
    assert {child.pid for child in multiprocessing.active_children()} == workers
    del loader


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copy_starts_where_the_dataset_stands_and_goes_its_own_way(
    demo_store: Path, copied: Callable[[JASPERSteeringDataset], JASPERSteeringDataset]
) -> None:
    """A copy keeps the epoch and the forced variant; later changes stay on their side."""
    with JASPERSteeringDataset(demo_store, "train", epoch=2) as dataset:
        dataset.set_epoch(4)
        dataset.force_steering("keyword")
        with copied(dataset) as twin:
            assert twin.current_epoch == 4
            assert set(variants_of(twin)) == {VARIANTS.index("keyword")}
            dataset.force_steering(None)
            dataset.set_epoch(5)
            assert set(variants_of(twin)) == {VARIANTS.index("keyword")}
            twin.force_steering(None)
            assert variants_of(twin) == variants_in_epoch(demo_store, "train", 4)
            twin.set_epoch(6)
            assert variants_of(dataset) == variants_in_epoch(demo_store, "train", 5)
