"""Whether data would be the limit of a training step of a given length, measured.

A trainer is played that takes a batch, keeps it for the time of the step and leaves the cores free,
as one on a GPU does. Waiting is the time of taking a batch, not what a busy machine adds to a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..progress import Show
from .measure import Cell, open_ours, workers_text
from .turns import Running, Turns

LIMIT: Final = 0.05
"""Data is the limit if more than this share of the time is waiting."""
_FEWEST: Final = 10
_AHEAD_S: Final = 5.0
_SPIN_S: Final = 0.0005
"""Sleeping takes this much longer than asked for, at most; so the end of a step is spun."""

Opener = Callable[[Path, int, int], Running]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How long a training waits for data with a number of workers."""

    workers: int
    step_s: float
    share: float
    """Share of the time that is waiting."""

    @property
    def wait_s(self) -> float:
        """The wait of a step, in the mean."""
        return self.step_s * self.share / max(1.0 - self.share, 1e-9)

    @property
    def limits(self) -> bool:
        """Whether data is the limit."""
        return self.share > LIMIT

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "workers": self.workers,
            "wait_ms": self.wait_s * 1e3,
            "waited_share": self.share,
            "limit": self.limits,
        }


def open_stepping(opener: Opener, step_s: float, store: Path, workers: int, size: int) -> Running:
    """Open what `opener` opens, with a step of `step_s` after each batch."""
    running = opener(store, workers, size)
    # Enough to use up what is queued, unless the steps are so long that the queue stays full.
    ahead = min(running.ahead, math.ceil(_AHEAD_S / step_s))
    return Running(partial(_step, running.step, step_s), ahead)


def _step(take: Callable[[], float], step_s: float) -> float:
    """Take a batch and keep it for `step_s`; return the seconds that taking it took."""
    began = time.perf_counter()
    take()
    taken = time.perf_counter()
    time.sleep(max(0.0, step_s - _SPIN_S))
    while time.perf_counter() - taken < step_s:
        pass
    return taken - began


def measure_waiting(
    store: Path,
    batch_size: int,
    step_s: float,
    cells: Sequence[Cell],
    seconds: float,
    opener: Opener = open_ours,
    progress: Show | None = None,
) -> list[Waiting]:
    """Measure the fewest workers of `cells`, then more, until data is not the limit.

    Numbers of workers whose throughput cannot suffice are left out, except the fewest and, if none
    suffices, the fastest. `progress` is called with the workers, and how many settings are done and
    are to be measured at most.
    """
    few, *more = sorted(cells, key=lambda cell: cell.workers)
    fastest = max(cells, key=lambda cell: cell.rate)
    able = [cell for cell in more if batch_size / cell.rate <= step_s]
    measured: list[Waiting] = []
    tried = [few, *(able or [fastest])]
    for cell in tried:
        if measured and (cell is few or not measured[-1].limits):  # `few` may be the fastest
            break
        if progress is not None:
            progress(f"step, {workers_text(cell.workers)}", len(measured), len(tried))
        opened = partial(open_stepping, opener, step_s, store, cell.workers, batch_size)
        with Turns(opened) as turns:
            share = turns.run(max(seconds, _FEWEST * step_s))
        measured.append(Waiting(workers=cell.workers, step_s=step_s, share=share))
    return measured


def answer_of(measured: Sequence[Waiting], batch_size: int) -> dict[str, Any]:
    """The JSON form, including the sentence."""
    enough = next((waiting.workers for waiting in measured if not waiting.limits), None)
    return {
        "step_ms": measured[0].step_s * 1e3,
        "limit_share": LIMIT,
        "measured": [waiting.to_dict() for waiting in measured],
        "limit": measured[0].limits,
        "enough_workers": enough,
        "sentence": sentence_of(measured, batch_size),
    }


def sentence_of(measured: Sequence[Waiting], batch_size: int) -> str:
    """Say whether data would be the limit, by how much, and with how many workers it would not."""
    first = measured[0]
    begin = f"a training step of {first.step_s * 1e3:g} ms, batches of {batch_size}: data would"
    if not first.limits:
        even = "even " if not first.workers else ""
        return f"{begin} not be the limit, {even}{_with(first)}: {_waits(first)}"
    sentence = f"{begin} be the limit {_with(first)}: {_waits(first)}"
    enough = next((waiting for waiting in measured if not waiting.limits), None)
    if enough is not None:
        return f"{sentence}; {_with(enough)} it would not: {_waits(enough)}"
    best = min(measured, key=lambda waiting: waiting.share)
    if best is first:
        return f"{sentence}; no other number of workers that was measured is better"
    at_best = f"at best, {_with(best)}, {_waits(best)}"
    return f"{sentence}; no number of workers that was measured is enough: {at_best}"


def _with(waiting: Waiting) -> str:
    return f"with num_workers={waiting.workers}" if waiting.workers else "without workers"


def _waits(waiting: Waiting) -> str:
    return f"a step would wait {waiting.wait_s * 1e3:.2g} ms, {waiting.share:.1%} of the time"
