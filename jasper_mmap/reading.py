"""Positions in a split -> batch: which pairs, which steering, which generation; then the gather."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from .adoption import Adoption
from .control import NO_VARIANT, Control, Words
from .curriculum import steering_probabilities
from .errors import DeviceError
from .gather import empty_batch, gather, rows_of, wanted_rows
from .served import Served
from .steering import draw_variants


class Drawn(NamedTuple):
    """Steering variants [B] as drawn for one epoch."""

    epoch: int
    variants: NDArray[np.int64]


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

    def read(
        self,
        positions: NDArray[np.int64],
        out: dict[str, torch.Tensor] | None = None,
        drawn: Drawn | None = None,
    ) -> dict[str, torch.Tensor]:
        """The batch of `positions` [B], in columns of its own or in those of `out`.

        With `drawn`, their variants as `draw` gave them for some epoch, nothing is drawn again if
        that epoch still holds.
        """
        served = self.served
        device = served.placement.device
        if device.type != "cpu" and get_worker_info() is not None:
            raise DeviceError(
                f"a dataset on {device} cannot be read in a DataLoader's worker: use num_workers=0"
                " (its batches are ready on the device), or device='cpu' with workers."
            )
        words, variants = self._steered(positions, drawn)
        generation = self.adoption.current(words.generation)
        pairs = self._pairs(positions)
        if out is None:
            config = served.config
            out = empty_batch(len(positions), config.embedding_dim, config.n_neg, device)
        gather(served.tables, generation.tables, pairs, variants, out, served.stack)
        if device.type == "cuda":
            # When another generation is adopted, this one's memory must not be used anew while
            # the trainer's stream still reads from it.
            for table in generation.tables.values():
                table.record_stream(torch.cuda.current_stream(device))
        return out

    def wanted_rows(
        self, positions: NDArray[np.int64], drawn: Drawn
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The wide tables and the rows of them that `read` would read."""
        served = self.served
        words, variants = self._steered(positions, drawn)
        negatives = self.adoption.current(words.generation).tables
        pairs = self._pairs(positions)
        return wanted_rows(served.tables, negatives, pairs, variants, served.stack)

    def _pairs(self, positions: NDArray[np.int64]) -> torch.Tensor:
        tables = self.served.tables
        index = torch.from_numpy(positions).to(self.served.placement.device)
        return rows_of(tables[f"{self.split}_idx"], index).to(torch.int64)

    def _steered(
        self, positions: NDArray[np.int64], drawn: Drawn | None
    ) -> tuple[Words, NDArray[np.int64]]:
        words = self.control.read()
        if words.forced != NO_VARIANT:
            return words, np.full(len(positions), words.forced, dtype=np.int64)
        if drawn is not None and drawn.epoch == words.epoch:
            return words, drawn.variants
        return words, self.draw(positions, words.epoch).variants

    def draw(self, positions: NDArray[np.int64], epoch: int) -> Drawn:
        """The variants that the curriculum of `epoch` gives `positions` [B]."""
        if not len(positions):
            return Drawn(epoch, positions)
        probabilities = steering_probabilities(self.served.config, epoch)
        variants = draw_variants(
            positions,
            self.n,
            tuple(probabilities.values()),
            seed=self.seed,
            split=self.split,
            epoch=epoch,
        )
        return Drawn(epoch, variants)
