"""Repeated looks at a store's pointer, and the state kept between them.

A look compares inode, time and size of the pointer, which takes about a microsecond and no lock.
A new generation is checked in full before anything is switched.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ..dataset.adoption import Adoption
from ..dataset.dataset import JASPERSteeringDataset
from ..dataset.device.placed_store import PlacedGeneration
from ..errors import AccessError, ClosedError, MissingFileError, StorageError
from ..rules.names import Adopt
from ..store.pointer import pointer_path, read_pointer

Version = tuple[int, int, int]
"""Inode, mtime_ns and bytes of a file: they differ for another file of the same name."""

_PATIENCE: Final = 5
"""Consecutive looks for which a missing or unreadable file counts as a temporary failure."""

_log = logging.getLogger("jasper_mmap")

looking: dict[threading.Thread, queue.SimpleQueue[None]] = {}
"""Thread of a watch -> the queue that ends it."""


class Look:
    """One look at the pointer, and the state kept from look to look.

    `datasets` share `adoption`; it ends with the last of them.
    """

    def __init__(
        self,
        adoption: Adoption,
        datasets: Sequence[JASPERSteeringDataset],
        adopt: Adopt,
        on_reload: Callable[[int], None] | None,
        on_error: Callable[[Exception], None] | None,
    ) -> None:
        self._watching = adoption.join(adopt, frozenset(dataset.split for dataset in datasets))
        self._adoption = weakref.ref(adoption)
        self._datasets = [weakref.ref(dataset) for dataset in datasets]
        self._on_error = on_error
        self._on_reload = on_reload
        adoption.listeners.append(self._reloaded)
        self._pointer = pointer_path(adoption.path)
        self._done: Version | None = None
        """Version of the pointer that was handled last."""
        self._named = 0
        """The generation that it named."""
        self._newest: PlacedGeneration | None = None
        """The newest generation that passed its checks."""
        self._spoilt: tuple[Version | None, Path, Version | None] | None = None
        """Versions of a pointer and its file that failed: checked again when either changes."""
        self._reported: Version | None = None
        self._misses, self._missed = 0, _NOTHING
        """Number of consecutive looks at this version of the pointer that could not read it all."""

    def __call__(self) -> None:
        """Look once; raises `ClosedError` when every dataset is gone or closed."""
        adoption = self._adoption()
        if adoption is None or not any(self._open(dataset()) for dataset in self._datasets):
            raise ClosedError("the watched datasets are closed")
        version = _version(self._pointer)
        # The named generation may have been served before the watch began, and then replaced by an
        # older one on which the ranks agreed.
        newest = self._newest
        known = max(adoption.number, newest.number if newest is not None else 0)
        done = version == self._done and self._named <= known
        if version is None or not (done or self._known_spoilt(version)):
            self._examine(adoption, version)
        newest = self._newest
        if newest is not None and newest.number > adoption.number:
            if self._watching.adopt == "now":
                adoption.adopt(newest)
            else:
                self._watching.held = newest

    @staticmethod
    def _open(dataset: JASPERSteeringDataset | None) -> bool:
        return dataset is not None and not dataset.closed

    def _known_spoilt(self, version: Version) -> bool:
        if self._spoilt is None:
            return False
        pointer, path, file = self._spoilt
        return (version, _version(path)) == (pointer, file)

    def _examine(self, adoption: Adoption, version: Version | None) -> None:
        path = self._pointer
        file: Version | None = None
        try:
            pointer = read_pointer(adoption.path)
            path = self._pointer.parent / pointer.file
            file = _version(path)
            if pointer.generation > adoption.number:
                self._newest = adoption.examined(pointer)
        except (MissingFileError, StorageError, AccessError) as error:
            # It may be just being replaced, or not yet visible on a network file system.
            key = version or _NOTHING
            self._misses = self._misses + 1 if key == self._missed else 1
            self._missed = key
            if self._misses >= _PATIENCE and self._reported != key:
                self._reported = key
                self.report(error)
        except Exception as error:  # noqa: BLE001 - a damaged file must not end the watch
            if _version(self._pointer) != version:
                return  # replaced meanwhile: it is unknown which one was read
            self._spoilt = (version, path, file)
            if self._reported != version:
                self._reported = version
                self.report(error)
        else:
            self._done, self._named = version, pointer.generation
            self._spoilt, self._misses = None, 0

    def report(self, error: BaseException) -> None:
        """Report an error; a failure of the callback is only logged."""
        _log.error("watching %s: %s", self._pointer, error)
        _call(self._on_error, error)

    def _reloaded(self, generation: int) -> None:
        failure = _call(self._on_reload, generation)
        if failure is not None:
            _call(self._on_error, failure)

    def leave(self) -> None:
        """Drop the generation that waits for an epoch, and stop listening for switches."""
        adoption = self._adoption()
        if adoption is not None:
            adoption.leave(self._watching)
            adoption.listeners.remove(self._reloaded)


_NOTHING: Final = (0, 0, 0)


def _version(path: Path) -> Version | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _call(callback: Callable[[Any], None] | None, value: Any) -> BaseException | None:
    """Call a user's callback; return its failure, which must stop neither watch nor training.

    In a thread of the trainer, where an epoch begins or negatives are reloaded, interrupts and
    `SystemExit` pass through.
    """
    try:
        if callback is not None:
            callback(value)
    except BaseException as error:
        if not isinstance(error, Exception) and threading.current_thread() not in looking:
            raise
        _log.exception("a callback of watch_negatives failed")
        return error
    return None
