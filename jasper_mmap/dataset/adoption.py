"""Which generation of negatives datasets serve, in this process and in its workers.

The process that the datasets belong to decides (the owner): it checks a generation in full, holds
it open, and then names its number and descriptor in one control word. A worker compares that word
once a batch and maps the very file that its owner holds, so it never meets another one, and finds
it even when it has been removed from the disk since.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import JasperError, MissingFileError, UsageError
from ..rules.names import Adopt, Split
from ..store.pointer import Pointer, read_pointer
from .control import Control
from .placed_store import PlacedGeneration, PlacedStore

_log = logging.getLogger("jasper_mmap")

# One for all, made at import: it is held for a moment, and never by a worker. No process is forked
# in that moment, or it would begin with half a switch.
_switching = threading.Lock()
os.register_at_fork(
    before=_switching.acquire,
    after_in_parent=_switching.release,
    after_in_child=_switching.release,
)


@dataclass(eq=False)
class Watching:
    """One watch, as far as it concerns what is served."""

    adopt: Adopt
    splits: frozenset[Split]
    """Those whose epochs it waits for."""
    process: int
    held: PlacedGeneration | None = None
    """An examined generation that waits for the next epoch."""


class Adoption:
    """The generation in service of datasets that share their tables, and what waits for an epoch.

    `listeners` are called with the number after each switch, in the thread that made it.
    """

    def __init__(
        self, served: PlacedStore, control: Control, generation: PlacedGeneration | None = None
    ) -> None:
        self.listeners: list[Callable[[int], None]] = []
        self.served = served
        self._control = control
        self._generation = generation
        self._watches: list[Watching] = []
        if generation is not None:
            self._announce(generation)

    def __del__(self) -> None:
        # Before the descriptor is closed, for its number may soon be another file's.
        with suppress(Exception):  # at the end of the interpreter anything may be gone
            if self._control.is_owner():
                self._control.set_generation(self.number)

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self.served.path

    @property
    def number(self) -> int:
        """The generation in service."""
        return self._control.generation[0]

    def current(self, number: int) -> PlacedGeneration:
        """What to read a batch from; `number` is what the control word names."""
        own = self._generation
        # The owner's is right also in the moment in which it is switched by another thread.
        if own is not None and (own.number == number or self._control.is_owner()):
            return own
        return self._borrowed() if not self._control.is_owner() else self._reopened()

    def _reopened(self) -> PlacedGeneration:
        """In a copy that came by pickle: what was served where it came from."""
        number = self.number
        try:
            reopened = self.served.generation(read_pointer(self.path).of(number), "auto")
        except MissingFileError as error:
            lent = self._control.lender(number)
            if lent is None:
                raise _gone(error, number) from None
            reopened = self.served.lent(number, lent)
            if self._control.lender(number) != lent:  # it may have been another file's by then
                raise _gone(error, number) from None
        with _switching:
            if self._generation is None:  # not adopted by another thread meanwhile
                self._generation = reopened
                self._announce(reopened)
            return self._generation

    def _borrowed(self) -> PlacedGeneration:
        """In a worker: what its owner holds."""
        while True:
            named = self._control.generation
            number = named[0]
            try:
                borrowed = self.served.lent(number, self._control.lender(number))
            except JasperError as error:
                if named != self._control.generation:
                    continue
                raise _gone(error, number) from None
            # As long as the word stands, its descriptor is open, so that was the right file.
            if named == self._control.generation:
                self._generation = borrowed
                return borrowed

    def examined(self, pointer: Pointer) -> PlacedGeneration:
        """The generation that `pointer` names, once it has been checked in full."""
        return self.served.generation(pointer, "full")

    def adopt(self, generation: PlacedGeneration, *, older: bool = False) -> None:
        """Put an examined generation in service here and in all workers.

        One that is not newer than what is served is let go of, unless `older` allows it.
        """
        with _switching:
            self.must_own()
            newer = generation.number > self.number
            if not newer and not (older and generation.number != self.number):
                return
            before, self._generation = self._generation, generation
            self._announce(generation)
        del before  # not earlier: until then the word named its descriptor
        _log.info("adopted generation %d of %s", generation.number, self.path)
        for listener in tuple(self.listeners):
            listener(generation.number)

    def join(self, adopt: Adopt, splits: frozenset[Split]) -> Watching:
        """Begin a watch; raises `UsageError` beside one that adopts at another time."""
        other = next((w.adopt for w in self._running() if w.adopt != adopt), adopt)
        if other != adopt:
            raise UsageError(
                f"adopt={adopt!r}: these datasets are watched with adopt={other!r} already, and"
                " they serve one generation together. Stop that watch, or use the same adopt."
            )
        self._watches.append(Watching(adopt, splits, os.getpid()))
        return self._watches[-1]

    def leave(self, watch: Watching) -> None:
        """End a watch; what it held is let go of."""
        self._watches.remove(watch)

    def _running(self) -> list[Watching]:
        # Those of the process that forked this one have no thread here.
        return [watch for watch in tuple(self._watches) if watch.process == os.getpid()]

    @property
    def nominee(self) -> PlacedGeneration:
        """What the next epoch is to be served from, if it is for this process to say."""
        held = [watch.held for watch in self._running() if watch.held is not None]
        return max([self.current(self.number), *held], key=lambda generation: generation.number)

    def release(self, split: Split, *, adopting: bool = True) -> None:
        """At the beginning of an epoch of `split`: adopt what its watches hold, or let go of it."""
        for watch in self._running():
            if split in watch.splits:
                held, watch.held = watch.held, None
                if held is not None and adopting:
                    self.adopt(held)

    def reload(self) -> int:
        """Look for a newer generation now; the number then in service."""
        pointer = read_pointer(self.path)
        if pointer.generation > self.number:
            self.adopt(self.examined(pointer))
        return self.number

    def _announce(self, generation: PlacedGeneration) -> None:
        self._control.set_generation(generation.number, generation.file.fd)

    def must_own(self) -> None:
        """Raise `UsageError` where it is not for this process to adopt."""
        if not self._control.is_owner():
            raise UsageError(
                "negatives are adopted in the process that opened the dataset, for all of its"
                " workers; call this there, or open the dataset anew in this process."
            )

    def __reduce__(self) -> tuple[Callable[..., Adoption], tuple[Any, ...]]:
        return Adoption, (self.served, self._control)


def _gone(error: JasperError, number: int) -> JasperError:
    if not isinstance(error, MissingFileError):
        return error
    return MissingFileError(
        f"{error} Generation {number}, which this copy of the dataset serves, was removed from the"
        " disk and its owner can no longer be asked: open the dataset anew, or publish with a"
        " larger keep."
    )
