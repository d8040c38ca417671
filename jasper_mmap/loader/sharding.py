"""Whether a loader is divided among the ranks of torch.distributed, and which part is this
process's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch.distributed as dist

from ..errors import UsageError
from ..rules.names import Auto
from .ranks import rank_and_world

_PROCESSES: Final = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables in which a launcher says how many processes it started."""
_DEPTH: Final = 8
"""Samplers inside of one another that are looked through."""


class Part(NamedTuple):
    """The part of a rank: its global rank, not that on its node, and the number of ranks."""

    rank: int
    world: int

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}" if self.world > 1 else "a single process"


WHOLE: Final = Part(0, 1)


def checked(distributed: bool | Auto) -> bool | Auto:
    """`distributed` itself, or `UsageError`."""
    if distributed == "auto" or isinstance(distributed, bool):
        return distributed
    raise UsageError(f"distributed must be True, False or 'auto', not {distributed!r:.100}")


def part_of(distributed: bool | Auto) -> Part | None:
    """The part that this process serves now, or None if the loader is not divided.

    Raises `UsageError` where that cannot be said before `init_process_group`.
    """
    if not distributed or (distributed == "auto" and not _group()):
        if distributed:
            _refuse_lone_process()
        return None
    return Part(*rank_and_world())


def _group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _refuse_lone_process() -> None:
    for name in _PROCESSES:
        text = os.environ.get(name, "")
        if text.isdecimal() and int(text) > 1:
            raise UsageError(
                f"distributed='auto': {name}={text} says that several processes run, but there is"
                " no process group to divide the data by: call init_process_group before the"
                " loader is used, or pass distributed=False if every process shall serve all."
            )


def must_be_whole(world: int) -> None:
    """Raise `UsageError` where Accelerate would divide a loader of one of several ranks."""
    if world > 1:
        raise UsageError(
            "Accelerate's prepare divides a loader among the processes, and this one serves only"
            f" one of {world} parts already. Give prepare a loader made with distributed=False, or"
            " do not prepare this one and move its batches to accelerator.device."
        )


def must_not_be_divided(sampler: Any, world: int) -> None:
    """Raise `UsageError` where Accelerate iterates and divides `sampler`, of one of several ranks.

    `Accelerator.prepare` asks the loader first, but `accelerate.data_loader.prepare_data_loader`
    does not, nor does `prepare` ask a torch DataLoader over our sampler.
    """
    accelerate = sys.modules.get("accelerate.state")
    if world == 1 or accelerate is None:
        return
    prepared = accelerate.GradientState().active_dataloader
    if prepared is None:
        return
    # With dispatch_batches one process reads for all, and divides what it has read.
    parts = getattr(getattr(prepared, "state", None), "num_processes", 1)
    for part in samplers_in(prepared):
        if part is sampler and parts > 1:
            must_be_whole(world)
        parts = max(parts, getattr(part, "num_processes", 1))


def samplers_in(outer: Any) -> Iterator[Any]:
    """`outer`, a loader or sampler, and the samplers inside of one another that it leads to."""
    for _ in range(_DEPTH):
        yield outer
        below = getattr(outer, "batch_sampler", None)
        outer = getattr(outer, "sampler", None) if below is None else below


def must_still_be(part: Part | None, distributed: bool | Auto) -> None:
    """Raise `UsageError` if the loader was divided for another rank or world than this process's.

    One made with `distributed=False` may be used anywhere.
    """
    now = Part(*rank_and_world()) if _group() else WHOLE
    if distributed and now != (part or WHOLE):
        raise UsageError(
            f"this loader (distributed={distributed!r}) was divided for {part or WHOLE}, but this"
            f" process is {now} now. Make the loader again; load_state_dict(loader.state_dict())"
            " continues where this one was."
        )
