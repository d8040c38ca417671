"""A full disk or a missing permission is told in one line; nothing half written is left."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converters import convert
from jasper_mmap.errors import AccessError, StorageError
from jasper_mmap.files import atomic, safetensors
from tests.converting import SMALL, contents, in_child
from tools.demo.folder import make_builder_folder

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


@pytest.mark.parametrize("room", [0, 5_000, 20_000, 60_000, 90_000, 100_000])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "over an old store"])
def test_a_full_disk_leaves_the_old_state(
    room: int, fresh: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the writes stop: one clear error, nothing half visible, and the rerun works."""
    store = tmp_path / "store"
    if not fresh:
        convert(folder, store)
    before = contents(tmp_path)
    left = room
    original = atomic.write_all

    def limited(file: Any, data: Any) -> None:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise OSError(28, "No space left on device")
        original(file, data)

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "write_all", limited)
        patched.setattr(safetensors, "write_all", limited)
        with pytest.raises(StorageError, match="the disk is full"):
            convert(folder, store, force=True)
    assert contents(tmp_path) == before
    convert(folder, store, force=True)


def test_too_little_room_is_told_beforehand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is needed and what is free."""
    monkeypatch.setattr(os, "statvfs", lambda _: type("S", (), {"f_bavail": 1, "f_frsize": 4096})())
    before = contents(folder)
    with pytest.raises(StorageError, match=r"needs 1\.0 MiB, but the disk has 0\.0 MiB free"):
        convert(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_small_tmpfs(foreseen: bool, real_folder: Path, tmp_path: Path) -> None:
    """A file system that is really full: exit status 1, one line, nothing left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = "; ".join(
        [
            "import sys",
            "from converters import conversion",
            f'sys.argv = ["jasper-convert", "{real_folder}", "{disk / "store"}"]',
            "pass" if foreseen else "conversion.check_room = lambda *_: None",
            "from converters.__main__ import main",
            "main()",
        ]
    )
    script = (
        f"mount -t tmpfs -o size=20m none {disk} || exit 77\n"
        f"{sys.executable} -c '{program}'; status=$?\n"
        f"find {disk} -mindepth 1; exit $status\n"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"no mounting here: {done.stderr.strip()}")
    errors = [line for line in done.stderr.splitlines() if "B/s: " not in line]
    assert (done.returncode, done.stdout, len(errors)) == (1, "", 1), done.stderr
    assert "free" in errors[0] if foreseen else "the disk is full" in errors[0]


def as_nobody(work: Callable[[], object]) -> Callable[[], None]:
    """Make a forked child give up root's rights first."""

    def run() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        work()

    return run


@pytest.fixture
def public(folder: Path) -> Iterator[Path]:
    """Return a folder that others may read: pytest's own are closed to them."""
    root = Path(tempfile.mkdtemp(prefix="jasper-faults-"))
    root.chmod(0o755)
    shutil.copytree(folder, root / "built")
    yield root
    shutil.rmtree(root)


def expect_access_error(public: Path, target: Path, words: str) -> None:
    """Convert, and require the error and an unchanged disk."""
    before = contents(public)
    with pytest.raises(AccessError) as caught:
        convert(public / "built", target)
    assert words in str(caught.value)
    assert contents(public) == before


def test_no_permission_is_told(public: Path) -> None:
    """To write beside the files or to a new folder; run as nobody where the tests run as root."""

    def work() -> None:
        expect_access_error(public, public / "built", "no permission to write")
        expect_access_error(public, public / "new" / "store", "no permission to write")

    if os.getuid() == 0:
        assert in_child(as_nobody(work)) == 0
    else:
        public.chmod(0o555)
        (public / "built").chmod(0o555)
        work()
        public.chmod(0o755)
        (public / "built").chmod(0o755)
