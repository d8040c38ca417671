"""The machine that figures were measured on, and whether other programs were using it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

MB: Final = 1 << 20
_QUIET_LOAD: Final = 0.5
_QUIET_CORES: Final = 0.15
_LOOK_S: Final = 1.0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MB,
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


def busy() -> dict[str, float]:
    """How busy the machine is with other programs: the load average of a minute, and the cores in
    use while this process sleeps for a second."""
    before = _busy_ticks()
    time.sleep(_LOOK_S)
    ticks = _busy_ticks() - before
    return {
        "average": os.getloadavg()[0],
        "cores_busy": ticks / (os.sysconf("SC_CLK_TCK") * _LOOK_S),
    }


def _busy_ticks() -> int:
    try:
        fields = Path("/proc/stat").read_text().split(maxsplit=9)
    except OSError:
        return 0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    return user + nice + system + irq + softirq + steal


def was_quiet(before: dict[str, float], after: dict[str, float]) -> bool:
    """Whether nothing else ran; the average after the run holds the run itself, so it says
    nothing."""
    busy = max(before["cores_busy"], after["cores_busy"])
    return before["average"] <= _QUIET_LOAD and busy <= _QUIET_CORES
