"""The few integers that every worker must see: epoch, forced variant, generation.

They lie in anonymous shared memory that reaches every process started with the dataset. Any other
pickle (or deepcopy) makes a copy that begins with the words as they stand and has its own from
then on. Each word is an aligned 64-bit integer written in one store, so a reader sees the old
value or the new one.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from .shared import Descriptor, anonymous_memory, being_spawned

NO_VARIANT: Final = -1
_SIZE: Final = mmap.PAGESIZE
_NUMBER_BITS: Final = 40
_NUMBER_MASK: Final = (1 << _NUMBER_BITS) - 1


class Words(NamedTuple):
    """The control words at one moment."""

    epoch: int
    forced: int
    """Variant number, or `NO_VARIANT`."""
    generation: int
    descriptor: int = -1
    """The owner's, of that generation's file; -1 where it has none."""


class Control:
    """Control words shared with every process that this one starts.

    The owner, who made them, is the one to set the generation.
    """

    def __init__(self, words: Words) -> None:
        self._attach(anonymous_memory("jasper-control", _SIZE), os.getpid())
        self.set_epoch(words.epoch)
        self.set_forced(words.forced)
        self.set_generation(words.generation, words.descriptor)

    def _attach(self, memory: Descriptor, owner: int) -> None:
        self._memory = memory
        self._owner = owner
        self._words = memoryview(mmap.mmap(memory.fd, _SIZE)).cast("q")

    def read(self) -> Words:
        epoch, forced, generation = self._words[:3]
        return Words(epoch, forced, generation & _NUMBER_MASK, (generation >> _NUMBER_BITS) - 1)

    def set_epoch(self, epoch: int) -> None:
        self._words[0] = epoch

    def set_forced(self, variant: int) -> None:
        self._words[1] = variant

    def set_generation(self, generation: int, descriptor: int = -1) -> None:
        # One word, for a reader must not take a number together with another one's descriptor.
        self._words[2] = (descriptor + 1) << _NUMBER_BITS | generation

    def is_owner(self) -> bool:
        return self._owner == os.getpid()

    def owners(self, words: Words) -> Path | None:
        """The name by which another process can open the owner's descriptor; Linux only."""
        path = Path(f"/proc/{self._owner}/fd/{words.descriptor}")
        return path if words.descriptor >= 0 and path.exists() else None

    def __reduce__(self) -> tuple[Callable[..., Control], tuple[Any, ...]]:
        if being_spawned():
            return _received, (self._memory, self._owner)
        return Control, (self.read()._replace(descriptor=-1),)


def _received(memory: Descriptor, owner: int) -> Control:
    control = Control.__new__(Control)
    control._attach(memory, owner)
    return control
