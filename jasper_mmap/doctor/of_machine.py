"""Checks of a machine: pure functions of the facts."""

from __future__ import annotations

import math
import re
from typing import Final

from ..printable import size
from .check import Answer, broken, ok, warn
from .facts import Facts

_OPEN_FILES: Final = "/proc/self/fd"
_SMALL_SHM: Final = 64 << 20
"""What a container has by default."""
_FEW_DESCRIPTORS: Final = 1024
_TOO_FEW_DESCRIPTORS: Final = 24
"""With fewer, two workers cannot be started."""


def huge_pages(facts: Facts) -> Answer:
    """Whether the kernel may map 2 MB at a time."""
    mode = facts.huge_pages
    sharing = facts.store.sharing if facts.store else None
    measured = f"; {size(sharing.huge)} of {size(sharing.mapped)} mapped so" if sharing else ""
    if mode in ("always", "madvise"):
        return ok(f"transparent_hugepage is {mode}{measured}")
    return warn(
        f"transparent_hugepage is {mode or 'unknown'}: a gather may take a third longer{measured}",
        "ask the administrator for: echo madvise >"
        " /sys/kernel/mm/transparent_hugepage/enabled (on the machine, not in the container)",
    )


def dev_shm(facts: Facts) -> Answer:
    """What /dev/shm has; this package does not need it."""
    if facts.shm_bytes is not None and facts.shm_bytes >= _SMALL_SHM:
        return ok(f"{size(facts.shm_bytes)}; not needed")
    what = "there is none" if facts.shm_bytes is None else f"only {size(facts.shm_bytes)}"
    return warn(
        f"{what}. The loader does not need it; torch's DataLoader does for what a collate_fn of"
        " yours makes",
        "none for our loader; else docker run --shm-size=8g, or num_workers=0",
    )


def descriptors(facts: Facts) -> Answer:
    """How many files may be open."""
    limit = facts.descriptors
    if limit < 0 or limit >= _FEW_DESCRIPTORS:  # RLIM_INFINITY is -1
        return ok("no limit" if limit < 0 else f"{limit:,} open files; mapped tables need none")
    remedy = "raise it before training: ulimit -n 4096"
    if limit < _TOO_FEW_DESCRIPTORS:
        return broken(f"only {limit} open files: workers cannot be started", remedy)
    return warn(f"only {limit} open files: enough for a few workers", remedy)


def memfd(facts: Facts) -> Answer:
    """Whether memory for batches can be shared with workers."""
    if facts.memfd_error is None:
        return ok("memfd_create works: batches cross from workers in shared memory")
    what = f"memfd_create fails ({facts.memfd_error})"
    if facts.temporary_error is None:
        return warn(
            f"{what}; a temporary file takes its place, and torch's own DataLoader is slower",
            "allow memfd_create in the sandbox (seccomp), and set TMPDIR to a local disk",
        )
    return broken(
        f"{what}, and so does a temporary file ({facts.temporary_error}): no workers",
        "allow memfd_create, or set TMPDIR to a writable folder; or train with num_workers=0",
    )


def proc(facts: Facts) -> Answer:
    """Whether /proc can be read."""
    if not facts.proc_missing:
        return ok("readable")
    what = f"cannot be read: {', '.join(facts.proc_missing)}"
    remedy = "mount /proc in the container"
    if _OPEN_FILES in facts.proc_missing:
        return broken(f"{what}. The current generation is opened by it, so no store opens", remedy)
    return warn(f"{what}. Memory or its limits are not known", remedy)


def start_method(facts: Facts) -> Answer:
    """How multiprocessing starts workers."""
    if facts.start_method != "spawn":
        return ok(f"{facts.start_method}; keep the training below if __name__ == '__main__'")
    return warn(
        "spawn: each worker imports torch and your script anew, which takes seconds",
        "multiprocessing_context='forkserver', and the training below if __name__ == '__main__'",
    )


def usable_cores(facts: Facts) -> Answer:
    """The cores that the process may use, against workers and the threads of torch."""
    quota = facts.limits.cores
    usable = facts.cores if quota is None else min(facts.cores, max(1, math.floor(quota)))
    limit = "" if quota is None else f" (a cgroup allows {quota:g} of {facts.cores})"
    what = f"{usable} usable{limit}, {facts.torch_threads} torch threads"
    if facts.torch_threads > usable:
        return warn(
            f"{what}: threads wait for each other, and a gather takes several times as long",
            f"OMP_NUM_THREADS={usable} in the job, and at most {usable} workers for all ranks of"
            " the node together",
        )
    return ok(f"{what}; at most {usable} workers, for all ranks of the node together")


def versions(facts: Facts) -> Answer:
    """Whether the packages are there, and not too old."""
    if not facts.versions:
        return warn("jasper-mmap is not installed, so its needs are unknown", "pip install -e .")
    missing = [name for name, (version, _) in facts.versions.items() if version is None]
    old = [
        f"{name} {version} < {needed}"
        for name, (version, needed) in facts.versions.items()
        if version is not None and numbers(version) < numbers(needed)
    ]
    if missing or old:
        return broken(
            ", ".join([*old, *(f"{name} is missing" for name in missing)]),
            "pip install -U jasper-mmap, in this environment",
        )
    return ok(", ".join(f"{name} {version}" for name, (version, _) in facts.versions.items()))


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, to compare: those of 2.13.0+cpu are (2, 13)."""
    begin = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in begin[0].split(".")] if begin else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
