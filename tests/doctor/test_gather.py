"""The facts: read from planted files of a kernel, and from stores and limits that are planted."""

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jasper_mmap.control_groups import Limits
from jasper_mmap.doctor import gather as gather_module
from jasper_mmap.doctor.facts import Facts, Mount, StoreFacts
from jasper_mmap.doctor.gather import Roots, gather, versions
from jasper_mmap.doctor.mounts import mount_of
from jasper_mmap.doctor.store_facts import store_facts
from jasper_mmap.errors import MissingFileError
from jasper_mmap.store.manifest import read_manifest
from tests.files.planting import written
from tests.files.test_memory_pages import resident
from tools.bench.inputs import drop_from_memory

MOUNTINFO = Path("/proc/self/mountinfo")
NOBODY = 65534
LARGE = 100 << 20


@pytest.fixture
def copy(demo_store: Path, tmp_path: Path) -> Path:
    """Return a copy of a store, to be spoilt."""
    return Path(shutil.copytree(demo_store, tmp_path / "store"))


# The machine


def test_the_deepest_and_last_mount_is_that_of_a_folder(tmp_path: Path) -> None:
    """Names are unescaped, and lines that are no mounts skipped."""
    folder = tmp_path / "my data" / "store"
    folder.mkdir(parents=True)
    escaped = str(tmp_path / "my data").replace(" ", "\\040")
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda rw",
        f"2 1 0:5 / {escaped} rw shared:1 - nfs4 server:/a rw",
        f"3 1 0:5 / {escaped} rw - fuse.sshfs host: rw",
        f"4 1 0:5 / {escaped}x rw - tmpfs none rw",
        "damaged",
    ]
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("\n".join(lines))
    assert mount_of(folder, mountinfo) == Mount(str(tmp_path / "my data"), "fuse.sshfs", "host:")
    assert mount_of(tmp_path, mountinfo) == Mount("/", "ext4", "/dev/sda")
    assert mount_of(folder, tmp_path / "none") is None


def test_a_machine_without_proc(tmp_path: Path) -> None:
    """All that /proc and /sys say is unknown, and nothing fails."""
    empty = Roots(proc=tmp_path / "proc", sys=tmp_path / "sys", shm=tmp_path / "shm")
    facts = gather(None, empty)
    assert (facts.free_bytes, facts.huge_pages, facts.shm_bytes) == (None, None, None)
    assert facts.limits == Limits(None, None)
    assert "/proc/meminfo" in facts.proc_missing
    assert "/proc/self/smaps" in facts.proc_missing


def test_this_machine(tmp_path: Path) -> None:
    """What the kernel says is what is planted or asked by another way."""
    written(tmp_path, {"sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n"})
    facts = gather(None, Roots(sys=tmp_path / "sys"))
    assert facts.huge_pages == "never"
    assert facts.cores == len(os.sched_getaffinity(0))
    assert facts.umask == int(
        next(
            line.split()[1]
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("Umask")
        ),
        8,
    )
    assert facts.proc_missing == ()
    assert facts.store is None


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Lower the number of files that this process may open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, before[1]))
    yield 500
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_memfd_and_few_descriptors(
    few_descriptors: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A sandbox that refuses memfd_create, without a writable TMPDIR, and a low limit."""

    def refused(*_: object) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    facts = gather(None)
    assert facts.descriptors == few_descriptors
    assert (facts.memfd_error, facts.temporary_error) == ("Operation not permitted", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert gather(None).temporary_error == "No such file or directory"


def test_versions_are_those_that_the_package_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python and the dependencies without an extra; none where the package is not installed."""
    needed = versions()
    assert {"python", "torch", "safetensors", "numpy", "filelock", "click"} <= needed.keys()
    assert "pytest" not in needed
    assert all(version and smallest for version, smallest in needed.values())
    monkeypatch.setattr(gather_module, "_PACKAGE", "no-such-package-of-ours")
    assert versions() == {}


# The store


def test_a_sound_store(copy: Path) -> None:
    """Its files are shared by two processes, the lock excludes, and nothing stays behind."""
    before = sorted(copy.rglob("*"))
    facts = store_facts(copy, MOUNTINFO)
    assert facts.problems == ()
    generation = (copy / "negatives" / "000001.safetensors").stat().st_size
    assert facts.nbytes == read_manifest(copy).nbytes + generation
    assert facts.sharing is not None
    assert facts.sharing.shared == facts.sharing.rss >= facts.sharing.mapped > 0
    assert facts.sharing.pss <= facts.sharing.rss / 2
    assert (facts.lock_excludes, facts.lock_error) == (True, None)
    assert sorted(copy.rglob("*")) == before


def test_at_most_64_mb_of_a_large_store_are_read(copy: Path) -> None:
    """By what of a cold store of 300 MB lies in the page cache afterwards, read ahead or not."""
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("question_embs", "source_embs", "keyword_embs"):
        manifest["artifacts"][name]["bytes"] = LARGE
        os.truncate(copy / f"{name}.safetensors", LARGE)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    files = [path for path in copy.rglob("*") if path.is_file()]
    drop_from_memory(copy)
    if in_memory(files) > 1 << 20:
        pytest.skip("this file system keeps its files in memory")
    facts = gather(copy).store
    assert facts is not None
    assert facts.nbytes is not None
    assert facts.nbytes > 3 * LARGE
    assert facts.sharing is not None
    assert facts.sharing.rss <= in_memory(files) <= 64_000_000


def in_memory(files: list[Path]) -> float:
    """Return the bytes of files that lie in the page cache."""
    return sum(resident(path) * path.stat().st_size for path in files if path.stat().st_size)


def spoil_missing(store: Path) -> None:
    (store / "pair_index.safetensors").unlink()


def spoil_cut(store: Path) -> None:
    os.truncate(store / "source_embs.safetensors", 5000)


def spoil_manifest(store: Path) -> None:
    (store / "manifest.json").write_text("{")


def spoil_pointer(store: Path) -> None:
    (store / "negatives" / "CURRENT.json").unlink()


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_cut, spoil_manifest, spoil_pointer])
def test_a_spoilt_store_is_not_mapped(spoil: Callable[[Path], None], copy: Path) -> None:
    """One problem, and no process that would die of a bus error."""
    spoil(copy)
    facts = store_facts(copy, MOUNTINFO)
    assert len(facts.problems) == 1
    assert (facts.sharing, facts.sharing_error) == (None, None)


def test_a_store_of_another_user(copy: Path) -> None:
    """Files closed to others are named, and cannot be read by others."""
    table = "question_embs.safetensors"
    (copy / table).chmod(0o600)
    (copy / "negatives").chmod(0o770)
    facts = store_facts(copy, MOUNTINFO)
    assert facts.closed_to_others == (table,)
    assert facts.group_writes
    (copy / table).chmod(0)
    assert table in as_other_user(copy).problems[0]


def as_other_user(store: Path) -> StoreFacts:
    """Return the facts as a user without rights sees them, from a place that all may enter."""
    if os.geteuid() != 0:
        return store_facts(store, MOUNTINFO)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        place = Path(shutil.copytree(store, Path(folder) / "store"))
        os.seteuid(NOBODY)
        try:
            return store_facts(place, MOUNTINFO)
        finally:
            os.seteuid(0)


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    """A store that does not exist is no fact but an error."""
    with pytest.raises(MissingFileError):
        gather(tmp_path / "none")


def test_facts_of_a_store_are_part_of_all(demo_store: Path) -> None:
    """Gathering looks at the store too."""
    facts: Facts = gather(demo_store)
    assert facts.store is not None
    assert facts.store.path == demo_store
    assert facts.store.mount is not None
