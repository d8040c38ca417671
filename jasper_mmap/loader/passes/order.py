"""The order of an epoch: any part can be computed alone, divided among ranks and resumed.

A `PassPlan` is the order of one pass, a pure function; a `PassCounter` selects the next pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...dataset.dataset import JASPERSteeringDataset
from ...files.threads import ProcessLock
from ...rules.permutation import permute
from .state import State

_BLOCK = 1 << 14
"""Positions computed per call: with cold caches a call costs as much as thousands of them."""


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """The positions in each batch of one pass, for one of `world` ranks.

    The global order of the split (shuffled by (seed, epoch, pass), or as stored) is cut into runs
    of world x batch_size; rank r takes the r-th batch_size of each, so the ranks together consume
    the same as a single process, batch by batch. The last run is divided equally: as in torch's
    DistributedSampler, it is padded from the beginning of the order, or cut with `drop_last`.
    `start` is how much of the order earlier, interrupted iterations of this pass consumed, on all
    ranks together.
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

    @property
    def samples(self) -> int:
        """Number of samples for this rank, before a partial last batch is dropped."""
        rest = self.n - self.start
        return rest // self.world if self.drop_last else -(-rest // self.world)

    def __len__(self) -> int:
        whole = self.samples // self.batch_size
        return whole if self.drop_last else -(-self.samples // self.batch_size)

    def rows(self, batch: int) -> int:
        """Number of samples in `batch`."""
        return min(self.batch_size, self.samples - batch * self.batch_size)

    def positions(self, batches: range) -> NDArray[np.int64]:
        """Return the positions of the samples of these batches (ascending), concatenated."""
        # As many as there are at most, however large a batch could be.
        rows = max(0, min(self.batch_size, self.samples - batches.start * self.batch_size))
        begins = np.arange(batches.start, batches.stop, batches.step) * self.batch_size
        own = (begins[:, None] + np.arange(rows)).ravel()
        own = own[: np.searchsorted(own, self.samples)]
        if self.world > 1:
            # This rank takes the rank-th part of each run of world * size in the order; the last
            # run is shorter.
            whole, tail = divmod(self.samples, self.batch_size)
            batch = own // self.batch_size
            size = np.where(batch < whole, self.batch_size, tail)
            own += batch * ((self.world - 1) * self.batch_size) + self.rank * size
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
        return self.start + batches * self.world * self.batch_size


counting = ProcessLock()
"""Held while a pass is counted and begun; one for all, since a counter can be copied."""


class _Next(NamedTuple):
    """The next pass: its number, how much of it was already consumed, the number of the one after
    it, and the epoch of the state, if one was loaded."""

    number: int
    start: int
    following: int
    resumed: int | None = None


_FIRST: Final = _Next(0, 0, 1)


class PassCounter:
    """Counts passes: knows the next one, and where an interrupted one continues."""

    def __init__(
        self,
        dataset: JASPERSteeringDataset,
        batch_size: int,
        drop_last: bool,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._shuffle = shuffle
        self._rank = rank
        self._world = world
        self._seen_calls = dataset.epoch_calls
        self._next = _FIRST

    def peek(self) -> PassPlan:
        """Return the plan of the next iteration, without counting it."""
        return self._plan(self._coming())

    def _coming(self) -> _Next:
        # A training loop calls set_epoch after load_state_dict, perhaps for earlier epochs too: the
        # place is lost only when a pass of another epoch begins.
        called = self._seen_calls != self._dataset.epoch_calls
        if called and self._next.resumed != self._dataset.current_epoch:
            return _FIRST
        return self._next

    def _plan(self, coming: _Next) -> PassPlan:
        return PassPlan(
            n=len(self._dataset),
            split=self._dataset.split,
            shuffle=self._shuffle,
            seed=self._dataset.seed,
            epoch=self._dataset.current_epoch,
            pass_number=coming.number,
            start=coming.start,
            batch_size=self._batch_size,
            drop_last=self._drop_last,
            rank=self._rank,
            world=self._world,
        )

    def begin(self) -> PassPlan:
        """Count a pass and return its plan. Call with `counting` held."""
        coming, self._seen_calls = self._coming(), self._dataset.epoch_calls
        if coming.resumed is None and not self._dataset.closed:
            self._dataset.adoption.unpin(self._dataset.adoption.pinned)  # a resumed pass is over
        self._next = _Next(coming.following, 0, coming.following + 1)
        return self._plan(coming)

    @property
    def resuming(self) -> bool:
        """Whether the next iteration continues a pass of a loaded state."""
        return self._coming().resumed is not None

    def first(self) -> PassPlan:
        """Return the plan of the next iteration that has something left to serve."""
        coming = self._coming()
        plan = self._plan(coming)
        if len(plan) or coming.resumed is None:
            return plan
        return self._plan(_Next(coming.following, 0, coming.following + 1))

    def state(self, plan: PassPlan | None, batches: int) -> State:
        """Return the state after `batches` of `plan`, or before the next pass if it is None."""
        coming = self._coming()
        following = self._plan(coming)
        if plan is None or plan.epoch != following.epoch:
            plan, consumed, after = following, following.start, coming.following
        else:
            consumed, after = plan.consumed(batches), coming.number
        generation, sha256 = self._dataset.identity
        return State(
            split=plan.split,
            pairs=plan.n,
            seed=plan.seed,
            store_id=self._dataset.store_id,
            epoch=plan.epoch,
            number=plan.pass_number,
            consumed=consumed,
            following=after,
            generation=generation,
            sha256=sha256,
        )

    def resume(self, state: State) -> None:
        """Continue where `state` was taken, also with another world or batch size."""
        self._dataset.set_epoch(state.epoch)
        self._seen_calls = self._dataset.epoch_calls
        self._next = _Next(state.number, state.consumed, state.following, state.epoch)
