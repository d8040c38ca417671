"""The machine of a measurement, and whether other programs were using it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..files.memory_pages import memory_bytes
from .processes import cores_busy

MB: Final = 1 << 20
_QUIET_LOAD: Final = 0.5
_QUIET_CORES: Final = 0.15
_LOOK_S: Final = 1.0


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """The properties of the machine that the figures depend on."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_mb": memory_bytes() // MB,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "numpy": np.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def busy() -> dict[str, float | None]:
    """Measure the load of other programs: the load average of a minute, and the cores in use while
    this process sleeps for a second (None without psutil)."""
    return {"average": os.getloadavg()[0], "cores_busy": cores_busy(_LOOK_S)}


def was_quiet(before: dict[str, float | None], after: dict[str, float | None]) -> bool:
    """Return whether no other program was active; the load average after the run is not used, since
    it includes the run itself."""
    cores_used = max(before["cores_busy"] or 0.0, after["cores_busy"] or 0.0)
    return (before["average"] or 0.0) <= _QUIET_LOAD and cores_used <= _QUIET_CORES
