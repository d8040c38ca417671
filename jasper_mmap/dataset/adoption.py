"""The generation of negatives that datasets serve, in this process and in its workers.

The process that owns the datasets decides: it checks a generation in full, keeps it open, and then
sets its number and descriptor in one control word. A worker compares that word once a batch and
maps the same file that its owner has open, even if it was removed from the disk since.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import FormatError, JasperError, MissingFileError, UsageError
from ..files.atomic import storage_errors
from ..rules.names import Adopt, Split
from ..store.pointer import FOLDER, Pointer, file_name, read_pointer
from .control import Control
from .device.placed_store import PlacedGeneration, PlacedStore

_log = logging.getLogger("jasper_mmap")

# One lock for all, created at import; it is held briefly, and never by a worker. No process is
# forked meanwhile, since it would start with half a switch.
_switching = threading.Lock()
os.register_at_fork(
    before=_switching.acquire,
    after_in_parent=_switching.release,
    after_in_child=_switching.release,
)


@dataclass(eq=False)
class Watching:
    """The state of one watch."""

    adopt: Adopt
    splits: frozenset[Split]
    """The splits whose next epoch adopts `held`."""
    process: int
    held: PlacedGeneration | None = None
    """A checked generation that waits for the next epoch."""


@dataclass(frozen=True, eq=False)
class Pin:
    """Keeps the generation of a resumed pass in service: while it lasts, no watch switches."""

    split: Split
    epoch: int
    newer: PlacedGeneration | None
    """The generation that was served before, if it is newer."""


class Adoption:
    """The generation that datasets with shared tables serve, and those that wait for an epoch.

    `listeners` are called with the number after each switch, in the thread that switched.
    """

    def __init__(
        self, served: PlacedStore, control: Control, generation: PlacedGeneration | None = None
    ) -> None:
        self.listeners: list[Callable[[int], None]] = []
        self.served = served
        self._control = control
        self._generation = generation
        self._watches: list[Watching] = []
        self.pinned: Pin | None = None
        if generation is not None:
            self._announce(generation)

    def __del__(self) -> None:
        # Before the descriptor is closed, since its number may be reused for another file.
        with suppress(Exception):  # modules may be gone at interpreter exit
            if self._control.is_owner():
                self._control.set_generation(self.number)

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self.served.path

    @property
    def number(self) -> int:
        """The number of the generation that is served."""
        return self._control.generation[0]

    @property
    def identity(self) -> tuple[int, str]:
        """Number and SHA-256 of the generation that is served; "" if the latter is unknown."""
        number, own = self.number, self._generation
        pointer = own.pointer if own is not None and own.number == number else None
        if pointer is None:  # an unpickled copy, or another thread is just switching
            with suppress(JasperError):
                pointer = read_pointer(self.path).of(number)
        return number, "" if pointer is None else pointer.sha256

    def current(self, number: int) -> PlacedGeneration:
        """The generation to read a batch from; `number` is the one in the control word."""
        own = self._generation
        # The owner's is valid even while another thread switches it.
        if own is not None and (own.number == number or self._control.is_owner()):
            return own
        return self._borrowed() if not self._control.is_owner() else self._reopened()

    def _reopened(self) -> PlacedGeneration:
        """Open, in an unpickled copy, the generation that its original served."""
        number = self.number
        try:
            reopened = self.served.generation(read_pointer(self.path).of(number), "auto")
        except MissingFileError as error:
            lent = self._control.lender(number)
            if lent is None:
                raise _gone(error, number) from None
            reopened = self.served.lent(number, lent)
            if self._control.lender(number) != lent:  # the descriptor may have been reused
                raise _gone(error, number) from None
        with _switching:
            if self._generation is None:  # else another thread has adopted one meanwhile
                self._generation = reopened
                self._announce(reopened)
            return self._generation

    def _borrowed(self) -> PlacedGeneration:
        """Open, in a worker, the generation that its owner has open."""
        while True:
            named = self._control.generation
            number = named[0]
            try:
                borrowed = self.served.lent(number, self._control.lender(number))
            except JasperError as error:
                if named != self._control.generation:
                    continue
                raise _gone(error, number) from None
            # While the word is unchanged, its descriptor is open, so this is the right file.
            if named == self._control.generation:
                self._generation = borrowed
                return borrowed

    def examined(self, pointer: Pointer) -> PlacedGeneration:
        """Check the generation that `pointer` names in full, and return it."""
        return self.served.generation(pointer, "full")

    def again(self, number: int, sha256: str) -> PlacedGeneration:
        """Return the generation `number`, checked in full.

        Raises `MissingFileError` if its file is gone, and `FormatError` if it has another SHA-256.
        """
        own = self._generation
        if own is not None and own.number == number and self.identity == (number, sha256):
            return own
        pointer = read_pointer(self.path)
        path = self.path / FOLDER / file_name(number)
        if any(e["generation"] == number and e.get("sha256") != sha256 for e in pointer.history):
            raise FormatError(f"{path}: has another content than that generation (SHA-256).")
        try:
            with storage_errors(path, "read"):
                n_bytes = path.stat().st_size
        except MissingFileError:
            raise MissingFileError(f"{path} not found: it was removed, or not copied.") from None
        # Not by its entry in the history, which may have been lost.
        known = replace(pointer, mtime_ns=-1, source={}, note="", history=())
        return self.examined(
            replace(known, generation=number, file=path.name, bytes=n_bytes, sha256=sha256)
        )

    def pin(self, generation: PlacedGeneration, split: Split, epoch: int) -> None:
        """Serve a checked generation, older ones too, until `unpin`, a reload, or another epoch of
        `split`."""
        self.must_own()
        own = self._generation
        newer = own if own is not None and own.number > generation.number else None
        self.pinned = Pin(split, epoch, newer)  # first, so that no watch switches in between
        self.adopt(generation, older=True)

    def unpin(self, pin: Pin | None, *, adopting: bool = False) -> None:
        """End `pin`, unless another one replaced it; the next epoch, or this call with `adopting`,
        serves what was served before, if it is newer."""
        if pin is None or self.pinned is not pin:
            return
        self.pinned = None
        if pin.newer is None:
            return
        for watch in self._running():
            held = watch.held
            if watch.adopt == "epoch" and (held is None or held.number < pin.newer.number):
                watch.held = pin.newer
        if adopting:
            self.adopt(pin.newer)

    def adopt(self, generation: PlacedGeneration, *, older: bool = False) -> None:
        """Serve a checked generation here and in all workers.

        One that is not newer than the served one is ignored, unless `older`; so is any while a
        generation is pinned.
        """
        with _switching:
            self.must_own()
            if self.pinned is not None and not older:
                return
            newer = generation.number > self.number
            if not newer and not (older and generation.number != self.number):
                return
            before, self._generation = self._generation, generation
            self._announce(generation)
        del before  # not earlier: the word named its descriptor
        _log.info("adopted generation %d of %s", generation.number, self.path)
        for listener in tuple(self.listeners):
            listener(generation.number)

    def join(self, adopt: Adopt, splits: frozenset[Split]) -> Watching:
        """Begin a watch; raises `UsageError` if another one has a different `adopt`."""
        other = next((w.adopt for w in self._running() if w.adopt != adopt), adopt)
        if other != adopt:
            raise UsageError(
                f"adopt={adopt!r}: these datasets share one generation and are already watched with"
                f" adopt={other!r}. Stop that watch, or use the same adopt."
            )
        self._watches.append(Watching(adopt, splits, os.getpid()))
        return self._watches[-1]

    def leave(self, watch: Watching) -> None:
        """End a watch and drop the generation that it held."""
        self._watches.remove(watch)

    def _running(self) -> list[Watching]:
        # Watches of the parent of a forked process have no thread here.
        return [watch for watch in tuple(self._watches) if watch.process == os.getpid()]

    @property
    def nominee(self) -> PlacedGeneration:
        """The newest generation that the next epoch may serve, as far as this process knows."""
        held = [watch.held for watch in self._running() if watch.held is not None]
        served = self.current(self.number)
        if self.pinned is not None:
            return served
        return max([served, *held], key=lambda generation: generation.number)

    def begin_epoch(self, split: Split, epoch: int, *, collective: bool) -> None:
        """Begin an epoch of `split`: another one than that of the pin ends it, and what the watches
        of the split hold is adopted, unless the ranks agree on it afterwards."""
        pin = self.pinned
        if pin is not None and pin.split == split and pin.epoch != epoch:
            self.unpin(pin)
        if not collective:
            self.release(split)

    def release(self, split: Split, *, adopting: bool = True) -> None:
        """At the start of an epoch of `split`, adopt or drop what its watches hold."""
        if self.pinned is not None:
            return
        for watch in self._running():
            if split in watch.splits:
                held, watch.held = watch.held, None
                if held is not None and adopting:
                    self.adopt(held)

    def newest(self) -> PlacedGeneration | None:
        """Look for a newer generation now and check it in full; None if there is none."""
        pointer = read_pointer(self.path)
        return self.examined(pointer) if pointer.generation > self.number else None

    def reload(self) -> int:
        """Look for a newer generation now and adopt it, also if one is pinned; return the number
        that is served."""
        newest = self.newest()
        self.unpin(self.pinned)
        if newest is not None:
            self.adopt(newest)
        return self.number

    def _announce(self, generation: PlacedGeneration) -> None:
        self._control.set_generation(generation.number, generation.file.fd)

    def must_own(self) -> None:
        """Raise `UsageError` in a process that does not own the datasets."""
        if not self._control.is_owner():
            raise UsageError(
                "a worker cannot adopt negatives: the process that opened the dataset does, for all"
                " of its workers. Call this there, or open the dataset again in this process."
            )

    def __reduce__(self) -> tuple[Callable[..., Adoption], tuple[Any, ...]]:
        return Adoption, (self.served, self._control)


def _gone(error: JasperError, number: int) -> JasperError:
    if not isinstance(error, MissingFileError):
        return error
    return MissingFileError(
        f"{error} Generation {number}, which this copy of the dataset serves, was removed from the"
        " disk, and its owner does not have it open: open the dataset again, or publish with a"
        " larger keep."
    )
