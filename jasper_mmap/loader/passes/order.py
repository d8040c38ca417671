"""Selecting the next pass of an epoch, and where an interrupted one continues."""

from __future__ import annotations

import copy
from typing import Final, NamedTuple

from ...dataset.dataset import JASPERSteeringDataset
from ...files.threads import ProcessLock
from ...rules.names import Tail
from .plan import PassPlan
from .state import State

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
        tail: Tail = "share",
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._shuffle = shuffle
        self._rank = rank
        self._world = world
        self._tail = tail
        self._seen_calls = dataset.epoch_calls
        self._next = _FIRST

    @property
    def world(self) -> int:
        """The number of ranks that share the order."""
        return self._world

    def with_batches(self, batch_size: int, drop_last: bool) -> PassCounter:
        """Return this counter, or a copy with the same next pass in other batches."""
        if (batch_size, drop_last) == (self._batch_size, self._drop_last):
            return self
        other = copy.copy(self)
        other._batch_size, other._drop_last = batch_size, drop_last
        return other

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
            tail=self._tail,
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
        self._next = _Next(state.number, state.consumed, state.following, state.epoch)
