"""Limits of control groups, versions 1 and 2: a container has less than its machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, TypeVar

_Number = TypeVar("_Number", int, float)

_ROOTS: Final = ["0::/", "1:memory:/", "1:cpu:/"]
"""For a container without /proc: what it sees as the root may have limits too."""
_NO_LIMIT: Final = 1 << 60
"""Version 1 writes "no limit" as a number near 2**63."""


class Limits(NamedTuple):
    """What control groups allow a process; None is no limit."""

    memory_bytes: int | None
    cores: float | None


def limits(proc: Path, sys: Path) -> Limits:
    """Return the smallest limits of this process's groups and of those that contain them.

    `proc` and `sys` are where the kernel says so: `/proc/self/cgroup` lists the groups, which are
    mounted at `/sys/fs/cgroup`.
    """
    root = sys / "fs" / "cgroup"
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = _ROOTS
    memory: list[int] = []
    cores: list[float] = []
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        for folder in _folders(root, names, group):
            if names:
                memory += _numbers(folder / "memory.limit_in_bytes", _bytes)
                cores += _v1_cores(folder)
            else:
                memory += _numbers(folder / "memory.max", _bytes)
                cores += _numbers(folder / "cpu.max", _v2_cores)
    return Limits(min(memory, default=None), min(cores, default=None))


def _folders(root: Path, names: str, group: str) -> Iterator[Path]:
    """Yield the folders of a group and of its parents. Inside a container, the path may be that of
    the machine outside: then only the last of them exists."""
    mounts = (
        [root / names, *(root / name for name in names.split(","))]
        if names
        else [
            root,
            root / "unified",
        ]
    )
    inside = PurePosixPath(group.lstrip("/"))
    for mount in dict.fromkeys(mounts):
        for part in (inside, *inside.parents):
            if ".." not in part.parts:
                yield mount / part


def _numbers(path: Path, parsed: Callable[[str], _Number | None]) -> list[_Number]:
    try:
        value = parsed(path.read_text())
    except (OSError, ValueError):
        return []
    return [] if value is None else [value]


def _bytes(text: str) -> int | None:
    if text.strip() == "max" or int(text) >= _NO_LIMIT:
        return None
    return int(text)


def _v2_cores(text: str) -> float | None:
    quota, period = text.split()
    return None if quota == "max" else int(quota) / int(period)


def _v1_cores(folder: Path) -> list[float]:
    quota = _numbers(folder / "cpu.cfs_quota_us", int)
    period = _numbers(folder / "cpu.cfs_period_us", int)
    return [q / p for q, p in zip(quota, period, strict=False) if q > 0 and p > 0]
