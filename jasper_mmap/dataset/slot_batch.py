"""A batch in a slot of a worker: what the default collate returns there, and how it is pickled.

The tensors are made when somebody uses the batch. Mostly nobody does: torch's worker puts it into
its result queue as it is, and there it is the number of the slot. `worker_slots` describes how it
crosses.
"""

from __future__ import annotations

from multiprocessing import reduction
from typing import Any, Protocol, SupportsIndex

import torch
from torch import Tensor

from ..files.torch_modes import plain_tensors
from ..rules.schema import COLUMNS
from ..rules.unused_dict import filled_when_used
from .batch_layout import Columns
from .received_batches import Introduction, receive

Place = tuple[int, torch.Size, tuple[int, ...], torch.dtype]
"""The memory that a column shows, and how."""


class Sender(Protocol):
    """The slots of a worker, as a batch needs them."""

    token: bytes

    def columns(self, lease: Any, rows: int) -> Columns:
        """Tensors of `rows` rows over the slot that `lease` holds."""

    def places(self, slot: int, rows: int) -> dict[str, Place]:
        """Where the columns of a batch of `rows` rows in `slot` were, before anyone had them."""

    def may_send(self) -> bool:
        """Whether this thread may pickle the number of a slot."""

    def send(self, slot: int) -> tuple[Introduction | None, bytes | None]:
        """Mark `slot` as the trainer's; return what else the trainer must know."""


class Filled:
    """A slot that was filled, shared by all dicts of its tensors."""

    def __init__(self, slots: Sender, slot: int, rows: int, lease: Any) -> None:
        self.slots = slots
        self.slot = slot
        self.rows = rows
        self.sent = False
        self._lease = lease
        self._columns: Columns | None = None

    @property
    def columns(self) -> Columns:
        """The tensors, made on first use."""
        made = self._columns
        if made is None:
            made = self._columns = self._made()
        return made

    @plain_tensors
    def _made(self) -> Columns:
        return self.slots.columns(self._lease, self.rows)

    def entries(self, batch: SlotBatch) -> list[tuple[Any, str | None, Any]] | None:
        """The entries of `batch` for `receive`; None if they are the nine columns as filled."""
        if isinstance(batch, UnusedBatch) and self._columns is None:
            return None
        places = self.slots.places(self.slot, self.rows)
        if [*batch] == [*places] and all(map(_shows, batch.values(), places.values())):
            return None
        names = {place[0]: name for name, place in places.items()}
        shown: dict[str, Tensor] = {}
        entries: list[tuple[Any, str | None, Any]] = []
        for key, value in batch.items():
            name = names.get(value.data_ptr()) if _is_plain(value) else None
            if name is not None and not (
                _shows(value, places[name]) and shown.setdefault(name, value) is value
            ):
                name = None
            entries.append((key, name, value if name is None else None))
        return entries


def place(column: Tensor) -> Place:
    """The memory that a column shows, and how."""
    return column.data_ptr(), column.shape, column.stride(), column.dtype


def _is_plain(value: Any) -> bool:
    return type(value) is Tensor and value.layout is torch.strided


def _shows(value: Any, at: Place) -> bool:
    """Whether `value` still shows the memory of a column as it is, and nothing else."""
    return (
        _is_plain(value) and place(value) == at and not value.requires_grad and not value.is_neg()
    )


class SlotBatch(dict[str, Tensor]):
    """A batch in a slot of a worker; a copy of it is one of the same slot.

    Pickled for the worker's result queue it is the slot's number. Pickled in any other way, and
    deep-copied, it is a plain dict of its data.
    """

    __slots__ = ("filled",)

    def __init__(self, *entries: Any, filled: Filled | None = None) -> None:
        super().__init__(*entries)
        self.filled = filled
        """None if it was made by other code, which makes a dict of the type of another one."""

    def copy(self) -> SlotBatch:
        """Return another dict of the same tensors and slot."""
        return SlotBatch(self, filled=self.filled)

    __copy__ = copy

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _fill(batch: SlotBatch) -> None:
    if batch.filled is not None:
        dict.update(batch, batch.filled.columns)
    batch.__class__ = SlotBatch


@filled_when_used(_fill)
class UnusedBatch(SlotBatch):
    """A `SlotBatch` whose tensors are not made yet."""

    __slots__ = ()

    @staticmethod
    def of(filled: Filled | None) -> SlotBatch:
        """A batch of the slot `filled`."""
        return UnusedBatch(dict.fromkeys(COLUMNS), filled=filled)

    def copy(self) -> SlotBatch:
        """Return another one of the same slot."""
        return UnusedBatch.of(self.filled)

    __copy__ = copy


def _reduce(batch: SlotBatch) -> tuple[Any, ...]:
    filled = batch.filled
    if filled is None or filled.sent or not filled.slots.may_send():
        return dict, (dict(batch),)
    entries = filled.entries(batch)
    if entries is not None and not any(name for _, name, _ in entries):
        return dict, (dict(batch),)
    slots = filled.slots
    filled.sent = True
    introduction, gone = slots.send(filled.slot)
    whole = (slots.token, filled.slot, filled.rows, entries, introduction, gone)
    return receive, whole if any(whole[3:]) else whole[:3]


for _type in (SlotBatch, UnusedBatch):
    reduction.ForkingPickler.register(_type, _reduce)
