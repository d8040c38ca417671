"""Positions in a split -> batches: which pairs, steering and generation; then the gather."""

from __future__ import annotations

from dataclasses import dataclass, field
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


class _Spares:
    """Lookups to use again, by any thread: appending to and popping from a list is atomic."""

    def __init__(self) -> None:
        self._kept: list[Lookup] = []

    def take(self, batches: int, batch_size: int) -> Lookup | None:
        """One of that shape, if it comes first; others go."""
        try:
            lookup = self._kept.pop()
        except IndexError:
            return None
        return lookup if lookup.shape == (batches, batch_size) else None

    def keep(self, lookup: Lookup) -> None:
        self._kept.append(lookup)

    def __reduce__(self) -> tuple[type[_Spares], tuple[()]]:
        return _Spares, ()


@dataclass(frozen=True)
class SplitReader:
    """Reads batches of one split, as the control words say at that moment."""

    served: Served
    adoption: Adoption
    control: Control
    split: str
    seed: int
    _spares: _Spares = field(default_factory=_Spares, repr=False, compare=False)

    @cached_property
    def n(self) -> int:
        """How many pairs the split has."""
        return len(self.served.tables[f"{self.split}_idx"])

    def read(self, positions: NDArray[np.int64]) -> Batch:
        """The batch of `positions` [B], in columns of its own."""
        batch = self.new_batch(len(positions))
        if len(positions):
            lookup = self.look_up(positions, len(positions), self.control.read(), batch)
            lookup.fill_wide(0, Target(batch))
            self.spare(lookup)
        return batch

    def new_batch(self, size: int) -> Batch:
        """Uninitialised columns where the tables lie."""
        config = self.served.config
        device = self.served.placement.device
        return empty_batch(size, config.embedding_dim, config.n_neg, device)

    def spare(self, lookup: Lookup) -> None:
        """Take back what is no longer needed. On a device a fill may still be under way."""
        if self.served.placement.device.type == "cpu":
            self._spares.keep(lookup)

    def look_up(
        self,
        positions: NDArray[np.int64],
        batch_size: int,
        words: Words,
        plain: Batch | None = None,
    ) -> Lookup:
        """The batches of `positions`, each of `batch_size`, under these control words; `plain` as
        in `Lookup.load`."""
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
        batches = len(positions) // batch_size
        lookup = self._spares.take(batches, batch_size) or Lookup(
            served.tables,
            served.stack,
            batches=batches,
            batch_size=batch_size,
            n_neg=served.config.n_neg,
        )
        lookup.load(generation.tables, pairs, self._variants(positions, words), plain)
        if device.type == "cuda":
            # When another generation is adopted, this one's memory must not be used anew while
            # the trainer's stream still reads from it.
            for table in generation.tables.values():
                table.record_stream(torch.cuda.current_stream(device))
        return lookup

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
