"""Checks before a conversion writes: forms that match, and space on the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from jasper_mmap.errors import IndexRangeError, StorageError
from jasper_mmap.files.atomic import storage_errors
from jasper_mmap.files.safetensors import map_tensors
from jasper_mmap.rules.config import Config
from jasper_mmap.rules.schema import NEGATIVES
from jasper_mmap.store.manifest import Entry
from jasper_mmap.store.pointer import FOLDER
from jasper_mmap.store.table_checks import TableCheck, check_form, check_ranges

from .plan import Plan, Task
from .source import Source, derive, open_source, open_table
from .write import stored_dtype

_OVERHEAD_BYTES = 1 << 20
"""Space for headers, the manifest and folders."""


def open_task(task: Task, src: Path) -> Source:
    """Open what a task reads: its `.pt` file, or the tables it is computed from."""
    return derive(task.artifact, src) if task.derived else open_source(task.artifact, src)


@dataclass(frozen=True)
class Precheck:
    """The results of the checks before a conversion writes."""

    sizes: dict[str, int]
    """Shape letter -> size."""
    bytes: dict[str, int]
    """Artifact to be written -> bytes of its data."""
    ragged: dict[str, Source]
    """Ragged artifacts to be written: reading them takes long, so it is done once."""
    beyond: dict[str, int]
    """Unchanged artifact -> count of its values that are infinite as float32."""
    config: Config


def precheck(
    plan: Plan, src: Path, dst: Path, config: Config, *, allow_nonfinite: bool
) -> Precheck:
    """Check dtype and shape of every artifact against the others and `config.json`.

    Unchanged tables are checked by their entries. They are read only to name the row of a number
    that is now out of range, and to count values beyond float32 if that was never done.
    """
    sizes = {"D": config.embedding_dim, "N": config.n_neg}
    todo, ragged, beyond = {}, {}, {}
    for task in plan.tasks:
        if task.entry is not None:
            _check_entry(task, task.entry, src, sizes)
            if (count := task.beyond) is None:
                count = _beyond_float32(task, src, sizes, allow_nonfinite=allow_nonfinite)
            beyond[task.artifact.name] = count
            continue
        source = open_task(task, src)
        if source.offsets is not None:
            ragged[task.artifact.name] = source
        values = source.checked
        check_form(task.artifact, values.dtype, source.shape, sizes, source.where)
        saved = values.dtype.itemsize - stored_dtype(source, plan.embeddings_dtype).itemsize
        whole = sum(part.bytes for part in source.parts.values())
        todo[task.artifact.name] = whole - saved * torch.Size(values.shape).numel()
    for artifact, (table, where) in zip(NEGATIVES, _negatives(plan, src, dst), strict=True):
        check_form(artifact, table.dtype, tuple(table.shape), sizes, where)
        if plan.new_negatives:
            todo[artifact.name] = table.nbytes
    return Precheck(sizes, todo, ragged, beyond, config)


def _check_entry(task: Task, entry: Entry, src: Path, sizes: dict[str, int]) -> None:
    artifact, where = task.artifact, str(src / task.artifact.source)
    shape = entry.shape[: len(artifact.shape)]  # a ragged entry also has the number of values
    check_form(artifact, entry.torch_dtype, shape, sizes, where)
    try:
        check_ranges(artifact, entry.ranges, sizes, where)
    except IndexRangeError:
        source = open_task(task, src)
        _feed(TableCheck(artifact, sizes, where, offsets=source.offsets), source)
        raise


def _beyond_float32(
    task: Task, src: Path, sizes: Mapping[str, int], *, allow_nonfinite: bool
) -> int:
    source = open_task(task, src)
    check = TableCheck(
        task.artifact, sizes, source.where, allow_nonfinite=True, allow_beyond=allow_nonfinite
    )
    _feed(check, source)
    return check.beyond_float32


def _feed(check: TableCheck, source: Source) -> None:
    for rows in source.checked.chunks():
        check.feed(rows)


def _negatives(plan: Plan, src: Path, dst: Path) -> list[tuple[torch.Tensor, str]]:
    """The tables of the generation that will be current, with their files' names."""
    if plan.new_negatives or plan.pointer is None:
        paths = [src / a.source for a in NEGATIVES]
        return [(open_table(path)[0], str(path)) for path in paths]
    path = dst / FOLDER / plan.pointer.file
    tensors = map_tensors(path).tensors
    return [(tensors[a.name], str(path)) for a in NEGATIVES]


def check_room(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise `StorageError` unless the disk has room for these files beside what is there."""
    with storage_errors(folder):
        status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    need = sum(sizes.values()) + _OVERHEAD_BYTES
    if need > free:
        raise StorageError(
            f"{folder}: the conversion needs {need / 2**20:.1f} MiB, but the disk has"
            f" {free / 2**20:.1f} MiB free (the old files stay until the new ones are complete)."
            " Free some space, or choose another destination."
        )
