"""A thread that detects new generations and adopts them.

It holds no reference to the watched loader or dataset, so it ends with them even if it is not
stopped.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, get_args

from torch.utils.data import DataLoader, Dataset

from ..dataset.adoption import Adoption
from ..dataset.control import in_worker
from ..dataset.dataset import JASPERSteeringDataset
from ..errors import ClosedError, UsageError, WorkerError
from ..rules.names import Adopt
from .epochs import datasets_of
from .generation_look import Look, looking

_EXIT_S: Final = 1.0
"""How long the interpreter waits at exit for a look that is running."""

_log = logging.getLogger("jasper_mmap")
_of_loaders: weakref.WeakKeyDictionary[Any, Watcher] = weakref.WeakKeyDictionary()
"""Dataset -> the watch of its loaders."""


def watch_negatives(
    loader_or_dataset: DataLoader[Any] | Dataset[Any],
    interval_s: float = 1.0,
    adopt: Adopt = "now",
    on_reload: Callable[[int], None] | None = None,
    on_error: Callable[[Exception], None] | None = None,
) -> Watcher:
    """Look for new hard negatives every `interval_s` seconds until `.stop()` or the end of `with`.

    `loader_or_dataset` is as for `set_epoch`. With `adopt="now"` a new generation is served from
    the next batch that is not queued yet, with "epoch" from the next `set_epoch`, where all ranks
    of a loader made with `distributed=True` adopt the one that rank 0 names. Datasets of one
    `create_combined_splits` switch together. `on_reload(generation)` is called after a switch, in
    the thread that switched. A generation that fails its checks is never adopted; it is reported
    once to `on_error` and to the log, and the watch continues. So are exceptions of `on_reload`,
    except interrupts and `SystemExit` in a thread of the trainer. Raises `UsageError` in a worker,
    and if another watch has a different `adopt`.
    """
    if adopt not in get_args(Adopt):
        raise UsageError(f"adopt must be 'now' or 'epoch', not {adopt!r}")
    interval_s = _seconds(interval_s)
    if in_worker():
        raise UsageError("start the watch in the main process, from where it reaches all workers")
    datasets = datasets_of(loader_or_dataset, "watch_negatives")
    # Not a Subset or ConcatDataset, which may be short-lived.
    subjects = [loader_or_dataset] if isinstance(loader_or_dataset, DataLoader) else datasets
    return Watcher(subjects, datasets, interval_s, adopt, on_reload, on_error)


def watch_for(loader: DataLoader[Any], adopt: Adopt) -> Watcher:
    """The watch of a loader with `watch=`; one made instead of another takes the other's over."""
    running = _of_loaders.get(loader.dataset)
    if running is not None and running.adopt == adopt and running.joined_by(loader):
        return running
    watcher = _of_loaders[loader.dataset] = watch_negatives(loader, adopt=adopt)
    return watcher


def _seconds(given: Any) -> float:
    """`given` as a valid interval, or `UsageError`."""
    try:
        seconds = math.nan if isinstance(given, bool | str) else float(given)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise UsageError(f"interval_s must be a finite number of seconds above 0, not {given!r}")
    return seconds


class Watcher:
    """A running watch; see `watch_negatives`."""

    def __init__(
        self,
        subjects: Sequence[object],
        datasets: Sequence[JASPERSteeringDataset],
        interval_s: float,
        adopt: Adopt,
        on_reload: Callable[[int], None] | None,
        on_error: Callable[[Exception], None] | None,
    ) -> None:
        # A SimpleQueue, which unlike an Event may be used during garbage collection.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._pid = os.getpid()
        wake = self._wake
        alive = self._alive = _Alive(subjects, lambda: wake.put(None))
        self.adopt = adopt
        self._stopped = False
        together: dict[Adoption, list[JASPERSteeringDataset]] = {}
        for dataset in datasets:
            together.setdefault(dataset.adoption, []).append(dataset)
        looks: list[Look] = []
        try:
            for adoption, members in together.items():
                looks.append(Look(adoption, members, adopt, on_reload, on_error))
        except BaseException:
            for look in looks:
                look.leave()
            raise
        self._thread = threading.Thread(
            target=_watch,
            args=(looks, self._wake, alive, interval_s),
            name="jasper-watch-negatives",
            daemon=True,
        )
        looking[self._thread] = wake
        try:
            self._thread.start()
        except RuntimeError as error:
            looking.pop(self._thread)
            for look in looks:
                look.leave()
            raise WorkerError(
                f"watch_negatives cannot start its thread ({error}). Raise the limit of processes"
                " and threads (ulimit -u, or the container's), or call reload_negatives() from time"
                " to time."
            ) from None

    def stop(self) -> None:
        """End the watch, after a running look; drop a generation that waits for an epoch."""
        if os.getpid() != self._pid:
            return  # a forked process has a copy of this, but no thread
        self._stopped = True
        self._wake.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def joined_by(self, subject: object) -> bool:
        """Go on as long as `subject` lives too; False if it has ended, other than by `stop`."""
        self._alive.add(subject)
        return self._stopped or self.running

    @property
    def running(self) -> bool:
        """Whether its thread is running."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Alive:
    """Whether any of the `subjects` is alive; `ended` is called when the last one dies."""

    def __init__(self, subjects: Sequence[object], ended: Callable[[], None]) -> None:
        self._ended = ended
        self._references = [weakref.ref(subject, self._died) for subject in subjects]

    def add(self, subject: object) -> None:
        """Count one more."""
        self._references.append(weakref.ref(subject, self._died))

    def __call__(self) -> bool:
        return any(reference() is not None for reference in self._references)

    def _died(self, _: object) -> None:
        if not self():
            self._ended()


def _watch(
    looks: list[Look],
    wake: queue.SimpleQueue[None],
    alive: _Alive,
    interval_s: float,
) -> None:
    try:
        while looks and alive():
            for look in tuple(looks):
                try:
                    look()
                except ClosedError:
                    looks.remove(look)
                    look.leave()
                except BaseException as error:  # noqa: BLE001 - the watch must go on
                    with suppress(BaseException):  # a logging handler may fail too
                        look.report(error)
            try:
                wake.get(timeout=interval_s)
            except queue.Empty:
                continue
            return
    finally:
        for look in looks:
            look.leave()
        looking.pop(threading.current_thread(), None)


@atexit.register
def _end_all() -> None:
    """End all watches at exit: the interpreter must not end while a thread reads tensors."""
    running = list(looking.items())
    for _, wake in running:
        wake.put(None)
    for thread, _ in running:
        thread.join(_EXIT_S)
