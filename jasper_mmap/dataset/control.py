"""Control words, the few integers that every worker must see: the generation, and each split's
epoch and forced variant.

They are in a few pages of anonymous shared memory, used by the process that opened the dataset and
its DataLoader workers. Any other process that is started with the dataset (by fork or spawn), and
any other pickle or deepcopy, starts with a copy of the words and has its own from then on. A
process knows only after its start whether it is a worker, so it keeps both: the page of its parent,
which it follows as a worker, and the words for a page of its own.

Each word is an aligned 64-bit integer written in one store, so a reader sees the old value or the
new one.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch.utils.data import get_worker_info

from ..files.shared_memory import Descriptor, anonymous_memory, being_spawned

NO_VARIANT: Final = -1
_SIZE: Final = 16 * mmap.PAGESIZE
COUNTS: Final = range(mmap.PAGESIZE // 8, _SIZE // 8)
"""The words after the first page, which `read_counts` uses."""
_NUMBER_BITS: Final = 40
"""Bits of a generation, above `pointer.MAX_GENERATION`; the owner's descriptor has the rest."""
_NUMBER_MASK: Final = (1 << _NUMBER_BITS) - 1
_PER_SPLIT: Final = 2

# The info of a worker that forked this process, which is not a worker itself.
_inherited_info: Any = None


def in_worker() -> bool:
    """Return whether this process is a DataLoader worker, ours or torch's."""
    info = get_worker_info()
    return info is not None and info is not _inherited_info


class Words(NamedTuple):
    """The control words of one split at one moment."""

    epoch: int
    forced: int
    """Variant number, or `NO_VARIANT`."""
    generation: int
    descriptor: int = -1
    """The owner's descriptor of that generation's file; -1 if it has none."""


class _Page:
    """Words in shared memory, and the process that they belong to."""

    def __init__(self, memory: Descriptor, owner: int) -> None:
        self.memory = memory
        self.owner = owner
        # Python's mmap, not libc as for tables: it is unmapped after the last `__del__` of objects
        # that are collected together, which may still read it.
        self.words = memoryview(mmap.mmap(memory.fd, _SIZE)).cast("q")

    @classmethod
    def holding(cls, words: Sequence[int]) -> _Page:
        page = cls(anonymous_memory("jasper-control", _SIZE), os.getpid())
        for at, word in enumerate(words):
            page.words[at] = word
        return page


class Control:
    """Control words of `splits` splits that share one generation.

    Every process except a worker owns its words and may set them.
    """

    def __init__(self, splits: int, start: Sequence[int] | None = None) -> None:
        self._count = 1 + splits * _PER_SPLIT
        self._start = tuple(start or [0] * self._count)
        self._followed: _Page | None = None
        # Created on first use: a worker needs none. A dict, since its setdefault is atomic.
        self._own: dict[None, _Page] = {}
        self._at_fork: tuple[_Page, tuple[int, ...]] | None = None
        _living[id(self)] = self

    def split(self, number: int) -> SplitWords:
        """The words of one split, numbered from 0."""
        return SplitWords(self, number)

    @property
    def page(self) -> _Page:
        """The page that applies in this process."""
        if self._followed is not None and in_worker():
            return self._followed
        own = self._own.get(None)
        return own or self._own.setdefault(None, _Page.holding(self._start))

    @property
    def generation(self) -> tuple[int, int]:
        """The number of the served generation, and the owner's descriptor of its file."""
        return _unpacked(self.page.words[0])

    def set_generation(self, generation: int, descriptor: int = -1) -> None:
        """Set the generation to serve, in this process and in its workers."""
        # One word, so that a reader never combines a number with the descriptor of another one.
        self.page.words[0] = _packed(generation, descriptor)

    def is_owner(self) -> bool:
        """Return whether this process owns its words, that is, is not a worker."""
        return self._followed is None or not in_worker()

    def lender(self, generation: int) -> Path | None:
        """The path of the descriptor by which the parent process has that generation open; None if
        it has not, or if this process may not access it (the owner dropped root, or is not
        dumpable)."""
        if self._followed is None:
            return None
        number, descriptor = _unpacked(self._followed.words[0])
        if number != generation or descriptor < 0:
            return None
        path = f"/proc/{self._followed.owner}/fd/{descriptor}"
        # Not Path.exists, which raises without permission.
        return Path(path) if os.path.exists(path) else None  # noqa: PTH110

    def _snapshot(self) -> tuple[_Page, tuple[int, ...]]:
        page = self.page
        return page, tuple(page.words[: self._count])

    def _follow(self, page: _Page, start: Sequence[int]) -> None:
        self._followed, self._start, self._own = page, tuple(start), {}

    def __reduce__(self) -> tuple[Callable[..., Control], tuple[Any, ...]]:
        page, words = self._snapshot()
        # The descriptor of another process is meaningless here.
        start = (_packed(_unpacked(words[0])[0], -1), *words[1:])
        splits = (self._count - 1) // _PER_SPLIT
        if being_spawned():
            return _received, (splits, start, page.memory, page.owner)
        return Control, (splits, start)


class SplitWords:
    """The words of one split of a `Control`."""

    def __init__(self, control: Control, number: int) -> None:
        self.control = control
        self.number = number
        self._at = 1 + number * _PER_SPLIT

    def read(self) -> Words:
        """Return the words as they are now."""
        words = self.control.page.words
        return Words(words[self._at], words[self._at + 1], *_unpacked(words[0]))

    @property
    def generation(self) -> int:
        """The generation to serve, as it is now."""
        return self.control.page.words[0] & _NUMBER_MASK

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, for this process and its workers."""
        self.control.page.words[self._at] = epoch

    def set_forced(self, variant: int) -> None:
        """Set the forced variant's number, or `NO_VARIANT`, for this process and its workers."""
        self.control.page.words[self._at + 1] = variant

    def __reduce__(self) -> tuple[Callable[..., SplitWords], tuple[Any, ...]]:
        return SplitWords, (self.control, self.number)


def _packed(generation: int, descriptor: int) -> int:
    return (descriptor + 1) << _NUMBER_BITS | generation


def _unpacked(word: int) -> tuple[int, int]:
    return word & _NUMBER_MASK, (word >> _NUMBER_BITS) - 1


def _received(splits: int, start: Sequence[int], memory: Descriptor, owner: int) -> Control:
    control = Control(splits)
    control._follow(_Page(memory, owner), start)
    return control


_living: weakref.WeakValueDictionary[int, Control] = weakref.WeakValueDictionary()


def _before_fork() -> None:
    for reference in _living.valuerefs():
        control = reference()
        if control is not None:
            control._at_fork = control._snapshot()


def _after_fork_in_child() -> None:
    global _inherited_info
    # Before `_inherited_info` is set: the child of a worker follows the same page as the worker.
    for reference in _living.valuerefs():
        control = reference()
        if control is not None:
            control._follow(*(control._at_fork or control._snapshot()))
    _inherited_info = get_worker_info()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
