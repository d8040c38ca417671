"""The bookkeeping of one pass: called at every batch, so it does as little as it can."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter_ns

from .histogram import Histogram
from .loader_stats import LoaderStats, Times

_log = logging.getLogger("jasper_mmap")


class StepTimes:
    """What one pass has counted and timed; `stats` says what it means.

    A pass that gives no batches of its own to this, but torch's, sets `fallbacks_of` to where its
    fallbacks are counted.
    """

    def __init__(self, split: str, epoch: int, workers: int) -> None:
        self.split = split
        self.epoch = epoch
        self.workers = workers
        self.began = perf_counter_ns()
        self.batches = 0
        self.samples = 0
        self.counts_ready = False
        self.ready = 0
        """Batches that were ready when they were requested, if `counts_ready`."""
        self.fallbacks = 0
        self.fallbacks_of: Callable[[], int] | None = None
        self.generation = 0
        """That of the control word at the latest batch."""
        self.since_change = 0
        """Batches since then."""
        self.reported = False
        self._waits = Histogram()
        self._steps = Histogram()
        self._first = self._latest = 0
        self._requested = 0
        """When the latest batch was requested; 0 before the first and after the last one."""

    def follow(self, before: StepTimes | None) -> None:
        """Continue the count of batches of a generation where the pass before has left it."""
        if before is not None:
            self.generation, self.since_change = before.generation, before.since_change

    def returned(self, requested: int, generation: int) -> None:
        """A batch that was requested at `requested` (ns) is returned now, under `generation`."""
        wait = perf_counter_ns() - requested
        self._waits.add(wait)
        if self._requested:
            self._steps.add(requested - self._requested)
        else:
            self._first = wait
        self._requested, self._latest = requested, wait
        self.batches += 1
        if generation != self.generation:
            self.generation, self.since_change = generation, 0
        self.since_change += 1

    def ended(self, requested: int) -> None:
        """There was no batch left at the request of that time: the last step is over."""
        if self._requested:
            self._steps.add(requested - self._requested)
            self._requested = self._latest = 0

    def report(self, generation: int) -> None:
        """Log what was measured, once, and only if there was a batch."""
        if self.batches and not self.reported:
            self.reported = True
            if _log.isEnabledFor(logging.INFO):
                _log.info("%s", self.stats(generation))

    def stats(self, generation: int) -> LoaderStats:
        """What was measured so far; `generation` is served now."""
        waits, steps, batches = Times.of(self._waits), Times.of(self._steps), self.batches
        rate = share = None
        if steps.total_s:
            rate = self.samples / batches * steps.count / steps.total_s
            # Without the latest wait, whose step is not over.
            share = (waits.total_s - self._latest / 1e9) / steps.total_s
        elsewhere = 0 if self.fallbacks_of is None else self.fallbacks_of()
        return LoaderStats(
            split=self.split,
            epoch=self.epoch,
            workers=self.workers,
            batches=batches,
            samples=self.samples,
            samples_per_s=rate,
            ready_share=self.ready / batches if self.counts_ready and batches else None,
            waited_share=share,
            waits=waits,
            steps=steps,
            first_wait_s=self._first / 1e9 if batches else None,
            slot_fallbacks=self.fallbacks + elsewhere,
            generation=generation,
            batches_since_change=self.since_change if generation == self.generation else 0,
        )
