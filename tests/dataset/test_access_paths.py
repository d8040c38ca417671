"""Every way to read a split gives the bits of the oracle, whatever the dtypes of the tables are."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from jasper_mmap import JASPERSteeringDataset, create_loader
from jasper_mmap.dataset.device.placement import Placement
from jasper_mmap.errors import JasperError
from jasper_mmap.rules.names import Variant
from tests.folders import MIXED
from tests.oracle import VARIANTS, Oracle, assert_batches_equal
from tests.serving import Named, NamedOracle

SPLIT: Final = "train"
Batches = Iterator[tuple[list[int], Mapping[str, Any]]]


def one_by_one(dataset: JASPERSteeringDataset) -> Batches:
    """Yield each sample as a batch of one row."""
    for position in range(len(dataset)):
        sample: Mapping[str, Any] = dataset[position]
        yield [position], {name: value[None] for name, value in sample.items()}


def lists(dataset: JASPERSteeringDataset) -> Batches:
    """Yield batches of positions that repeat and do not rise, sizes changing."""
    n = len(dataset)
    for size in (3, 1, 17, 5, n, 17):
        positions = [(7 * i + size) % n for i in range(size)]
        yield [*positions, positions[0]], dataset.__getitems__([*positions, positions[0]]).columns


def stock(dataset: JASPERSteeringDataset, workers: int = 0) -> Batches:
    """Yield what torch's own loader makes, its default collate."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=9,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    for number, batch in enumerate(loader):
        yield list(range(9 * number, min(9 * number + 9, len(dataset)))), batch


def stock_workers(dataset: JASPERSteeringDataset) -> Batches:
    """Yield what two of torch's workers make."""
    return stock(dataset, 2)


def own(dataset: JASPERSteeringDataset, workers: int = 0) -> Batches:
    """Yield what our loader makes of the same epoch and forced variant."""
    loader = create_loader(dataset.dataset_dir, SPLIT, 11, workers, drop_last=False, epoch=1)
    loader.dataset_obj.force_steering(FORCED.get(dataset))
    order = list(loader.sampler_obj)
    for number, batch in enumerate(loader):
        yield order[11 * number : 11 * number + 11], batch


def own_workers(dataset: JASPERSteeringDataset) -> Batches:
    """Yield what two of our workers make."""
    return own(dataset, 2)


def pickled(dataset: JASPERSteeringDataset) -> Batches:
    """Yield lists read from a copy that came by pickle."""
    with pickle.loads(pickle.dumps(dataset)) as copy:
        yield from lists(copy)


def copied_tables(dataset: JASPERSteeringDataset) -> Batches:
    """Yield lists and samples read from tables that were copied as to a device."""
    placement = Placement(torch.device("cpu"), copied=True)
    splits = JASPERSteeringDataset.create_combined_splits(
        dataset.dataset_dir, epoch=1, placement=placement
    )
    splits[SPLIT].force_steering(FORCED.get(dataset))
    yield from lists(splits[SPLIT])
    yield from one_by_one(splits[SPLIT])


PATHS: list[Callable[[JASPERSteeringDataset], Batches]] = [
    one_by_one,
    lists,
    stock,
    stock_workers,
    own,
    own_workers,
    pickled,
    copied_tables,
]
FORCED: dict[JASPERSteeringDataset, Variant] = {}


@pytest.mark.parametrize("forced", [None, *VARIANTS])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.__name__))
@pytest.mark.parametrize("name", [*MIXED, "plain"])
def test_path_serves_the_oracle(
    name: str,
    path: Callable[[JASPERSteeringDataset], Batches],
    forced: Variant | None,
    store_named: Named,
    oracle_named: NamedOracle,
) -> None:
    """Steering is that of the variant which the batch names, and the variant that of the epoch."""
    oracle: Oracle = oracle_named(name)
    with JASPERSteeringDataset(store_named(name), SPLIT, epoch=1) as dataset:
        drawn = [int(dataset[i]["steering_variant"]) for i in range(len(dataset))]
        assert len(set(drawn)) > 1
        if forced is not None:
            dataset.force_steering(forced)
            drawn = [VARIANTS.index(forced)] * len(dataset)
            FORCED[dataset] = forced
        rows = 0
        for positions, batch in path(dataset):
            want = oracle.batch(SPLIT, positions, [drawn[i] for i in positions])
            assert_batches_equal(batch, want, where=f"{path.__name__} {positions[:3]}")
            rows += len(positions)
        assert rows >= len(dataset)
        FORCED.clear()


def test_positions_in_brackets_are_a_batch(demo_store: Path) -> None:
    """A list, tuple, range, array or tensor; one position is a sample as ever."""
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        want = dataset.__getitems__([3, 0, 3]).columns
        kinds: list[Any] = [[3, 0, 3], (3, 0, 3), np.array([3, 0, 3]), torch.tensor([3, 0, 3])]
        for several in [*kinds, [torch.tensor(3), np.int64(0), 3]]:
            batch: Any = dataset[several]
            assert isinstance(batch, dict)
            assert all(torch.equal(batch[name], want[name]) for name in want)
        assert dataset[range(5)]["relevance"].shape == (5,)
        assert dataset[[]]["negative_embs"].shape == (0, 12, 32)
        for one in (3, np.int64(3), torch.tensor(3)):
            assert torch.equal(dataset[one]["relevance"], want["relevance"][0])
        for wrong in ([-1], [len(dataset)], [0.5], [[0]], ["0"]):
            with pytest.raises(JasperError):
                dataset[wrong]
