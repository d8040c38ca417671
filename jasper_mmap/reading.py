"""Positions in a split -> batches: which pairs, steering and generation; then the gather."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from .adoption import Adoption
from .control import NO_VARIANT, Control, Words
from .curriculum import steering_probabilities
from .errors import DeviceError
from .gather import Lookup, rows_of
from .layout import Batch, Target, empty_batch
from .served import Served
from .steering import draw_variants


@dataclass(frozen=True)
class SplitReader:
    """Reads batches of one split, as the control words say at that moment."""

    served: Served
    adoption: Adoption
    control: Control
    split: str
    seed: int

    @cached_property
    def n(self) -> int:
        """How many pairs the split has."""
        return len(self.served.tables[f"{self.split}_idx"])

    def read(self, positions: NDArray[np.int64]) -> Batch:
        """The batch of `positions` [B], in columns of its own."""
        batch = self.new_batch(len(positions))
        if len(positions):
            lookup = self.new_lookup(1, len(positions))
            self.load(lookup, positions, self.control.read())
            lookup.fill(0, Target(batch))
        return batch

    def new_batch(self, size: int) -> Batch:
        """Uninitialised columns where the tables lie."""
        config = self.served.config
        device = self.served.placement.device
        return empty_batch(size, config.embedding_dim, config.n_neg, device)

    def new_lookup(self, batches: int, batch_size: int) -> Lookup:
        """Room for `load`."""
        tables, stack = self.served.tables, self.served.stack
        n_neg = self.served.config.n_neg
        return Lookup(tables, stack, batches=batches, batch_size=batch_size, n_neg=n_neg)

    def load(self, lookup: Lookup, positions: NDArray[np.int64], words: Words) -> None:
        """Look up the batches of `positions` under these control words."""
        served = self.served
        device = served.placement.device
        if device.type != "cpu" and get_worker_info() is not None:
            raise DeviceError(
                f"a dataset on {device} cannot be read in a DataLoader's worker: use num_workers=0"
                " (its batches are ready on the device), or device='cpu' with workers."
            )
        generation = self.adoption.current(words.generation)
        index = torch.from_numpy(positions).to(device)
        pairs = rows_of(served.tables[f"{self.split}_idx"], index).to(torch.int64)
        lookup.load(generation.tables, pairs, self._variants(positions, words))
        if device.type == "cuda":
            # When another generation is adopted, this one's memory must not be used anew while
            # the trainer's stream still reads from it.
            for table in generation.tables.values():
                table.record_stream(torch.cuda.current_stream(device))

    def _variants(self, positions: NDArray[np.int64], words: Words) -> NDArray[np.int64]:
        if words.forced != NO_VARIANT:
            return np.full(len(positions), words.forced, dtype=np.int64)
        probabilities = steering_probabilities(self.served.config, words.epoch)
        return draw_variants(
            positions,
            self.n,
            tuple(probabilities.values()),
            seed=self.seed,
            split=self.split,
            epoch=words.epoch,
        )
