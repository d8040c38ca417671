"""What a pass asks of its workers, seen from a pool without any: replies come as the dice fall."""

import random
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.dataset.batch_layout import Layout
from jasper_mmap.dataset.slots import Slots
from jasper_mmap.loader.passes.order import PassCounter
from jasper_mmap.loader.passes.plan import PassPlan
from jasper_mmap.loader.passes.worker_pass import WorkerPass

WORKERS = 2


class Pool:
    """Two workers that write a batch's number into its slot, and reply in any order."""

    is_own = True
    num_workers = WORKERS

    def __init__(self, layout: Layout, prefetch: int, *, in_order: bool) -> None:
        self.lock = threading.Lock()
        self.outstanding_max = WORKERS * prefetch
        self.group = WORKERS * max(1, prefetch // 2)
        self.in_order = in_order
        self.slots = Slots(layout, self.outstanding_max + 1, shared=True)
        self.groups: list[int] = []
        self.closed = 0
        self.waits = 0
        self.passes: weakref.WeakSet[WorkerPass] = weakref.WeakSet()
        self._unsent: list[tuple[WorkerPass, int, int]] = []
        self._sent: list[tuple[WorkerPass, int, int]] = []
        self._dice = random.Random(3)

    def request(self, owner: WorkerPass, batch: int, slot: int) -> None:
        """Take a request down."""
        self._unsent.append((owner, batch, slot))

    def send(self) -> None:
        """Let the workers have them; as many as that came together."""
        self.groups.append(len(self._unsent))
        self._sent += self._unsent
        self._unsent.clear()
        assert len(self._sent) <= self.outstanding_max

    def receive(self, _: float | None) -> bool:
        """Reply to any of the requests."""
        self.waits += 1
        if not self._sent:
            return False
        owner, batch, slot = self._sent.pop(self._dice.randrange(len(self._sent)))
        self.slots.extents.target(slot, owner.plan.rows(batch)).columns["cluster_id"].fill_(batch)
        owner.arrived(batch, slot, 0)
        return True

    def close(self) -> None:
        """Count how often."""
        self.closed += 1


@pytest.fixture
def dataset(demo_store: Path) -> Iterator[JASPERSteeringDataset]:
    """Return a split whose data no worker reads here."""
    with JASPERSteeringDataset(demo_store, "train") as opened:
        yield opened


def begun(
    dataset: JASPERSteeringDataset, prefetch: int, *, in_order: bool = True, last: bool = False
) -> tuple[WorkerPass, Any]:
    """Return a pass over batches of 8, and its pool."""
    plan: PassPlan = PassCounter(dataset, 8, True, True).peek()
    layout = Layout(8, dataset.embedding_dim, dataset.n_neg)
    pool: Any = Pool(layout, prefetch, in_order=in_order)
    return WorkerPass(plan, dataset, pool, last=last), pool


@pytest.mark.parametrize("prefetch", [1, 2, 5])
@pytest.mark.parametrize("in_order", [True, False])
def test_each_batch_is_asked_for_once_and_handed_out(
    dataset: JASPERSteeringDataset, prefetch: int, in_order: bool
) -> None:
    """In order, or as they come; never more at once than may be, and in groups."""
    batches, pool = begun(dataset, prefetch, in_order=in_order, last=True)
    numbers = [int(batch["cluster_id"][0]) for batch in batches]
    assert sorted(numbers) == list(range(len(batches)))
    assert (numbers == sorted(numbers)) == in_order
    assert pool.closed == 1
    assert pool.slots.fallbacks == 0
    full = [size for size in pool.groups if size]
    assert full[0] == pool.outstanding_max
    assert all(size >= pool.group for size in full[:-1])


def test_batches_that_are_kept_take_slots_beyond_the_regular_ones(
    dataset: JASPERSteeringDataset,
) -> None:
    """Then as much is under way as there are workers, and what is kept stays as it came."""
    batches, pool = begun(dataset, 5)
    kept = list(batches)
    assert [int(batch["cluster_id"][0]) for batch in kept] == list(range(len(batches)))
    assert pool.slots.fallbacks == len(batches) - pool.slots.count
    assert max(pool.groups[2:]) <= WORKERS  # the first ones took the regular slots


def test_what_arrived_for_a_pass_that_is_dropped_is_free_again(
    dataset: JASPERSteeringDataset,
) -> None:
    """Replies that were not handed out give their slots back."""
    batches, pool = begun(dataset, 2)
    while pool.receive(None):
        pass
    assert pool.slots.take() == pool.slots.count - 1
    assert pool.slots.take() is None
    del batches
    assert sum(pool.slots.take() is not None for _ in range(9)) == pool.outstanding_max
