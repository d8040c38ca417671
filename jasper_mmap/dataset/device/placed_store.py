"""A store's tables and generations on their device, opened once a process and shared by datasets.

It pickles as its recipe (path, store_id, config, device) and opens again at first use.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...errors import AccessError, JasperError, StoreChangedError
from ...files.memory_pages import worth_huge_pages
from ...files.shared_memory import Descriptor
from ...rules import arguments
from ...rules.config import Config
from ...rules.names import Validation
from ...rules.schema import ARTIFACTS, GATHERED
from ...store.folder import Store
from ...store.generations import OpenGeneration, map_generation, sound_generation
from ...store.manifest import read_manifest
from ...store.pointer import FOLDER, Pointer
from ...store.tables import Ragged, Table, table_tensor
from .placement import Placement
from .stack import Stack, map_stacked


class PlacedGeneration:
    """The placed tables of one generation; the mapping ends with the last reference.

    `file` stays open, so that workers can map it after it was removed. `pointer` is the one that
    named it, if known in this process.
    """

    def __init__(
        self,
        number: int,
        file: Descriptor,
        tables: dict[str, torch.Tensor],
        pointer: Pointer | None = None,
    ) -> None:
        self.number = number
        self.file = file
        self.tables = tables
        self.pointer = pointer
        self.streams: set[Hashable] = set()
        """The streams of the device on which it was read."""

    @property
    def nbytes(self) -> int:
        """Total bytes of its tables; mapped ones count in full."""
        return sum(t.nbytes for t in self.tables.values())


class PlacedStore:
    """The tables of one store in one place, shared by all datasets made from it."""

    def __init__(
        self,
        path: str | Path,
        placement: Placement,
        *,
        validate: Validation = "auto",
        store_id: str | None = None,
        config: Config | None = None,
    ) -> None:
        self.path = arguments.folder("dataset_dir", path)
        self.placement = placement
        self._validate = validate
        self._expected_id = store_id
        self._config = config
        self._generations: weakref.WeakValueDictionary[int, PlacedGeneration] = (
            weakref.WeakValueDictionary()
        )

    @cached_property
    def store(self) -> Store:
        """The mapped store; raises `StoreChangedError` if it is not the one that was pickled."""
        store = Store(self.path, validate=self._validate)
        if self._expected_id not in (None, store.store_id):
            raise changed(self.path)
        return store

    @property
    def config(self) -> Config:
        """The configuration when the dataset was first opened, the same in every process."""
        return self._config or self.store.config

    @cached_property
    def tables(self) -> dict[str, torch.Tensor]:
        """Every plain table but the negatives, under its name."""
        plain = {n: t for n, t in self.store.tables.items() if isinstance(t, torch.Tensor)}
        self.placement.reserve(plain.values())
        if self.stack is None:
            return self.placement.place(plain)
        # The stack's parts replace the tables it joins, which saves a second mapping or copy.
        rest = {name: table for name, table in plain.items() if name not in self.stack.parts}
        return {**self.placement.place(rest), **self.stack.parts}

    @cached_property
    def stack(self) -> Stack | None:
        """The tables of embeddings joined to one, if possible."""
        store = self.store
        tables = {name: table_tensor(store.tables[name]) for name in GATHERED}
        if self.placement.copied:
            return self.placement.stack(tables)
        paths = {name: self.path / store.manifest.artifacts[name].file for name in GATHERED}
        stack = map_stacked(paths, tables, huge=worth_huge_pages(store.manifest.nbytes))
        if read_manifest(self.path).store_id != self.store.store_id:
            raise changed(self.path)
        return stack

    @cached_property
    def ragged(self) -> dict[str, Ragged]:
        """The ragged tables under their names."""
        return {
            name: Ragged(**self.placement.place({"values": t.values, "offsets": t.offsets}))
            for name, t in self.store.tables.items()
            if isinstance(t, Ragged)
        }

    def open(self) -> PlacedGeneration:
        """Open and place everything now; return the current generation."""
        pointer, opened = self.store.current_generation(full=self._validate == "full")
        tables = [
            part
            for table in self.store.tables.values()
            for part in ((table.values, table.offsets) if isinstance(table, Ragged) else (table,))
        ]
        self.placement.reserve([*tables, *opened.tables.values()])
        _ = self.tables, self.ragged
        return self._placed(pointer, opened)

    def generation(self, pointer: Pointer, validate: Validation) -> PlacedGeneration:
        """Return the generation that `pointer` names; "auto" trusts its size and time, "full" does
        not."""
        placed = self._generations.get(pointer.generation)
        # Another store has another content under this number, which the check then refuses.
        if placed is None or (placed.pointer and placed.pointer.sha256 != pointer.sha256):
            placed = self._placed(pointer, self._checked(pointer, validate))
        return placed

    def lent(self, number: int, at: Path | None) -> PlacedGeneration:
        """Return a generation without checking it, since the process that has it open under the
        path `at` did; if that path is not accessible, it is opened by its number."""
        try:
            opened = map_generation(self.path, number, self._sizes, at=at)
        except AccessError:
            opened = map_generation(self.path, number, self._sizes)
        return PlacedGeneration(number, opened.file, self.placement.place(opened.tables))

    def _checked(self, pointer: Pointer, validate: Validation) -> OpenGeneration:
        full = validate == "full"
        return sound_generation(self.path, pointer, self.store.store_id, self._sizes, full=full)

    @property
    def _sizes(self) -> dict[str, int]:
        return {**self.store.manifest.sizes, "N": self.config.n_neg}

    def _placed(self, pointer: Pointer, opened: OpenGeneration) -> PlacedGeneration:
        """The tables of a generation, placed once."""
        number = pointer.generation
        placed = self._generations.get(number)
        if placed is None:
            self.placement.reserve(opened.tables.values())
            tables = self.placement.place(opened.tables)
            placed = PlacedGeneration(number, opened.file, tables, pointer)
            self._generations[number] = placed
        return placed

    def why_unreadable(self, generation: PlacedGeneration) -> str:
        """Explain why a process that read the mapped files was ended by SIGBUS."""
        return self.truncation(generation) or (
            f"a page of a mapped file of {self.path} could not be read, although the sizes of the"
            " files are right, so the medium or the memory failed. Look into the system's log, and"
            f" run: jasper-mmap verify {self.path}"
        )

    def truncation(self, generation: PlacedGeneration) -> str:
        """Name the served files that are shorter than when they were opened; "" if there are none,
        or if they were replaced."""
        try:
            manifest = read_manifest(self.path)
            if manifest.store_id != self.store.store_id:
                return ""
            sizes = {self.path / e.file: e.bytes for e in manifest.artifacts.values()}
            if (pointer := generation.pointer) is not None:
                sizes[self.path / FOLDER / pointer.file] = pointer.bytes
            short = "; ".join(
                f"{path} has {size:,} bytes, but had {before:,}"
                for path, before in sizes.items()
                if (size := path.stat().st_size) < before
            )
        except (JasperError, OSError):
            return ""
        return short and (
            f"a served file was truncated, and reading beyond its end ends a process: {short}."
            " Convert the store again, or copy it again, and open it again."
        )

    def read_on_stream(self, generation: PlacedGeneration) -> None:
        """Note that batches of `generation` are read on the current stream of the device: memory of
        what is dropped, as another is adopted or the dataset closed, must not be reused before."""
        device, runtime = self.placement.device, self.placement.runtime
        stream = runtime.stream(device)
        if stream not in generation.streams:
            for table in (*self.tables.values(), *generation.tables.values()):
                runtime.record_stream(table, device)
            if self.stack is not None:
                runtime.record_stream(self.stack.steering, device)
            generation.streams.add(stream)

    def table(self, name: str) -> Table:
        """The artifact `name`, other than the negatives."""
        return self.ragged[name] if ARTIFACTS[name].kind == "ragged" else self.tables[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tables but the negatives; mapped ones count in full."""
        return sum(t.nbytes for t in self.tables.values()) + sum(
            t.nbytes for t in self.ragged.values()
        )

    def __reduce__(self) -> tuple[Callable[..., PlacedStore], tuple[Any, ...]]:
        return _reopen, (self.path, self.placement, self.store.store_id, self.config)


def changed(path: Path) -> StoreChangedError:
    """The error of a dataset whose store was converted again."""
    return StoreChangedError(
        f"{path}: was converted again since the dataset was opened; open it again."
    )


def _reopen(path: Path, placement: Placement, store_id: str, config: Config) -> PlacedStore:
    return PlacedStore(path, placement, store_id=store_id, config=config)
