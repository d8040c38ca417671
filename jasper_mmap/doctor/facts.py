"""The facts that the checks judge. None, as far as a field allows it, means unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..control_groups import Limits


class Mount(NamedTuple):
    """The mount that a folder is on."""

    point: str
    kind: str
    """The type of the file system, as the kernel names it: ext4, nfs4, fuse.sshfs."""
    source: str


class Sharing(NamedTuple):
    """Memory of one of two processes that map the same parts of a store at once, in bytes."""

    mapped: int
    rss: int
    """Mapped and in memory."""
    pss: float
    """As RSS, but what n processes map counts 1/n."""
    shared: int
    huge: int
    """In 2 MB pages."""


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """A store, as it lies on this machine."""

    path: Path
    mount: Mount | None
    nbytes: int | None
    """Of all files that are served; None if its manifest cannot be read."""
    problems: tuple[str, ...]
    """Missing, unreadable, cut or damaged files, each with its remedy."""
    closed_to_others: tuple[str, ...]
    """Files and folders that neither group nor others may read."""
    group_writes: bool
    """Whether the mode of `negatives/` lets its group publish."""
    sharing: Sharing | None
    sharing_error: str | None
    """Why the files could not be mapped."""
    lock_excludes: bool | None
    """Whether a lock of one process kept another out; None if it could not be taken."""
    lock_error: str | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A machine as this process sees it, and a store on it."""

    store: StoreFacts | None
    free_bytes: int | None
    limits: Limits
    huge_pages: str | None
    """The kernel's mode: always, madvise or never."""
    shm_bytes: int | None
    """Size of /dev/shm; None if there is none."""
    descriptors: int
    """How many files this process may have open."""
    memfd_error: str | None
    """Why memory cannot be allocated by memfd_create; None if it can."""
    temporary_error: str | None
    """Why it cannot be by a temporary file; None if it can."""
    proc_missing: tuple[str, ...]
    """The files of /proc that should be readable and are not."""
    start_method: str
    cores: int
    torch_threads: int
    umask: int
    versions: Mapping[str, tuple[str | None, str]]
    """Package -> (installed version or None, the smallest that is needed)."""
    gpu: str | None
    """Name of the first GPU that torch can use."""
    gpu_free_bytes: int | None
