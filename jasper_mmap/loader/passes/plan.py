"""The order of a pass, a pure function: any part can be computed alone, divided among ranks and
resumed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...rules.names import Tail
from ...rules.permutation import permute

_BLOCK = 1 << 14
"""Positions computed per call: with cold caches a call costs as much as thousands of them."""


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """The positions in each batch of one pass, for one of `world` ranks.

    The global order of the split (shuffled by (seed, epoch, pass), or as stored) is cut into runs
    of world x batch_size; rank r takes the r-th batch_size of each, so the ranks together consume
    the same as a single process, batch by batch. `tail` says how the last, shorter run is divided:

    - "share": every position is served once. Ranks differ by at most one row, and where fewer rows
      than ranks are left, the run before leaves some of its own, so that every rank has a last
      batch: all have the same number of batches if n >= world x batches.
    - "pad": every rank gets as many rows, as from torch's DistributedSampler; what is missing is
      repeated from the beginning of the order, at the end of the last ranks' last batches.
    - "cut": every rank gets as many rows, and the rest is not served.

    `drop_last` drops a last batch that is not full on every rank. `start` is how much of the order
    earlier, interrupted iterations of this pass consumed, on all ranks together.
    """

    n: int
    split: str
    shuffle: bool
    seed: int
    epoch: int
    pass_number: int
    start: int
    batch_size: int
    drop_last: bool
    rank: int
    world: int
    tail: Tail = "share"

    @cached_property
    def _runs(self) -> tuple[int, tuple[int, ...]]:
        """The number of whole runs, and the sizes of the one or two after them."""
        run = self.world * self.batch_size
        whole, rest = divmod(self.n - self.start, run)
        if self.drop_last or self.tail == "cut":
            rest -= rest % self.world
        elif self.tail == "pad":
            rest += -rest % self.world
        elif rest and rest < self.world and whole and self.batch_size > 1:
            return whole - 1, (run - self.world + rest, self.world)
        return whole, (rest,) if rest else ()

    def _share(self, size: int) -> tuple[int, int]:
        """Where this rank's part of a run of `size` begins, and its number of rows."""
        rows, more = divmod(size, self.world)
        return self.rank * rows + min(self.rank, more), rows + (self.rank < more)

    @property
    def full(self) -> int:
        """Number of leading batches that surely have `batch_size` rows."""
        return self._runs[0]

    @property
    def samples(self) -> int:
        """Number of samples for this rank, before a partial last batch is dropped."""
        whole, others = self._runs
        return whole * self.batch_size + sum(self._share(size)[1] for size in others)

    @property
    def all_batches(self) -> int:
        """Number of batches for this rank, before a partial last one is dropped."""
        whole, others = self._runs
        return whole + sum(self._share(size)[1] > 0 for size in others)

    def __len__(self) -> int:
        return self.full if self.drop_last else self.all_batches

    @property
    def shortage(self) -> int | None:
        """The number of batches of a whole pass, if not every rank has as many."""
        full, others = replace(self, start=0)._runs
        if self.drop_last or not others or others[-1] >= self.world:
            return None
        return full + len(others)

    def rows(self, batch: int) -> int:
        """Number of samples in `batch`."""
        whole, others = self._runs
        return self.batch_size if batch < whole else self._share(others[batch - whole])[1]

    def padding(self, batch: int) -> int:
        """Number of rows at the end of `batch` that repeat positions of this pass."""
        whole, others = self._runs
        if not whole <= batch < whole + len(others) or self.tail != "pad" or self.drop_last:
            return 0
        begin, rows = self._share(others[0])
        behind = self.start + whole * self.world * self.batch_size + begin + rows - self.n
        return max(0, min(rows, behind))

    def positions(self, batches: range) -> NDArray[np.int64]:
        """Return the positions of the samples of these batches (ascending), concatenated."""
        whole, others = self._runs
        run = self.world * self.batch_size
        regular = range(batches.start, min(batches.stop, whole), batches.step)
        parts = []
        if regular:
            begins = np.arange(regular.start, regular.stop, regular.step) * run
            begins += self.rank * self.batch_size
            parts.append((begins[:, None] + np.arange(self.batch_size)).ravel())
        for batch in batches[len(regular) :]:
            place = batch - whole
            if place >= len(others):
                break
            begin, rows = self._share(others[place])
            begin += whole * run + sum(others[:place])
            parts.append(np.arange(begin, begin + rows))
        if not parts:
            return np.empty(0, dtype=np.int64)
        own = parts[0] if len(parts) == 1 else np.concatenate(parts)
        own += self.start
        if len(own) and own[-1] >= self.n:
            own %= self.n
        if not self.shuffle or not len(own):
            return own
        return permute(own, self.n, "order", self.seed, self.split, self.epoch, self.pass_number)

    @property
    def ahead(self) -> int:
        """Number of batches to compute at once."""
        return max(1, _BLOCK // self.batch_size)

    def consumed(self, batches: int) -> int:
        """How much of the global order is consumed after `batches` batches, including `start`."""
        if batches >= len(self):
            return self.n
        whole, others = self._runs
        run = self.world * self.batch_size
        return self.start + min(batches, whole) * run + sum(others[: max(0, batches - whole)])
