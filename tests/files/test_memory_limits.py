"""The limits of control groups, from planted files of a kernel."""

from pathlib import Path

import pytest

from jasper_mmap.control_groups import Limits, limits
from jasper_mmap.files.memory_pages import UNKNOWN, fits, usable_bytes, worth_huge_pages
from tests.files.planting import written


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (
            "0::/job/step\n",
            {
                "job/memory.max": "1000\n",
                "job/step/memory.max": "5000\n",
                "job/step/cpu.max": "150000 100000\n",
            },
            Limits(1000, 1.5),
        ),
        ("0::/\n", {"memory.max": "2000\n", "cpu.max": "max 100000\n"}, Limits(2000, None)),
        ("0::/../other\n", {"memory.max": "3000\n"}, Limits(3000, None)),
        (
            "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n",
            {
                "memory/memory.limit_in_bytes": "4000\n",  # the path of outside is not there
                "cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            Limits(4000, 0.5),
        ),
        (
            "5:memory:/a\n4:cpu:/\n",
            {
                "memory/a/memory.limit_in_bytes": "9223372036854771712\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            Limits(None, None),
        ),
        (None, {"memory/memory.limit_in_bytes": "5000\n"}, Limits(5000, None)),
        ("0::/\n", {"memory.max": "no number\n", "cpu.max": "\n"}, Limits(None, None)),
    ],
)
def test_limits_of_control_groups(
    groups: str | None, files: dict[str, str], expected: Limits, tmp_path: Path
) -> None:
    """Of both versions, the smallest of a group and its parents."""
    planted = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    if groups is not None:  # else a container without /proc
        planted["proc/self/cgroup"] = groups
    written(tmp_path, planted)
    assert limits(tmp_path / "proc", tmp_path / "sys") == expected


V2 = {"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/memory.max": "2000000\n"}
V1 = {
    "proc/self/cgroup": "5:memory:/job/step\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2000000\n",
}


@pytest.mark.parametrize("groups", [V1, V2], ids=["v1", "v2"])
def test_a_store_fits_into_what_its_container_may_use(
    groups: dict[str, str], tmp_path: Path
) -> None:
    """Whatever the machine has free, and the other way about; with a tenth left over."""
    kernel = {"proc": tmp_path / "proc", "sys": tmp_path / "sys"}
    table = tmp_path / "table"
    for free_kb, n_bytes, expected in (
        (9999, 1_800_000, True),
        (9999, 1_900_000, False),
        (1000, 900_000, True),
        (1000, 1_000_000, False),
    ):
        planted = {"proc/meminfo": f"MemFree: 1 kB\nMemAvailable: {free_kb} kB\n", **groups}
        written(tmp_path, planted)
        table.write_bytes(bytes(n_bytes))
        assert fits([table], **kernel) == expected
    assert worth_huge_pages(1_000_000, **kernel)
    assert not worth_huge_pages(1_000_001, **kernel)


def test_without_limits_it_is_what_the_machine_has_free(tmp_path: Path) -> None:
    """Or everything, where the machine does not say either."""
    kernel = {"proc": tmp_path / "proc", "sys": tmp_path / "sys"}
    assert usable_bytes(**kernel) == UNKNOWN
    written(tmp_path, {"proc/meminfo": "MemAvailable: 3 kB\n"})
    assert usable_bytes(**kernel) == 3 << 10
