"""How many batches a dataset has made for loaders of others, in this process and in its workers.

The workers of torch's DataLoader make batches where the trainer does not see them, so each counts
in a row of its own, in the memory of the control words: only its process writes it, and the trainer
adds all rows up. A row whose process has ended goes on with the next worker, so that rows do not
become more with every epoch.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from ..files.shared_memory import this_process
from ..rules.names import Split
from ..timing.loader_stats import LoaderStats
from .control import COUNTS, SplitWords

_log = logging.getLogger("jasper_mmap")

_OWNER, _SPLIT, _BATCHES, _SAMPLES, _FALLBACKS, _GENERATION, _SINCE = range(7)
"""The words of a row; owner is a process id, 0 if the row was never used."""
_ROW: Final = 8
_NOTE: Final = (
    "waits are not measured, since batches do not come from a loader of this package; those that"
    " are queued are counted"
)


class Counts(NamedTuple):
    """What was made."""

    batches: int = 0
    samples: int = 0
    fallbacks: int = 0
    """How often no regular slot was free."""
    since_change: int = 0
    """Batches of the generation that is served now."""


class ReadCounts:
    """The counts of one split."""

    def __init__(self, words: SplitWords) -> None:
        self._words = words
        self._row: memoryview | list[int] | None = None
        self._process = 0
        self._fallbacks = 0
        """Those in the row that earlier processes counted."""
        self._before: tuple[object, Counts] = None, Counts()
        """The page of the control words, and what was made when the epoch began."""

    def add(self, batches: int, samples: int, fallbacks: int, generation: int) -> None:
        """Count what this process has made of `generation`; `fallbacks` are all of its so far."""
        row = self._row
        if row is None or self._process != this_process():
            row = self._claim()
        row[_BATCHES] += batches
        row[_SAMPLES] += samples
        row[_FALLBACKS] = self._fallbacks + fallbacks
        if row[_GENERATION] != generation:
            row[_SINCE] = 0
            row[_GENERATION] = generation
        row[_SINCE] += batches

    def total(self) -> Counts:
        """What was made since the dataset was opened."""
        generation, rows = self._words.generation, []
        words = self._words.control.page.words
        for at in range(COUNTS.start, COUNTS.stop, _ROW):
            row = words[at : at + _ROW]
            if not row[_OWNER]:
                break
            if row[_SPLIT] == self._words.number:
                since = row[_SINCE] if row[_GENERATION] == generation else 0
                rows.append((*row[_BATCHES : _FALLBACKS + 1], since))
        return Counts(*map(sum, zip(*rows, strict=True))) if rows else Counts()

    def of_epoch(self) -> Counts:
        """What was made since `begin`; `since_change` counts from that change."""
        page, before = self._before
        total = self.total()
        if page is not self._words.control.page:
            return total  # a forked process counts anew
        return Counts(
            total.batches - before.batches,
            total.samples - before.samples,
            total.fallbacks - before.fallbacks,
            total.since_change,
        )

    def begin(self) -> None:
        """Count an epoch from here."""
        self._before = self._words.control.page, self.total()

    def end_epoch(self, split: Split, epoch: int) -> None:
        """Log what was made in an epoch, if anything was, and begin the next one."""
        if _log.isEnabledFor(logging.INFO) and self.of_epoch().samples:
            _log.info("%s", self.stats(split, epoch))
        self.begin()

    def stats(self, split: Split, epoch: int) -> LoaderStats:
        """What was made in this epoch so far."""
        made = self.of_epoch()
        return LoaderStats(
            split=split,
            epoch=epoch,
            batches=made.batches,
            samples=made.samples,
            slot_fallbacks=made.fallbacks,
            generation=self._words.generation,
            batches_since_change=made.since_change,
            note=_NOTE,
        )

    def _claim(self) -> memoryview | list[int]:
        """Take a row for this process: one whose process has ended, or the first unused one."""
        page = self._words.control.page
        number, words = self._words.number, page.words
        row: memoryview | list[int] = [0] * _ROW  # where all rows are taken, nothing is counted
        with _locked(page.memory.fd):
            for at in range(COUNTS.start, COUNTS.stop, _ROW):
                owner, split = words[at], words[at + _SPLIT]
                if not owner or (split == number and not _runs(owner)):
                    row = words[at : at + _ROW]
                    row[_SPLIT], row[_OWNER] = number, os.getpid()
                    break
        self._row, self._process, self._fallbacks = row, this_process(), row[_FALLBACKS]
        return row

    def __reduce__(self) -> tuple[Callable[..., ReadCounts], tuple[Any, ...]]:
        return ReadCounts, (self._words,)


@contextmanager
def _locked(fd: int) -> Iterator[None]:
    # The kernel releases it if the process is killed. Threads do not exclude each other: two that
    # take their first batch at once share a row.
    # Without locks (a sandbox; a dataset that is being collected, whose descriptor is closed) the
    # same holds for processes.
    with suppress(OSError, ValueError):
        fcntl.lockf(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            fcntl.lockf(fd, fcntl.LOCK_UN)


def _runs(pid: int) -> bool:
    if pid == os.getpid():
        return False  # an earlier process of that id, or a copy of this dataset
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
