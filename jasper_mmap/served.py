"""What datasets serve from: a store's tables and its generations, placed, opened once a process.

Pickles as its recipe (path, store_id, config, device), and opens again at first use.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from . import negatives
from .config import Config
from .errors import StoreChangedError
from .placement import Placement
from .schema import ARTIFACTS
from .store import Ragged, Store, Table, Validation


class Generation:
    """The placed tables of one generation; the mapping ends with the last reference."""

    def __init__(self, number: int, tables: dict[str, torch.Tensor]) -> None:
        self.number = number
        self.tables = tables

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tables.values())


class Served:
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
        self.path = Path(path).absolute()
        self.placement = placement
        self._validate = validate
        self._expected_id = store_id
        self._config = config
        self._generations: weakref.WeakValueDictionary[int, Generation] = (
            weakref.WeakValueDictionary()
        )

    @cached_property
    def store(self) -> Store:
        store = Store(self.path, validate=self._validate)
        if self._expected_id not in (None, store.store_id):
            raise StoreChangedError(
                f"{self.path}: was converted again since the dataset was opened; open it anew."
            )
        return store

    @property
    def config(self) -> Config:
        """As it stood when the dataset was first opened, in every process."""
        return self._config or self.store.config

    @cached_property
    def tables(self) -> dict[str, torch.Tensor]:
        """Every plain table but the negatives, under its name."""
        plain = {n: t for n, t in self.store.tables.items() if isinstance(t, torch.Tensor)}
        self.placement.reserve(plain.values())
        return self.placement.place(plain)

    @cached_property
    def ragged(self) -> dict[str, Ragged]:
        return {
            name: Ragged(**self.placement.place({"values": t.values, "offsets": t.offsets}))
            for name, t in self.store.tables.items()
            if isinstance(t, Ragged)
        }

    def open(self) -> Generation:
        """Open and place everything now; the generation in force, checked."""
        pointer = negatives.read_pointer(self.path)
        negatives.check_pointer(self.path, pointer, self.store.store_id)
        mapped = self._map(pointer.generation)
        tables = [t for t in self.store.tables.values() if isinstance(t, torch.Tensor)]
        ragged = [
            part
            for t in self.store.tables.values()
            if isinstance(t, Ragged)
            for part in (t.values, t.offsets)
        ]
        self.placement.reserve([*tables, *ragged, *mapped.values()])
        _ = self.tables, self.ragged
        return self.generation(pointer.generation)

    def generation(self, number: int) -> Generation:
        """The tables of generation `number`, which was checked before it came to be served."""
        found = self._generations.get(number)
        if found is None:
            mapped = self._map(number)
            self.placement.reserve(mapped.values())
            found = Generation(number, self.placement.place(mapped))
            self._generations[number] = found
        return found

    def _map(self, number: int) -> dict[str, torch.Tensor]:
        shape = (self.store.manifest.sizes["N_p"], self.config.n_neg)
        return negatives.map_generation(self.path, number, shape)

    def table(self, name: str) -> Table:
        """The artifact `name`, other than the negatives."""
        return self.ragged[name] if ARTIFACTS[name].kind == "ragged" else self.tables[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tables but the negatives; mapped ones count in full."""
        return sum(t.nbytes for t in self.tables.values()) + sum(
            t.nbytes for t in self.ragged.values()
        )

    def __reduce__(self) -> tuple[Callable[..., Served], tuple[Any, ...]]:
        return _reopen, (self.path, self.placement, self.store.store_id, self.config)


def _reopen(path: Path, placement: Placement, store_id: str, config: Config) -> Served:
    return Served(path, placement, store_id=store_id, config=config)
