"""Memory and CPU use of processes, by psutil (extra `bench`); unknown without it."""

from __future__ import annotations

import contextlib
import time
from typing import Final, NamedTuple

try:
    import psutil
except ImportError:
    _KNOWN = False
else:
    _KNOWN = True

_IDLE_S: Final = 0.05
_IDLE_PATIENCE_S: Final = 3.0
_PAUSE_S: Final = 0.25
"""Pause without psutil: workers prefetch a few batches, which takes milliseconds each."""


class Memory(NamedTuple):
    """Bytes of a process and its descendants; USS counts unshared memory, PSS also a share of the
    shared memory."""

    parent_rss: int
    workers_pss: int
    workers_uss: int


def wait_until_idle(pid: int) -> None:
    """Wait until no process of the tree uses the CPU: prefetching has finished."""
    if not _KNOWN:
        time.sleep(_PAUSE_S)
        return
    deadline = time.monotonic() + _IDLE_PATIENCE_S
    before, now = -1.0, _cpu_s(pid)
    while now != before and time.monotonic() < deadline:
        time.sleep(_IDLE_S)
        before, now = now, _cpu_s(pid)


def memory(pid: int) -> Memory | None:
    """The memory of the process `pid` and of its workers, all its descendants."""
    if not _KNOWN:
        return None
    used = {}
    for one in _tree(pid):
        with contextlib.suppress(psutil.Error):
            used[one.pid] = one.memory_full_info()
    parent = used.pop(pid, None)
    return Memory(
        parent_rss=parent.rss if parent else 0,
        workers_pss=sum(getattr(worker, "pss", 0) for worker in used.values()),  # only on Linux
        workers_uss=sum(worker.uss for worker in used.values()),
    )


def _tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def _cpu_s(pid: int) -> float:
    seconds = 0.0
    for one in _tree(pid):
        with contextlib.suppress(psutil.Error):
            seconds += sum(one.cpu_times()[:2])
    return seconds


def cores_busy(seconds: float) -> float | None:
    """Measure the cores in use for `seconds`, during which this process sleeps."""
    if not _KNOWN:
        time.sleep(seconds)
        return None
    return psutil.cpu_percent(seconds) / 100 * (psutil.cpu_count() or 1)
