"""The ranks of torch.distributed: this process's rank, and agreeing on one place and generation."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch.distributed as dist

from ..dataset.adoption import Adoption
from ..dataset.dataset import JASPERSteeringDataset
from ..errors import JasperError, StoreChangedError, UsageError, together
from ..rules.names import Split
from ..store.pointer import Pointer, read_pointer
from .passes.state import State

_log = logging.getLogger("jasper_mmap")


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks.

    Raises `UsageError` before `init_process_group`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise UsageError(
            "distributed=True needs torch.distributed: call init_process_group first (torchrun sets"
            " its environment), or use distributed='auto', which decides when the loader is first"
            " used, for one process or several."
        )
    return dist.get_rank(), dist.get_world_size()


def several_ranks() -> bool:
    """Return whether there are other ranks to agree with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@dataclass(frozen=True)
class Loaded:
    """What this rank did in `load_state_dict`, until the ranks agree on it."""

    place: State | None = None
    """Where it continues; None if it refused the state."""
    pinned: bool = False
    """Whether it serves the generation of the state again, not the newest."""
    refusal: JasperError | None = None


def agree_on_place(dataset: JASPERSteeringDataset, *, always: bool = False) -> None:
    """Make every rank continue at the same place after `load_state_dict`, or raise on each.

    Every rank must call it; without `always`, only the ranks that loaded a state communicate.
    Raises what a rank has refused, `UsageError` if not every rank loaded the same state, and
    `StoreChangedError` if they serve different stores; so does the next call, until every rank has
    loaded the same one.
    """
    if dataset.loaded is None and not always:
        return
    if several_ranks():
        replies = _gathered((dataset.store_id, dataset.loaded))
        if problems := _differences(replies):
            raise together(problems)
        lacking = [rank for rank, (_, loaded) in enumerate(replies) if loaded and not loaded.pinned]
        if 0 < len(lacking) < len(replies):
            if dist.get_rank() == 0:
                _log.warning(
                    "%s: ranks %s cannot serve the generation with which the state was taken, so"
                    " all serve the newest.",
                    dataset.dataset_dir,
                    lacking,
                )
            dataset.adoption.unpin(dataset.adoption.pinned, adopting=True)
    pending, dataset.loaded = dataset.loaded, None
    if pending is not None and not always:
        agree(dataset.adoption, dataset.split, begins=False)


def _differences(replies: list[tuple[str, Loaded | None]]) -> list[JasperError]:
    refusals = [
        type(loaded.refusal)(f"rank {rank}: {loaded.refusal}")
        for rank, (_, loaded) in enumerate(replies)
        if loaded is not None and loaded.refusal is not None
    ]
    if refusals:
        return refusals
    first, loaded = replies[0]
    for rank, (store_id, other) in enumerate(replies):
        if store_id != first:
            return [
                StoreChangedError(
                    f"the ranks serve different stores: rank 0 {first!r}, rank {rank} {store_id!r}."
                    " Open the same store, or copies of it, on every rank."
                )
            ]
        if _place(other) != _place(loaded):
            return [
                UsageError(
                    f"the ranks have loaded different states: rank 0 {_described(loaded)}, rank"
                    f" {rank} {_described(other)}. Call load_state_dict with the same state on"
                    " every rank."
                )
            ]
    return []


def _place(loaded: Loaded | None) -> State | None:
    return None if loaded is None else loaded.place


def _described(loaded: Loaded | None) -> str:
    place = _place(loaded)
    if place is None:
        return "none"
    return f"epoch {place.epoch}, pass {place.number}, {place.consumed} samples consumed"


def agree(adoption: Adoption, split: Split, *, begins: bool = True) -> None:
    """Make every rank serve the generation that rank 0 names: the newest that an epoch of `split`
    may adopt, or, if none `begins`, the one that it serves.

    Every rank must call it. If a rank cannot adopt it (damaged, or not on its disk), none does and
    each logs an error; if the ranks then serve different generations, all raise `JasperError`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        adoption.release(split)
        return
    named: list[Any] = [_description(adoption, begins) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(named, src=0)
    pointer = Pointer.from_dict(named[0], "the generation that rank 0 names")
    failure = None
    try:
        generation = adoption.examined(pointer)
    except JasperError as error:
        failure = str(error)
    replies = _gathered((adoption.identity, failure))
    failures = [f"rank {rank}: {why}" for rank, (_, why) in enumerate(replies) if why is not None]
    if not failures:
        adoption.adopt(generation, older=True)
        if begins:
            adoption.release(split, adopting=False)
        return
    message = f"generation {pointer.generation} was not adopted by any rank: {failures[0]}"
    if len({identity for identity, _ in replies}) > 1:
        numbers = ", ".join(f"{number}, SHA-256 {sha:.8}" for (number, sha), _ in replies)
        raise JasperError(f"{message} The ranks serve different generations ({numbers}).")
    _log.error("%s", message)


def _gathered(own: Any) -> list[Any]:
    replies: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(replies, own)
    return replies


def _description(adoption: Adoption, begins: bool) -> dict[str, Any]:
    """The pointer of the generation that this rank would serve, without its history."""
    generation = adoption.nominee if begins else adoption.current(adoption.number)
    pointer = generation.pointer
    if pointer is None:  # an unpickled copy
        pointer = read_pointer(adoption.path).of(generation.number)
    return asdict(replace(pointer, history=()))
