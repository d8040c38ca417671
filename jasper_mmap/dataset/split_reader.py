"""Positions in a split -> batches: selects pairs, steering and generation, then gathers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ClosedError, DeviceError
from ..files.torch_modes import plain_tensors
from ..rules.curriculum import steering_probabilities
from ..rules.names import Split
from ..rules.schema import ARTIFACTS
from ..rules.steering import draw_variants
from ..store.tables import Table
from .adoption import Adoption
from .batch_layout import Columns, Target, empty_batch
from .control import NO_VARIANT, SplitWords, Words, in_worker
from .device.placed_store import PlacedGeneration, PlacedStore
from .gather import Lookup, SingleLookup, rows_of
from .read_counts import ReadCounts
from .worker_slots import BatchSlots

SPLIT_INDICES: Final = "split_indices"
_DRAWN_AT_ONCE: Final = 1500
_MOST_KEPT: Final = 1 << 26
_PIECE: Final = 1 << 16


class _Spares:
    """Lookups to reuse, from any thread: append and pop of a list are atomic."""

    def __init__(self) -> None:
        self._kept: list[Lookup] = []

    def take(self, batches: int, batch_size: int) -> Lookup | None:
        """Return the last one if it has that shape; otherwise drop it."""
        try:
            lookup = self._kept.pop()
        except IndexError:
            return None
        return lookup if lookup.shape == (batches, batch_size) else None

    def keep(self, lookup: Lookup) -> None:
        self._kept.append(lookup)

    def __reduce__(self) -> tuple[type[_Spares], tuple[()]]:
        return _Spares, ()


class _EpochVariants:
    """The variants of the positions of one epoch.

    To draw a few takes as long as to draw `_DRAWN_AT_ONCE`. So when as much time was spent as the
    whole split takes, all are drawn and kept, a byte each.
    """

    def __init__(
        self, epoch: int, n: int, draw: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    ) -> None:
        self.epoch = epoch
        self._n = n
        self._draw = draw
        self._draws = 0
        self._kept: NDArray[np.uint8] | None = None

    def of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the variant numbers [B] of `positions` [B]."""
        if self._kept is None:
            self._draws += 1
            if self._draws * _DRAWN_AT_ONCE < self._n or self._n > _MOST_KEPT:
                return self._draw(positions)
            kept = np.empty(self._n, np.uint8)
            for begin in range(0, self._n, _PIECE):
                piece = np.arange(begin, min(begin + _PIECE, self._n))
                kept[piece] = self._draw(piece)
            self._kept = kept
        return self._kept[positions].astype(np.int64)


class SplitReader:
    """Reads batches of one split under its current control words, until `close()`."""

    def __init__(
        self, served: PlacedStore, adoption: Adoption, words: SplitWords, split: Split, seed: int
    ) -> None:
        self.n = len(served.tables[f"{split}_idx"])
        """The number of pairs in the split."""
        self.words = words
        self.closed = False
        self._tables: tuple[PlacedStore, Adoption] | None = served, adoption
        self._split = split
        self._seed = seed
        self._drawn: _EpochVariants | None = None
        # Weak, so that a generation is released when another one is adopted.
        self._singles: weakref.WeakKeyDictionary[PlacedGeneration, SingleLookup | None] | None = (
            None
        )
        self._spares = _Spares()
        self._last = (0, "")
        self.read_counts = ReadCounts(words)
        self._slots = BatchSlots(served.config.embedding_dim, served.config.n_neg)

    @property
    def identity(self) -> tuple[int, str]:
        """Number and SHA-256 of the served generation; after `close()`, of the last one."""
        return self._last if self._tables is None else self._tables[1].identity

    @property
    def served(self) -> PlacedStore:
        """The tables; raises `ClosedError` after `close()`."""
        return self._open()[0]

    @property
    def adoption(self) -> Adoption:
        """The served generation; raises `ClosedError` after `close()`."""
        return self._open()[1]

    def table(self, name: str) -> Table:
        """The artifact `name` as served now, or the split's own pair numbers."""
        served, adoption = self._open()
        if name == SPLIT_INDICES:
            return served.tables[f"{self._split}_idx"]
        if ARTIFACTS[name].generation:
            return adoption.current(self.words.read().generation).tables[name]
        return served.table(name)

    def why_sigbus(self) -> str:
        """Explain why a process that read the tables was ended by SIGBUS."""
        served, adoption = self._open()
        return served.why_unreadable(adoption.current(self.words.read().generation))

    def truncation(self) -> str:
        """Name the served files that were truncated since; "" if none was."""
        served, adoption = self._open()
        return served.truncation(adoption.current(self.words.read().generation))

    def close(self) -> None:
        """Release the tables."""
        self._last = self.identity
        self.closed = True
        self._tables = None
        self._spares = _Spares()
        self._slots.drop()
        self._singles = None

    def _open(self) -> tuple[PlacedStore, Adoption]:
        tables = self._tables
        if tables is None:
            raise ClosedError("the dataset is closed; open it again to read from it.")
        return tables

    @plain_tensors
    def read(self, positions: NDArray[np.int64], *, reuse: bool = False) -> Columns:
        """Return the batch of `positions` [B]: in new columns, or with `reuse` in a slot."""
        rows, taken = len(positions), None
        words = self.words.read()
        if reuse and rows and self.served.placement.device.type == "cpu":
            taken = self._slots.take(rows)
            single = None if taken is None else self._single(words)
            if (
                taken
                and single
                and single.read(positions, self._variants(positions, words), taken[1])
            ):
                self._count(1, rows, words.generation)
                return taken[0]
        if taken is None:
            columns = self.new_batch(rows)
            taken = columns, Target(columns)
        batch, target = taken
        if rows:
            lookup = self.look_up(positions, rows, words, batch)
            lookup.fill_wide(0, target)
            self.spare(lookup)
        if reuse:
            self._count(1, rows, words.generation)
        return batch

    def read_single(self, position: NDArray[np.int64]) -> Columns:
        """Return the batch of one position [1]; it counts as a sample of some batch."""
        batch = self.read(position)
        self._count(0, 1, self.words.generation)
        return batch

    def _count(self, batches: int, samples: int, generation: int) -> None:
        # Batches that are not read for reuse are counted by who reads them.
        self.read_counts.add(batches, samples, self._slots.fallbacks, generation)

    def _single(self, words: Words) -> SingleLookup | None:
        """What reads single batches of this generation, if its tables allow it."""
        served, adoption = self._open()
        generation = adoption.current(words.generation)
        lookups = self._singles
        if lookups is None:
            lookups = self._singles = weakref.WeakKeyDictionary()
        if generation not in lookups:
            split = served.tables[f"{self._split}_idx"]
            lookups[generation] = SingleLookup.of(
                served.tables, generation.tables, served.stack, split
            )
        return lookups[generation]

    def new_batch(self, size: int) -> Columns:
        """Allocate uninitialised columns on the device of the tables."""
        config = self.served.config
        device = self.served.placement.device
        return empty_batch(size, config.embedding_dim, config.n_neg, device)

    def spare(self, lookup: Lookup) -> None:
        """Keep a lookup for reuse; not on a device, where a fill may still be running."""
        if not self.served.placement.copied:
            self._spares.keep(lookup)

    def look_up(
        self,
        positions: NDArray[np.int64],
        batch_size: int,
        words: Words,
        plain: Columns | None = None,
    ) -> Lookup:
        """Look up the batches of `positions`, each of `batch_size`, under these control words;
        `plain` as in `Lookup.load`."""
        served, adoption = self._open()
        placement = served.placement
        if placement.device.type != "cpu" and in_worker():
            raise DeviceError(
                f"a dataset on {placement.device} cannot be read in a DataLoader's worker: use"
                " num_workers=0 (its batches are ready on the device), or device='cpu' with"
                " workers."
            )
        generation = adoption.current(words.generation)
        if placement.copied:
            served.read_on_stream(generation)
        index, variants = placement.positions(positions, self._variants(positions, words))
        pairs = rows_of(served.tables[f"{self._split}_idx"], index).to(torch.int64)
        batches = len(positions) // batch_size
        lookup = self._spares.take(batches, batch_size) or Lookup(
            served.tables,
            served.stack,
            batches=batches,
            batch_size=batch_size,
            n_neg=served.config.n_neg,
            queued=placement.copied,
        )
        lookup.load(generation.tables, pairs, variants, plain)
        return lookup

    def _variants(self, positions: NDArray[np.int64], words: Words) -> NDArray[np.int64]:
        if words.forced != NO_VARIANT:
            return np.full(len(positions), words.forced, dtype=np.int64)
        drawn = self._drawn
        if drawn is None or drawn.epoch != words.epoch:
            drawn = self._drawn = _EpochVariants(words.epoch, self.n, self._draw(words.epoch))
        return drawn.of(positions)

    def _draw(self, epoch: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
        probabilities = steering_probabilities(self.served.config, epoch)
        return partial(
            draw_variants,
            n=self.n,
            probabilities=tuple(probabilities.values()),
            seed=self._seed,
            split=self._split,
            epoch=epoch,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_drawn": None, "_singles": None}  # a copy makes its own
