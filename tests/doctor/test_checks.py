"""Each check in each of its states, by facts that are planted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap.control_groups import Limits
from jasper_mmap.doctor.examine import OF_MACHINE, OF_STORE, examine
from jasper_mmap.doctor.facts import Mount
from jasper_mmap.doctor.of_machine import numbers
from tests.doctor.planted import COPIED, FACTS, GB, planted

README = Path(__file__).parents[2] / "jasper_mmap" / "doctor" / "README.md"


def mount(kind: str, source: str = "x") -> dict[str, Mount]:
    """Return the change that puts the store on a file system of this kind."""
    return {"mount": Mount("/data", kind, source)}


PLANTED: list[tuple[str, str, dict[str, Any], str]] = [
    ("store", "broken", {"problems": ("a: cut", "b: missing")}, "a: cut (and 1 more)"),
    *[("file-system", "warn", mount(kind), "network") for kind in ("nfs", "nfs4", "lustre")],
    ("file-system", "warn", mount("fuse.sshfs"), "fuse.sshfs at /data: a network"),
    ("file-system", "warn", mount("fuse", "hf-mount"), "hf-mount"),
    ("file-system", "warn", mount("fuse.hf-mount"), "hf-mount"),
    ("file-system", "warn", mount("overlay"), "container"),
    ("file-system", "warn", {"mount": None}, "unknown"),
    ("file-system", "ok", mount("tmpfs"), "in memory"),
    ("file-system", "ok", mount("fuseblk"), "local disk"),
    ("page-cache", "warn", {"free_bytes": GB}, "does not fit"),
    ("page-cache", "warn", {"limits": Limits(GB, None)}, "cgroup limit 1.0 GiB"),
    ("page-cache", "warn", {"free_bytes": None}, "unknown"),
    ("page-cache", "ok", {"free_bytes": None, "limits": Limits(4 * GB, None)}, "unknown"),
    ("page-cache", "ok", {"nbytes": None}, "not looked at"),
    ("shared-pages", "warn", {"sharing": COPIED}, "PSS 8.0 MiB, shared 0 B. Each process has a"),
    ("shared-pages", "warn", {"sharing": None}, "not measurable"),
    ("shared-pages", "broken", {"sharing_error": "No such device"}, "No such device"),
    ("shared-pages", "ok", {"sharing": None, "problems": ("cut",)}, "not measured"),
    ("lock", "warn", {"lock_excludes": False}, "at once"),
    ("lock", "warn", {"lock_excludes": None, "lock_error": "read-only"}, "not tried: read-only"),
    ("readers", "warn", {"closed_to_others": ("a", "b", "c", "d")}, "a, b, c and 1 more"),
    ("group-publishing", "warn", {"group_writes": True}, "umask 022"),
    ("group-publishing", "ok", {"group_writes": True, "umask": 0o002}, "umask 002"),
    ("gpu-memory", "warn", {"gpu_free_bytes": 2 * GB}, "needs 2.2 GiB"),
    ("gpu-memory", "warn", {"gpu_free_bytes": None}, "cannot be used"),
    ("gpu-memory", "ok", {"gpu": None, "gpu_free_bytes": None}, "no GPU"),
    ("gpu-memory", "ok", {"nbytes": None}, "not compared"),
    ("versions", "broken", {"versions": {"torch": ("2.5.9", "2.6")}}, "torch 2.5.9 < 2.6"),
    ("versions", "broken", {"versions": {"numpy": (None, "1.26")}}, "numpy is missing"),
    ("versions", "warn", {"versions": {}}, "not installed"),
    ("cores", "warn", {"limits": Limits(None, 2.5)}, "2 usable (a cgroup allows 2.5 of 8)"),
    ("cores", "warn", {"cores": 4}, "4 usable, 8 torch threads"),
    ("cores", "ok", {"limits": Limits(None, 0.5), "torch_threads": 1}, "1 usable"),
    ("descriptors", "warn", {"descriptors": 256}, "256"),
    ("descriptors", "broken", {"descriptors": 16}, "16"),
    ("descriptors", "ok", {"descriptors": -1}, "no limit"),
    ("memfd", "warn", {"memfd_error": "not permitted"}, "temporary file takes its place"),
    ("memfd", "broken", {"memfd_error": "a", "temporary_error": "b"}, "no workers"),
    ("start-method", "warn", {"start_method": "spawn"}, "imports torch"),
    ("huge-pages", "warn", {"huge_pages": "never"}, "never"),
    ("huge-pages", "warn", {"huge_pages": None}, "unknown"),
    ("dev-shm", "warn", {"shm_bytes": 1 << 20}, "only 1.0 MiB. The loader does not need it"),
    ("dev-shm", "warn", {"shm_bytes": None}, "none"),
    ("proc", "warn", {"proc_missing": ("/proc/meminfo",)}, "/proc/meminfo"),
    ("proc", "broken", {"proc_missing": ("/proc/self/fd",)}, "no store opens"),
]


def test_all_is_well_on_a_healthy_machine() -> None:
    """No check complains, and none has a remedy."""
    checks = list(examine(FACTS))
    assert [check.id for check in checks] == [*OF_STORE, *OF_MACHINE]
    assert {check.state for check in checks} == {"ok"}
    assert not any(check.remedy for check in checks)
    assert [check.id for check in examine(replace(FACTS, store=None))] == [*OF_MACHINE]


@pytest.mark.parametrize(("name", "state", "changed", "words"), PLANTED)
def test_a_planted_state_is_seen(
    name: str, state: str, changed: dict[str, Any], words: str
) -> None:
    """In words and, unless it is ok, with a remedy; no other check breaks."""
    checks = {check.id: check for check in examine(planted(**changed))}
    assert checks[name].state == state
    assert words in checks[name].seen
    assert bool(checks[name].remedy) == (state != "ok")
    others = {check.id for check in checks.values() if check.state == "broken"}
    assert others <= {name, "store"}


def test_every_check_is_planted() -> None:
    """Each has another state than ok in the tests above."""
    assert {name for name, state, *_ in PLANTED if state != "ok"} == {*OF_STORE, *OF_MACHINE}


def test_every_check_is_in_the_document() -> None:
    """In the order of the code, each with what it looks at, when it complains and the remedy."""
    rows = [line.strip("| ").split(" | ") for line in README.read_text().splitlines()]
    listed = [row for row in rows if len(row) == 4 and row[0].startswith("`")]
    assert [row[0].strip("`") for row in listed] == [*OF_STORE, *OF_MACHINE]
    assert all(all(row) for row in listed)


def test_versions_are_compared_as_numbers() -> None:
    """Not as texts, and whatever follows the numbers."""
    assert numbers("2.13.0+cpu") > numbers("2.6")
    assert numbers("3.20.1") > numbers("3.20")
    assert numbers("2.6.0") == numbers("2.6")
    assert numbers("4.0rc1") == numbers("4")
