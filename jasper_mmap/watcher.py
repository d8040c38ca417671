"""A thread that sees new generations and puts them in service.

It compares inode, time and size of the pointer, which costs about a microsecond and takes no lock.
What it finds is checked in full before anything is switched. It holds no reference to the loader
or dataset that it watches for, so it ends with them even when nobody stops it.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from torch.utils.data import DataLoader, get_worker_info

from .dataset import JASPERSteeringDataset
from .errors import AccessError, ClosedError, MissingFileError, StorageError, UsageError
from .negatives import pointer_path, read_pointer
from .served import Generation

Adopt = Literal["now", "epoch"]
Stamp = tuple[int, int, int]

_PATIENCE: Final = 5
"""Looks in a row for which a missing or unreadable file is taken for a hiccup of the storage."""
_EXIT_S: Final = 1.0
"""How long the end of the interpreter waits for a look that is under way."""

_log = logging.getLogger("jasper_mmap")


_running: dict[threading.Thread, queue.SimpleQueue[None]] = {}


def watch_negatives(
    loader_or_dataset: DataLoader[Any] | JASPERSteeringDataset,
    interval_s: float = 1.0,
    adopt: Adopt = "now",
    on_reload: Callable[[int], None] | None = None,
    on_error: Callable[[Exception], None] | None = None,
) -> Watcher:
    """Look for new hard negatives every `interval_s` seconds until `.stop()` or the end of `with`.

    With `adopt="now"` a new generation is served from the next batch on that is not queued yet,
    with "epoch" from the next `set_epoch` on; the ranks of a loader made with `distributed=True`
    then all take the one that rank 0 names. `on_reload(generation)` is called after a switch, in
    the thread that made it. A generation that fails its checks is told once to `on_error` (and
    logged), never adopted, and the watch goes on. Raises `UsageError` in a worker.
    """
    if adopt not in ("now", "epoch"):
        raise UsageError(f"adopt must be 'now' or 'epoch', not {adopt!r}")
    if not interval_s > 0:
        raise UsageError(f"interval_s must be above 0, not {interval_s!r}")
    if get_worker_info() is not None:
        raise UsageError("start the watch in the main process: it reaches all workers from there")
    dataset = getattr(loader_or_dataset, "dataset", loader_or_dataset)
    if not isinstance(dataset, JASPERSteeringDataset):
        raise UsageError(
            "watch_negatives takes a JASPERSteeringDataset or a loader of one, not"
            f" {type(loader_or_dataset).__name__} of {type(dataset).__name__}"
        )
    return Watcher(loader_or_dataset, dataset, interval_s, adopt, on_reload, on_error)


class Watcher:
    """A watch under way; see `watch_negatives`."""

    def __init__(
        self,
        subject: object,
        dataset: JASPERSteeringDataset,
        interval_s: float,
        adopt: Adopt,
        on_reload: Callable[[int], None] | None,
        on_error: Callable[[Exception], None] | None,
    ) -> None:
        # A SimpleQueue, for unlike an Event it may be put to while the collector runs.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._pid = os.getpid()
        look = _Look(dataset, adopt, on_reload, on_error)
        wake = self._wake
        alive = weakref.ref(subject, lambda _: wake.put(None))
        self._thread = threading.Thread(
            target=_watch,
            args=(look, self._wake, alive, interval_s),
            name="jasper-watch-negatives",
            daemon=True,
        )
        _running[self._thread] = wake
        self._thread.start()

    def stop(self) -> None:
        """End the watch and wait for a look under way; what waits for an epoch is let go of."""
        if os.getpid() != self._pid:
            return  # a forked process has a copy of this, but no thread
        self._wake.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def running(self) -> bool:
        """Whether there is a thread that looks."""
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


def _watch(
    look: _Look,
    wake: queue.SimpleQueue[None],
    alive: weakref.ref[object],
    interval_s: float,
) -> None:
    try:
        while alive() is not None:
            try:
                look()
            except ClosedError:
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the watch must go on
                look.report(error)
            try:
                wake.get(timeout=interval_s)
            except queue.Empty:
                continue
            return
    finally:
        look.leave()
        _running.pop(threading.current_thread(), None)


@atexit.register
def _end_all() -> None:
    """The interpreter must not go away under a thread that reads tensors."""
    running = list(_running.items())
    for _, wake in running:
        wake.put(None)
    for thread, _ in running:
        thread.join(_EXIT_S)


class _Look:
    """One look at the pointer, and what is remembered from look to look."""

    def __init__(
        self,
        dataset: JASPERSteeringDataset,
        adopt: Adopt,
        on_reload: Callable[[int], None] | None,
        on_error: Callable[[Exception], None] | None,
    ) -> None:
        self._dataset = weakref.ref(dataset)
        self._adopt = adopt
        self._on_error = on_error
        self._on_reload = on_reload
        dataset.adoption.listeners.append(self._reloaded)
        self._pointer = pointer_path(dataset.adoption.path)
        self._done: Stamp | None = None
        """Of the pointer when it was last dealt with."""
        self._named = 0
        """The generation that it named then."""
        self._found: Generation | None = None
        """The newest generation that passed its checks."""
        self._spoilt: tuple[Stamp | None, Path, Stamp | None] | None = None
        """Stamps of a pointer and its file that failed: looked at again when either changes."""
        self._reported: Stamp | None = None
        self._misses, self._missed = 0, _NOTHING
        """How many looks in a row found this pointer, or none, but not what it names."""

    def __call__(self) -> None:
        dataset = self._dataset()
        if dataset is None:
            raise ClosedError("the dataset is gone")
        adoption = dataset.adoption
        _ = adoption.path  # raises if it was closed
        stamp = _stamp(self._pointer)
        # What it named may not have been found by this watch, but served when it began, and then
        # left again by ranks that agreed on an older one.
        found = self._found
        known = max(adoption.number, found.number if found is not None else 0)
        done = stamp == self._done and self._named <= known
        if stamp is None or not (done or self._known_spoilt(stamp)):
            self._examine(dataset, stamp)
        found = self._found
        if found is not None and found.number > adoption.number:
            if self._adopt == "now":
                adoption.adopt(found)
            else:
                adoption.hold(found)

    def _known_spoilt(self, stamp: Stamp) -> bool:
        if self._spoilt is None:
            return False
        pointer, path, file = self._spoilt
        return (stamp, _stamp(path)) == (pointer, file)

    def _examine(self, dataset: JASPERSteeringDataset, stamp: Stamp | None) -> None:
        adoption, path = dataset.adoption, self._pointer
        file: Stamp | None = None
        try:
            pointer = read_pointer(adoption.path)
            path = self._pointer.parent / pointer.file
            file = _stamp(path)
            if pointer.generation > adoption.number:
                self._found = adoption.examined(pointer)
        except ClosedError:
            raise
        except (MissingFileError, StorageError, AccessError) as error:
            # Being replaced, or a network file system that is behind: it may be there next time.
            key = stamp or _NOTHING
            self._misses = self._misses + 1 if key == self._missed else 1
            self._missed = key
            if self._misses >= _PATIENCE and self._reported != key:
                self._reported = key
                self.report(error)
        except Exception as error:  # noqa: BLE001 - a spoilt file must not end the watch
            if _stamp(self._pointer) != stamp:
                return  # replaced since the stamp was taken, which one was read is not known
            self._spoilt = (stamp, path, file)
            if self._reported != stamp:
                self._reported = stamp
                self.report(error)
        else:
            self._done, self._named = stamp, pointer.generation
            self._spoilt, self._misses = None, 0

    def report(self, error: Exception) -> None:
        """Tell of an error; what fails here is logged only."""
        _log.error("watching %s: %s", self._pointer, error)
        _call(self._on_error, error)

    def _reloaded(self, generation: int) -> None:
        _call(self._on_reload, generation)

    def leave(self) -> None:
        """Let go of what waits for an epoch, and hear of no more switches."""
        dataset = self._dataset()
        if dataset is not None:
            dataset.adoption.hold(None)
            dataset.adoption.listeners.remove(self._reloaded)


_NOTHING: Final = (0, 0, 0)


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _call(callback: Callable[[Any], None] | None, value: Any) -> None:
    """Call a user's callback; its failure must stop neither the watch nor the training."""
    try:
        if callback is not None:
            callback(value)
    except Exception:  # noqa: BLE001 - see above
        _log.exception("a callback of watch_negatives failed")
