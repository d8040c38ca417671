"""The ranks of torch.distributed: this process's rank, and agreeing on one generation."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

import torch.distributed as dist

from ..dataset.adoption import Adoption
from ..errors import JasperError, UsageError
from ..rules.names import Split
from ..store.pointer import Pointer, read_pointer

_log = logging.getLogger("jasper_mmap")


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks.

    Raises `UsageError` before `init_process_group`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise UsageError(
            "distributed=True needs torch.distributed: call init_process_group first (torchrun"
            " sets its environment), or omit distributed."
        )
    return dist.get_rank(), dist.get_world_size()


def agree(adoption: Adoption, split: Split) -> None:
    """Make every rank serve the generation that rank 0 names, the newest that an epoch of `split`
    may adopt.

    Every rank must call it. If a rank cannot adopt it (damaged, or not on its disk), none does and
    each logs an error; if the ranks then serve different generations, all raise `JasperError`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        adoption.release(split)
        return
    named: list[Any] = [_description(adoption) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(named, src=0)
    pointer = Pointer.from_dict(named[0], "the generation that rank 0 names")
    failure = None
    try:
        generation = adoption.examined(pointer)
    except JasperError as error:
        failure = str(error)
    replies: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(replies, (adoption.number, failure))
    failures = [f"rank {rank}: {why}" for rank, (_, why) in enumerate(replies) if why is not None]
    if not failures:
        adoption.adopt(generation, older=True)
        adoption.release(split, adopting=False)
        return
    message = f"generation {pointer.generation} was not adopted by any rank: {failures[0]}"
    if len({number for number, _ in replies}) > 1:
        numbers = ", ".join(str(number) for number, _ in replies)
        raise JasperError(f"{message} The ranks serve different generations ({numbers}).")
    _log.error("%s", message)


def _description(adoption: Adoption) -> dict[str, Any]:
    """The pointer of the generation that this rank would serve, without its history."""
    generation = adoption.nominee
    pointer = generation.pointer
    if pointer is None:  # an unpickled copy
        pointer = read_pointer(adoption.path).of(generation.number)
    return asdict(replace(pointer, history=()))
