"""Run `python -m tests.dataset.device.device_path FOLDER STORE ...` and serve stores from a device.

FOLDER is the builder's folder, STORE a copy of its store that may be changed. An error of the
emulation, or a batch that is not the oracle's, ends it. It prints what the look-ups copied.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from torch import Tensor

from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.dataset.device import placement
from jasper_mmap.dataset.device.placement import Placement
from jasper_mmap.dataset.split_reader import SplitReader
from jasper_mmap.loader.passes.local_pass import LocalPass
from jasper_mmap.loader.passes.plan import PassPlan
from jasper_mmap.rules.names import SPLITS, VARIANTS, Split
from jasper_mmap.store.tables import Ragged
from tests.dataset.device.emulated_device import DEVICE, EmulatedDevice, OnDevice
from tests.oracle import Oracle, assert_batches_equal
from tests.publishing import numbered

BYTES_A_SAMPLE: Final = 16
SMALL_STAGING: Final = 10_000
"""So that a table of the tests is copied in pieces."""


class Served:
    """One store, served from the device beside the oracle."""

    def __init__(self, folder: Path, store: Path, device: EmulatedDevice) -> None:
        self.store = store
        self.oracle = Oracle(folder)
        self.device = device
        self.where = store.name
        self.look_ups = self.samples = 0
        with device:
            self.splits = JASPERSteeringDataset.create_combined_splits(
                store, placement=Placement(DEVICE, copied=True, runtime=device.runtime)
            )

    def judge(self, split: Split, positions: Sequence[int], batch: Mapping[str, Any]) -> None:
        """Require that the whole batch is on the device, and holds what the oracle says."""
        assert {type(column) for column in batch.values()} == {OnDevice}
        assert {column.device for column in batch.values()} == {DEVICE}
        values: dict[str, Tensor] = {name: column.held for name, column in batch.items()}
        if positions:
            variants = values["steering_variant"].tolist()
            expected = self.oracle.batch(split, positions, variants)
            tolerance = self.oracle.tolerance
            assert_batches_equal(values, expected, tolerance=tolerance, where=self.where)
        else:
            assert {len(column) for column in values.values()} == {0}

    def staged(self, read: Callable[[], Any]) -> Any:
        """Return what `read()` returns; require one copy a look-up, of 16 bytes a sample."""
        sizes = self.device.staged_bytes
        sizes.clear()
        with (
            self.device,
            mock.patch.object(
                SplitReader, "look_up", autospec=True, side_effect=SplitReader.look_up
            ) as look_up,
        ):
            batch = read()
        samples = [len(call.args[1]) for call in look_up.call_args_list]
        assert sizes == [BYTES_A_SAMPLE * count for count in samples], self.where
        self.look_ups += len(samples)
        self.samples += sum(samples)
        return batch

    def read_lists(self, split: Split) -> None:
        """Read lists whose positions repeat and do not rise, an empty one and samples."""
        dataset = self.splits[split]
        n = len(dataset)
        for size in (0, 1, 3, 17):
            positions = [(7 * i + size) % n for i in range(size)] if n else []
            rows = self.staged(partial(dataset.__getitems__, positions))
            self.judge(split, positions, rows.columns)
        for position in {0, n - 1} if n else ():
            sample = self.staged(partial(dataset.__getitem__, position))
            with self.device:
                self.judge(split, [position], {name: v[None] for name, v in sample.items()})

    def read_pass(self, split: Split) -> None:
        """Iterate over a shuffled pass, changing the stream within it."""
        dataset = self.splits[split]
        plan = PassPlan(
            n=len(dataset),
            split=split,
            shuffle=True,
            seed=dataset.seed,
            epoch=dataset.current_epoch,
            pass_number=0,
            start=0,
            batch_size=11,
            drop_last=False,
            rank=0,
            world=1,
        )
        batches = LocalPass(plan, dataset, None)
        for number in range(len(plan)):
            if number == len(plan) // 2:
                self.device.runtime.current_stream = f"second of {split}"
            batch = self.staged(partial(next, batches))
            self.judge(split, plan.positions(range(number, number + 1)).tolist(), batch)

    def publish(self) -> None:
        """Publish another generation, adopt it, and let the oracle have it."""
        tables = numbered(self.oracle, 1)
        publish_negatives(self.store, *tables, allow_equal=True)
        self.oracle.hard_negatives, self.oracle.negative_tiers = (t.tolist() for t in tables)
        with self.device:
            assert self.splits["train"].reload_negatives() == 2
        assert {dataset.generation for dataset in self.splits.values()} == {2}

    def read_tables(self) -> None:
        """Require that every artifact is on the device, and nowhere else."""
        dataset = self.splits["train"]
        with self.device:
            for name in (*self.oracle.tables, "split_indices"):
                table = getattr(dataset, name, None)
                parts = [table.values, table.offsets] if isinstance(table, Ragged) else [table]
                assert {type(part) for part in parts} == {OnDevice}, name
            assert isinstance(dataset.pair_keyword_ids, Ragged)

    def serve(self) -> None:
        """Read every split in every way, before and after a new generation."""
        self.read_tables()
        for split, dataset in self.splits.items():
            dataset.set_epoch(1)
            for variant in (None, *VARIANTS):
                dataset.force_steering(variant)
                self.read_lists(split)
            dataset.force_steering(None)
            self.read_pass(split)
        self.publish()
        for split in SPLITS:
            self.read_lists(split)
        self.device.runtime.finish(self.device.runtime.begun)
        assert self.device.used <= self.device.runtime.recorded, self.where


def main(arguments: Sequence[str]) -> None:
    """Serve each store."""
    torch.set_num_threads(1)
    for folder, store in zip(arguments[::2], arguments[1::2], strict=True):
        served = Served(Path(folder), Path(store), EmulatedDevice())
        served.serve()
        print(served.where, served.look_ups, served.samples)


if __name__ == "__main__":
    with mock.patch.object(placement, "_STAGING_BYTES", SMALL_STAGING):
        main(sys.argv[1:])
