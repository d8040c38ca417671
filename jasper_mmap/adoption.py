"""Which generation of negatives a dataset serves, in this process and in its workers.

The process that opened the dataset decides (its owner): it checks a generation in full, holds it
open, and then names its number and descriptor in one control word. A worker compares that word
once a batch and maps the very file that its owner holds, so it never meets another one, and finds
it even when it has been removed from the disk since.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import negatives
from .control import Control, Words
from .errors import AccessError, ClosedError, JasperError, MissingFileError, UsageError
from .negatives import Pointer
from .overwritten import publish_overwritten
from .served import Generation, Served

_log = logging.getLogger("jasper_mmap")

# One for all, made at import: it is held for a moment, and never by a worker. A process forked in
# that moment by another thread begins with a free one.
_switching = threading.Lock()


def _renew() -> None:
    global _switching
    _switching = threading.Lock()


os.register_at_fork(after_in_child=_renew)


class Adoption:
    """The generation in service of one dataset, and the one that waits for the next epoch.

    `collective`: the dataset is one of several ranks', which switch together (see `agreement`), so
    `set_epoch` of the dataset alone does not. `listeners` are called with the number after each
    switch, in the thread that made it.
    """

    def __init__(
        self, served: Served, control: Control, generation: Generation | None = None
    ) -> None:
        self.collective = False
        self.listeners: list[Callable[[int], None]] = []
        self._served: Served | None = served
        self._control = control
        self._generation = generation
        self._held: Generation | None = None
        if generation is not None:
            self._announce(generation)

    @property
    def path(self) -> Path:
        """The store's folder; `ClosedError` after `close()`."""
        return self._open().path

    @property
    def number(self) -> int:
        """The generation in service."""
        return self._control.read().generation

    def current(self, number: int) -> Generation:
        """What to read a batch from; `number` is what the control word names."""
        mine = self._generation
        # The owner's is right also in the moment in which it is switched by another thread.
        if mine is not None and (mine.number == number or self._control.is_owner()):
            return mine
        return self._found()

    def _found(self) -> Generation:
        served = self._open()
        if self._control.is_owner():  # a copy that came by pickle
            number = self.number
            try:
                found = served.generation(number)
            except JasperError as error:
                raise _gone(error, number) from None
            with _switching:
                self._open()
                if self._generation is None:  # not adopted by another thread meanwhile
                    self._generation = found
                    self._announce(found)
                return self._generation
        while True:
            words = self._control.read()
            try:
                found = served.borrowed(words.generation, self._control.owners(words))
            except JasperError as error:
                if not _same(words, self._control.read()):
                    continue
                raise _gone(error, words.generation) from None
            # As long as the word stands, its descriptor is open, so that was the right file.
            if _same(words, self._control.read()):
                self._generation = found
                return found

    def examined(self, pointer: Pointer) -> Generation:
        """The generation that `pointer` names, once it has been checked in full."""
        return self._open().examined(pointer)

    def adopt(self, generation: Generation, *, older: bool = False) -> None:
        """Put an examined generation in service here and in all workers.

        One that is not newer than what is served is let go of, unless `older` allows it.
        """
        with _switching:
            self._open()
            self._must_own()
            newer = generation.number > self.number
            if not newer and not (older and generation.number != self.number):
                return
            before, self._generation = self._generation, generation
            self._announce(generation)
        del before  # not earlier: until then the word named its descriptor
        _log.info("adopted generation %d of %s", generation.number, self.path)
        for listener in tuple(self.listeners):
            listener(generation.number)

    def hold(self, generation: Generation | None) -> None:
        """Let an examined generation wait for `release` (None: no longer)."""
        self._held = generation

    @property
    def nominee(self) -> Generation:
        """What the next epoch is to be served from, if it is for this process to say."""
        current, held = self.current(self.number), self._held
        return held if held is not None and held.number > current.number else current

    def release(self) -> None:
        """Adopt what waits, at the beginning of an epoch."""
        held, self._held = self._held, None
        if held is not None:
            self.adopt(held)

    def reload(self) -> int:
        """Look for a newer generation now, publishing the builder's files first if they were
        overwritten; the number then in service."""
        served = self._open()
        self._must_own()
        try:
            publish_overwritten(served.path)
        except AccessError as error:
            _log.warning("serving what is published, for nothing can be published here: %s", error)
        pointer = negatives.read_pointer(served.path)
        if pointer.generation > self.number:
            self.adopt(self.examined(pointer))
        return self.number

    def close(self) -> None:
        with _switching:
            self._served = self._generation = self._held = None

    def _announce(self, generation: Generation) -> None:
        self._control.set_generation(generation.number, generation.file.fd)

    def _open(self) -> Served:
        if self._served is None:
            raise ClosedError("the dataset was closed; open it again to read from it.")
        return self._served

    def _must_own(self) -> None:
        if not self._control.is_owner():
            raise UsageError(
                "negatives are adopted in the process that opened the dataset, for all of its"
                " workers; call this there, or open the dataset anew in this process."
            )

    def __reduce__(self) -> tuple[Callable[..., Adoption], tuple[Any, ...]]:
        return Adoption, (self._open(), self._control)


def _same(before: Words, after: Words) -> bool:
    return (before.generation, before.descriptor) == (after.generation, after.descriptor)


def _gone(error: JasperError, number: int) -> JasperError:
    if not isinstance(error, MissingFileError):
        return error
    return MissingFileError(
        f"{error} Generation {number}, which this copy of the dataset serves, was removed from the"
        " disk and its owner can no longer be asked: open the dataset anew, or publish with a"
        " larger keep."
    )
