"""The pass over batches that torch's own iterator makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...dataset.batch_layout import Columns
from ...dataset.dataset import JASPERSteeringDataset
from ...dataset.split_reader import SplitReader
from ...errors import WorkerError
from .given_sampler import GivenSampler
from .local_pass import Pass
from .plan import PassPlan


@contextmanager
def bus_errors_explained(reads: SplitReader) -> Iterator[None]:
    """Replace torch's error of a worker that SIGBUS has ended by one that names the file."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        # torch takes it for too little shared memory, or a pipe of the worker breaks before torch
        # hears of its end.
        bus_error = isinstance(error, RuntimeError) and "Bus error" in str(error)
        why = reads.why_sigbus() if bus_error else reads.truncation()
        if not why:
            raise
        raise WorkerError(f"a DataLoader worker was ended by SIGBUS: {why}") from error


class ForeignPass(Pass):
    """Batches of torch's own iterator, for options that this package's iterators do not support."""

    def __init__(
        self,
        plan: PassPlan,
        dataset: JASPERSteeringDataset,
        batches: Iterator[Columns],
        given: GivenSampler | None = None,
        *,
        workers: int = 0,
    ) -> None:
        sizes = None if given is None else given.sizes
        super().__init__(plan, dataset, given=given, sizes=sizes, workers=workers)
        self._batches = batches
        self._given_sizes = sizes
        counts = self._counts = dataset.read_counts
        before = counts.total().fallbacks
        self.times.fallbacks_of = lambda: counts.total().fallbacks - before

    def _drop(self) -> None:
        self._batches = iter(())

    def _next(self) -> Columns:
        with bus_errors_explained(self._reads):
            batch = next(self._batches)
        self.times.samples += self._rows()
        return batch

    def report(self) -> None:
        """Log what was measured, so that the next epoch need not log it for another loader."""
        super().report()
        self._counts.begin()

    def _rows(self) -> int:
        sizes, plan = self._given_sizes, self.plan
        if sizes is None:  # a sampler of single samples may give more than the plan
            return plan.rows(self.count) if self.count < len(plan) else plan.batch_size
        return sizes.popleft() if self._sizes is None else sizes[0]
