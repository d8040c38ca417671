"""The facts of this machine, gathered in one place."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import resource
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

from ..bench.machine import cores
from ..control_groups import limits
from ..dataset.device.device_runtime import CUDA_RUNTIME
from ..files.memory_pages import UNKNOWN, free_bytes
from ..files.shared_memory import memory_file
from .facts import Facts
from .store_facts import store_facts

_PACKAGE: Final = "jasper-mmap"
_TRIAL_BYTES: Final = 4096
_PYTHON: Final = "python"


@dataclass(frozen=True, kw_only=True)
class Roots:
    """Where the kernel says what it does; another folder in tests."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    shm: Path = Path("/dev/shm")


def gather(store: Path | None, roots: Roots | None = None) -> Facts:
    """Look at this machine, and at a store: of that, at most 64 MB are read.

    Raises `MissingFileError` if there is no folder `store`. What is wrong with it is a fact.
    """
    roots = roots or Roots()
    free = free_bytes(roots.proc)
    gpu, gpu_free_bytes = _gpu()
    return Facts(
        store=None if store is None else store_facts(store, roots.proc / "self" / "mountinfo"),
        free_bytes=None if free == UNKNOWN else free,
        limits=limits(roots.proc, roots.sys),
        huge_pages=_huge_pages(roots.sys / "kernel" / "mm" / "transparent_hugepage" / "enabled"),
        shm_bytes=_size_of(roots.shm),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        memfd_error=_memfd_error(),
        temporary_error=_temporary_error(),
        proc_missing=_unreadable(roots.proc),
        start_method=multiprocessing.get_context().get_start_method(),
        cores=cores(),
        torch_threads=torch.get_num_threads(),
        umask=_umask(),
        versions=versions(),
        gpu=gpu,
        gpu_free_bytes=gpu_free_bytes,
    )


def _huge_pages(path: Path) -> str | None:
    """The mode in brackets in a line such as `always [madvise] never`."""
    try:
        chosen = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return None
    return chosen[1] if chosen else None


def _size_of(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_blocks * status.f_frsize


def _memfd_error() -> str | None:
    try:
        memory_file("jasper_doctor", _TRIAL_BYTES).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _temporary_error() -> str | None:
    try:
        with tempfile.TemporaryFile() as file:
            file.truncate(_TRIAL_BYTES)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _unreadable(proc: Path) -> tuple[str, ...]:
    """What the package reads of /proc, and cannot: open files are named by their descriptors."""
    names = ("meminfo", "self/fd", "self/smaps", "self/mountinfo", "self/cgroup")
    return tuple(f"/proc/{name}" for name in names if not os.access(proc / name, os.R_OK))


def _umask() -> int:
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    return umask


def versions() -> Mapping[str, tuple[str | None, str]]:
    """Package -> (installed version or None, the smallest that this package needs)."""
    try:
        about = metadata.metadata(_PACKAGE)
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return {}
    needed = {_PYTHON: str(about["Requires-Python"] or "")}
    for line in metadata.requires(_PACKAGE) or ():
        if match := re.match(r"([\w-]+)\s*(>=[\d.]+)\s*$", line):
            needed[match[1]] = match[2]
    return {name: (_installed(name), text.removeprefix(">=")) for name, text in needed.items()}


def _installed(package: str) -> str | None:
    if package == _PYTHON:
        return platform.python_version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> tuple[str | None, int | None]:
    if not torch.cuda.is_available():
        return None, None
    device = torch.device("cuda", 0)
    try:
        return torch.cuda.get_device_name(device), CUDA_RUNTIME.free_bytes(device)
    except RuntimeError:  # it is there, but another process has it, or its driver is too old
        return "a GPU", None
