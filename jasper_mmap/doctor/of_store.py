"""Checks of a store on this machine: pure functions of the facts."""

from __future__ import annotations

from typing import Final

from ..dataset.device.placement import HEADROOM_BYTES
from ..files.memory_pages import SHARE_OF_MEMORY
from ..printable import size
from .check import Answer, broken, ok, warn
from .facts import Facts, Mount, StoreFacts

_NETWORK: Final = (
    "nfs",
    "lustre",
    "fuse",
    "ceph",
    "smb",
    "cifs",
    "gpfs",
    "beegfs",
    "9p",
    "virtiofs",
)
_LOCAL: Final = ("fuseblk",)
"""A disk that a program serves, such as one in the format NTFS."""
_SHARED_AT_LEAST: Final = 0.9
"""Share of the mapped memory in use that has to be shared; the rest are pages at the edges."""
_MOST_NAMED: Final = 3


def file_system(facts: Facts, store: StoreFacts) -> Answer:
    """The kind of file system of the store."""
    mount = store.mount
    if mount is None:
        return warn(
            "unknown, since /proc/self/mountinfo cannot be read",
            "mount /proc in the container; keep the store on a local disk",
        )
    where = f"{mount.kind} at {mount.point}"
    if _is_hf_mount(mount):
        return warn(
            f"hf-mount, {where}: a hub's files, fetched over the network when they are read",
            "copy the store to a local disk of the node before training",
        )
    if mount.kind == "overlay":
        return warn(
            f"{where}: the layer of a container, which is lost with it",
            "mount a folder of the machine into the container, and keep the store there",
        )
    if mount.kind in ("tmpfs", "ramfs"):
        return ok(f"{where}: in memory, so the store is lost when the node restarts")
    if mount.kind.startswith(_NETWORK) and mount.kind not in _LOCAL:
        return warn(
            f"{where}: a network file system. The first epoch reads at its speed, and its locks may"
            " not reach other nodes",
            "copy the store to a local disk of the node, or create_loader(..., warm=True); publish"
            " from one node, and keep old generations longer than a training step",
        )
    return ok(f"{where}: a local disk")


def _is_hf_mount(mount: Mount) -> bool:
    return any(
        "hf-mount" in text or "hf_mount" in text or "hfmount" in text
        for text in (mount.kind.lower(), mount.source.lower())
    )


def store_files(facts: Facts, store: StoreFacts) -> Answer:
    """Whether all files can be opened and have their size."""
    if store.problems:
        more = len(store.problems) - 1
        return broken(
            store.problems[0] + (f" (and {more} more)" if more else ""),
            "do what it says, then run: jasper-mmap verify",
        )
    return ok(f"all files are readable, {size(store.nbytes or 0)}; their values were not read")


def page_cache(facts: Facts, store: StoreFacts) -> Answer:
    """Whether the store fits into memory beside what runs."""
    if store.nbytes is None:
        return ok("not looked at, since the store cannot be read")
    limit, free = facts.limits.memory_bytes, facts.free_bytes
    if limit is None and free is None:
        return warn(
            f"store {size(store.nbytes)}; the size of memory is unknown without /proc",
            "mount /proc in the container",
        )
    memory = min(value for value in (limit, free) if value is not None)
    what = f"store {size(store.nbytes)}; memory free {'unknown' if free is None else size(free)}"
    what += ", no cgroup limit" if limit is None else f", cgroup limit {size(limit)}"
    if store.nbytes <= SHARE_OF_MEMORY * memory:
        return ok(f"{what}: the store fits and stays in the page cache")
    return warn(
        f"{what}: the store does not fit, so batches wait for the disk",
        "give the job more memory, or convert with --dtype float16 (half the bytes)",
    )


def shared_pages(facts: Facts, store: StoreFacts) -> Answer:
    """Whether two processes that map the store have its bytes in memory once."""
    if store.problems:
        return ok("not measured, since the store cannot be read")
    if store.sharing_error is not None:
        return broken(
            f"the files cannot be mapped: {store.sharing_error}",
            "copy the store to a file system that supports mmap, such as a local disk",
        )
    sharing = store.sharing
    if sharing is None:
        return warn("not measurable, since /proc/self/smaps cannot be read", "mount /proc")
    numbers = (
        f"two processes map {size(sharing.mapped)}: of each, RSS {size(sharing.rss)},"
        f" PSS {size(sharing.pss)}, shared {size(sharing.shared)}"
    )
    if sharing.shared >= _SHARED_AT_LEAST * sharing.rss:
        return ok(f"{numbers}. The store is in memory once, whatever the number of workers")
    return warn(
        f"{numbers}. Each process has a copy of its own, so memory grows with the number of"
        " workers and ranks",
        "copy the store to a local disk, whose page cache processes share; until then, use few"
        " workers",
    )


def lock(facts: Facts, store: StoreFacts) -> Answer:
    """Whether publishers on this node exclude each other."""
    if store.lock_error is not None:
        return warn(
            f"not tried: {store.lock_error}. Training works, publishing from here does not",
            "none if this node only trains; else make the store writable, on a file system that"
            " supports flock",
        )
    if not store.lock_excludes:
        return warn(
            "two processes held the same lock at once: two publishers would not see each other",
            "publish from one process only, or mount the file system with locks (lustre: -o flock)",
        )
    return ok("a second process was kept out, and let in afterwards")


def readers(facts: Facts, store: StoreFacts) -> Answer:
    """Whether other users may read the store."""
    closed = store.closed_to_others
    if not closed:
        return ok("group or others may read all files")
    names = ", ".join(closed[:_MOST_NAMED])
    more = f" and {len(closed) - _MOST_NAMED} more" if len(closed) > _MOST_NAMED else ""
    return warn(
        f"only their owner may read: {names}{more}",
        "none if you train alone; else: chmod -R g+rX on the store",
    )


def group_publishing(facts: Facts, store: StoreFacts) -> Answer:
    """Whether members of a group can publish in turns."""
    umask = f"umask {facts.umask:03o}"
    if not store.group_writes:
        return ok(f"negatives/ may be written by its owner alone ({umask})")
    if facts.umask & 0o060:
        return warn(
            f"the group may write negatives/, but with {umask} it cannot replace or lock what you"
            " publish",
            "set umask 002 in the job, and chmod g+s on negatives/",
        )
    return ok(f"the group may publish in turns ({umask})")


def gpu_memory(facts: Facts, store: StoreFacts) -> Answer:
    """Whether device="cuda" has room for the tables."""
    if facts.gpu is None:
        return ok("torch sees no GPU; batches are made on the CPU")
    if store.nbytes is None:
        return ok(f"{facts.gpu}; not compared, since the store cannot be read")
    need = store.nbytes + HEADROOM_BYTES
    if facts.gpu_free_bytes is None:
        return warn(f"{facts.gpu} cannot be used now", "see nvidia-smi: driver, other processes")
    what = f"{facts.gpu}: {size(facts.gpu_free_bytes)} free; device='cuda' needs {size(need)}"
    if need <= facts.gpu_free_bytes:
        return ok(what)
    return warn(
        what, "keep device='cpu', or convert with --dtype float16, or free memory of the GPU"
    )
