"""Whatever a folder holds and however it is read, in any order, the batch is the oracle's."""

import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from converters import convert
from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.dataset.device.placement import Placement
from jasper_mmap.rules.names import Split, Variant
from jasper_mmap.rules.schema import COLUMNS
from tests.oracle import VARIANTS, Oracle, assert_batches_equal
from tests.properties.builder import BuilderFolder, builder_folders
from tests.publishing import numbered
from tests.serving import SPLITS, loader_of, next_positions

CONTAINERS: tuple[Callable[[list[int]], Any], ...] = (
    list,
    tuple,
    torch.tensor,
    lambda positions: np.array(positions, np.int32),
)
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where a conversion's many syncs cost nothing."""
NO_WORKERS, OWN_WORKERS, STOCK_WORKERS = range(3)


@dataclass(frozen=True)
class Reading:
    """How a store is read."""

    split: Split
    epoch: int
    seed: int
    forced: Variant | None
    positions: Sequence[Sequence[int]]
    """Of batches read one after the other, in any order, repeated; modulo the split's pairs."""
    batch_size: int
    workers: int
    """One pool an example, for a process costs more than all the rest."""
    publish: bool
    """Whether another generation is adopted in the middle."""


READINGS = st.builds(
    Reading,
    split=st.sampled_from(SPLITS),
    epoch=st.integers(0, 5),
    seed=st.sampled_from((42, 0, -1, 2**64 - 1)),
    forced=st.sampled_from((None, None, *VARIANTS)),
    positions=st.lists(st.lists(st.integers(0, 200), max_size=20), min_size=1, max_size=5),
    batch_size=st.sampled_from((1, 2, 3, 5, 16, 200)),
    workers=st.sampled_from((NO_WORKERS, NO_WORKERS, OWN_WORKERS, STOCK_WORKERS)),
    publish=st.booleans(),
)


class Witness:
    """Knows the batches of one split under generations 1 and 2, and keeps all that were served."""

    def __init__(self, oracle: Oracle, reading: Reading) -> None:
        self.n = len(oracle.splits[reading.split])
        self._oracle = oracle
        self._split = reading.split
        self._rows: list[dict[str, Tensor]] = []
        self._kept: list[tuple[dict[str, Tensor], Sequence[int], tuple[int, ...], str]] = []

    def expects(self, variants: Sequence[int]) -> None:
        """Make the whole split's columns as the oracle's tables are now: the next generation's."""
        self._rows.append(
            self._oracle.batch(self._split, range(self.n), variants) if self.n else {}
        )

    def keep(
        self, batch: dict[str, Tensor], positions: Sequence[int], where: str, *older: int
    ) -> None:
        """Take a batch that was served, of the latest generation or of one of `older`."""
        self._kept.append((batch, positions, (len(self._rows), *older), where))

    def judge(self) -> None:
        """Hold everything that was kept against the oracle, now that much was served since."""
        for batch, positions, generations, where in self._kept:
            if not positions:
                assert all(len(column) == 0 for column in batch.values())
                continue
            for number in generations:
                rows = self._rows[number - 1]
                names = batch if len(batch) == 1 else rows
                want = {name: rows[name][list(positions)] for name in names}
                try:
                    assert_batches_equal(batch, want, tolerance=self._oracle.tolerance, where=where)
                    break
                except AssertionError:
                    if number == generations[-1]:
                        raise


def read_lists(dataset: JASPERSteeringDataset, reading: Reading, witness: Witness) -> None:
    """Read batches of any positions, and each sample of the first of them alone."""
    for number, drawn in enumerate(reading.positions):
        positions = [position % witness.n for position in drawn] if witness.n else []
        container = CONTAINERS[number % len(CONTAINERS)] if positions else list
        batch = dataset.__getitems__(container(positions)).columns
        witness.keep(batch, positions, f"list {number}")
        for position in positions if number == 0 else ():
            one: Mapping[str, Any] = dataset[position]
            sample = {name: value[None] for name, value in one.items()}
            witness.keep(sample, [position], "sample")


def read_loader(loader: Any, witness: Witness, change: Callable[[], object]) -> None:
    """Take a pass of our loader, and call `change` after its first batch."""
    promised = next_positions(loader)
    queued = loader.num_workers * (loader.prefetch_factor or 0)
    for number, batch in enumerate(loader):
        older = (1,) if 0 < number <= queued else ()
        name = [*COLUMNS][number % len(COLUMNS)]
        kept = batch if number % 2 else {name: batch[name]}  # one column alone holds its slot too
        witness.keep(kept, promised[number], f"loader, batch {number}", *older)
        if number == 0:
            change()
    assert len(promised) == len(loader)


def read_stock(
    dataset: JASPERSteeringDataset, reading: Reading, witness: Witness, workers: int = 0
) -> None:
    """Take a pass of torch's own loader, with the default collate."""
    size = reading.batch_size
    loader: DataLoader[Any] = DataLoader(
        dataset, size, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    for number, batch in enumerate(loader):
        positions = range(number * size, min((number + 1) * size, witness.n))
        witness.keep(batch, positions, f"stock loader, batch {number}")


def drawn_variants(dataset: JASPERSteeringDataset, oracle: Oracle, reading: Reading) -> list[int]:
    """Return the variant of each position, whose shares are the curriculum's or the forced one."""
    drawn = [int(dataset[position]["steering_variant"]) for position in range(len(dataset))]
    probabilities = oracle.curriculum(reading.epoch)
    if reading.forced is not None:
        probabilities = {name: float(name == reading.forced) for name in VARIANTS}
    for number, name in enumerate(VARIANTS):
        assert abs(drawn.count(number) - probabilities[name] * len(drawn)) < 1
    return drawn


def serve(folder: BuilderFolder, reading: Reading, root: Path) -> None:
    """Convert a folder, read it by every access path, and hold all of that against the oracle."""
    source, store = folder.write(root / "source"), root / "store"
    convert(
        source,
        store,
        embeddings_dtype=folder.embeddings_dtype,
        allow_nonfinite=folder.allow_nonfinite,
        allow_equal=True,
    )
    oracle = Oracle(source, getattr(torch, folder.embeddings_dtype or "", None))
    witness = Witness(oracle, reading)
    split = reading.split
    options: dict[str, Any] = {"epoch": reading.epoch, "seed": reading.seed}
    splits = JASPERSteeringDataset.create_combined_splits(store, **options)
    dataset = splits[split]
    dataset.force_steering(reading.forced)
    copy: JASPERSteeringDataset = pickle.loads(pickle.dumps(dataset))
    variants = drawn_variants(dataset, oracle, reading)
    witness.expects(variants)
    loader = loader_of(
        store,
        split,
        reading.batch_size,
        2 if reading.workers == OWN_WORKERS else 0,
        drop_last=False,
        **options,
    )
    loader.dataset_obj.force_steering(reading.forced)

    def adopt() -> None:
        """Publish another generation, and adopt it wherever the split is read."""
        if reading.publish:
            tables = numbered(oracle, 1)
            oracle.hard_negatives, oracle.negative_tiers = (t.tolist() for t in tables)
            publish_negatives(store, *tables, allow_equal=True)
            witness.expects(variants)
            others = [name for name in SPLITS if name != split]
            for reader in (splits[others[0]], loader.dataset_obj, copy):
                assert reader.reload_negatives() == 2

    read_lists(dataset, reading, witness)
    read_lists(copy, reading, witness)
    if len(loader):
        read_loader(loader, witness, adopt)
        read_loader(loader, witness, lambda: None)
    else:
        adopt()
    read_lists(dataset, reading, witness)
    read_stock(dataset, reading, witness, 2 if reading.workers == STOCK_WORKERS else 0)
    read_lists(copy, reading, witness)
    placed = JASPERSteeringDataset.create_combined_splits(
        store, **options, placement=Placement(torch.device("cpu"), copied=True)
    )[split]
    placed.force_steering(reading.forced)
    read_lists(placed, reading, witness)
    keywords = oracle.tables["pair_keyword_ids"]
    assert [row.tolist() for row in dataset.pair_keyword_ids] == [list(row) for row in keywords]
    witness.judge()
    for reader in (*splits.values(), loader.dataset_obj, copy, placed):
        reader.close()


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Let the package log nothing: pytest keeps every record of a test until its end."""
    logger = logging.getLogger("jasper_mmap")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@given(folder=builder_folders(), reading=READINGS)
def test_every_access_path_serves_the_oracle(folder: BuilderFolder, reading: Reading) -> None:
    """Samples, lists, torch's loader, ours, a copy by pickle, tables copied as to a device; while
    a generation is adopted, and with every batch kept."""
    with tempfile.TemporaryDirectory(prefix="jasper_property_", dir=IN_MEMORY) as root:
        serve(folder, reading, Path(root))
