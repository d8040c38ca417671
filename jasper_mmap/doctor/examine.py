"""All checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from . import of_machine, of_store
from .check import Answer, Check
from .facts import Facts, StoreFacts

OF_STORE: Final[Mapping[str, Callable[[Facts, StoreFacts], Answer]]] = {
    "store": of_store.store_files,
    "file-system": of_store.file_system,
    "page-cache": of_store.page_cache,
    "shared-pages": of_store.shared_pages,
    "lock": of_store.lock,
    "readers": of_store.readers,
    "group-publishing": of_store.group_publishing,
    "gpu-memory": of_store.gpu_memory,
}
"""Checks that need a store."""

OF_MACHINE: Final[Mapping[str, Callable[[Facts], Answer]]] = {
    "versions": of_machine.versions,
    "cores": of_machine.usable_cores,
    "descriptors": of_machine.descriptors,
    "memfd": of_machine.memfd,
    "start-method": of_machine.start_method,
    "huge-pages": of_machine.huge_pages,
    "dev-shm": of_machine.dev_shm,
    "proc": of_machine.proc,
}
"""Checks of the machine alone."""


def examine(facts: Facts) -> Iterator[Check]:
    """Judge the facts; without a store, only those of the machine."""
    if facts.store is not None:
        for name, judge in OF_STORE.items():
            yield Check(name, *judge(facts, facts.store))
    for name, check in OF_MACHINE.items():
        yield Check(name, *check(facts))
