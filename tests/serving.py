"""Serve a store in every way there is, and hold what comes against the oracle."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jasper_mmap import JASPERSteeringDataset, create_loader
from jasper_mmap.rules.names import Split
from tests.oracle import Oracle, assert_batches_equal

SPLITS: tuple[Split, ...] = ("train", "val", "test")
CONTEXTS = ("fork", "spawn", "forkserver")

Named = Callable[[str], Path]
NamedOracle = Callable[[str], Oracle]


def loader_of(
    store: Path,
    split: Split,
    batch_size: int,
    workers: int = 0,
    context: str = "fork",
    **options: Any,
) -> Any:
    """Return `create_loader`'s loader without pinning, its workers started as `context` says."""
    return create_loader(
        store,
        split,
        batch_size,
        num_workers=workers,
        multiprocessing_context=context if workers else None,
        pin_memory=False,
        **options,
    )


def uneven_batch_size(oracle: Oracle, split: str) -> int:
    """Return a batch size that gives the split several batches, the last one often short."""
    return min(64, max(1, (len(oracle.splits[split]) - 1) // 3))


def next_positions(loader: Any) -> list[list[int]]:
    """Return the positions in the split of each batch of the next pass."""
    order, size = [int(position) for position in loader.sampler_obj], loader.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batch for batch in batches if len(batch) == size or not loader.drop_last]


def assert_pass_equals_oracle(
    loader: Any, oracle: Oracle, split: str, variants: Sequence[int] | None = None
) -> None:
    """Serve one pass: every batch must be the oracle's, steered as it says or as `variants` do."""
    promised, served = next_positions(loader), 0
    for batch in loader:
        positions = promised[served]
        steered = batch["steering_variant"].tolist()
        if variants is not None:
            assert steered == [variants[position] for position in positions]
        want = oracle.batch(split, positions, steered)
        where = f"{split} batch {served}"
        assert_batches_equal(batch, want, tolerance=oracle.tolerance, where=where)
        served += 1
    assert served == len(promised)
    assert served == len(loader)


def variants_of(dataset: JASPERSteeringDataset) -> list[int]:
    """Return the variant of every position of the split in the current epoch."""
    return [int(s["steering_variant"]) for s in dataset.__getitems__(list(range(len(dataset))))]


def variants_in_epoch(store: Path, split: Split, epoch: int, seed: int = 42) -> list[int]:
    """Return the variant of every position of a split, from a dataset of its own."""
    with JASPERSteeringDataset(store, split, epoch=epoch, seed=seed) as dataset:
        return variants_of(dataset)
