"""A store that hands out generations without tables, and datasets' parts over it."""

import os
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap.dataset import control as control_module
from jasper_mmap.dataset.adoption import Adoption
from jasper_mmap.dataset.control import Control
from jasper_mmap.dataset.device.placed_store import PlacedGeneration
from jasper_mmap.files.shared_memory import Descriptor
from jasper_mmap.store.pointer import Pointer
from tests.serving import SPLITS


def generation(number: int, pointer: Pointer | None = None) -> PlacedGeneration:
    """Return one without tables."""
    opened = Descriptor(os.open(os.devnull, os.O_RDONLY))
    return PlacedGeneration(number, opened, {}, pointer)


class StandIn:
    """A store of one folder; what it was asked for is in `asked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[Any, ...]] = []
        self.failures: list[Exception] = []
        """The errors of the next calls."""

    def generation(self, pointer: Pointer, validate: str) -> PlacedGeneration:
        """Of a pointer."""
        self.asked.append((pointer, validate))
        if self.failures:
            raise self.failures.pop(0)
        return generation(pointer.generation, pointer)

    def lent(self, number: int, at: Path | None) -> PlacedGeneration:
        """Of an owner's descriptor."""
        self.asked.append((number, at))
        if self.failures:
            raise self.failures.pop(0)
        return generation(number)


def owner_of(store: Any, number: int) -> Adoption:
    """Return what an opened dataset has."""
    return Adoption(store, Control(len(SPLITS)), generation(number))


def spawned(owner: Adoption) -> Adoption:
    """Return what a process that spawn or forkserver starts receives, in this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_module, "being_spawned", lambda: True)
        remake, (store, control) = owner.__reduce__()
        receive, arguments = control.__reduce__()
    made: Adoption = remake(store, receive(*arguments))
    return made
