"""The way back to `.pt` files when the disk is full, or the process is killed."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converters import convert, export_pt
from jasper_mmap.errors import ExistsError, StorageError
from jasper_mmap.files import atomic
from tests.converting import in_child
from tests.publishing import IMPORTING

FILES = 18


def files(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def exported(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files that an export writes."""
    folder = tmp_path_factory.mktemp("exported") / "back"
    export_pt(demo_store, folder)
    assert len(files(folder)) == FILES
    return files(folder)


@pytest.mark.parametrize("room", [0, 100, 40_000, 300_000])
def test_full_disk_is_told_and_leaves_nothing(
    room: int, demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own words on what it could not write are not passed on."""
    left, real = [room], atomic.write_all

    def limited(file: Any, data: Any) -> None:
        left[0] -= len(memoryview(data).cast("B"))
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, data)

    monkeypatch.setattr(atomic, "write_all", limited)
    with pytest.raises(StorageError, match="the disk is full"):
        export_pt(demo_store, tmp_path / "new" / "back")
    assert not (tmp_path / "new").exists()


def test_command_on_a_small_disk_says_one_line(demo_store: Path, tmp_path: Path) -> None:
    """On a real file system without room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=300k none {disk} || exit 77\n"
        f"{sys.executable} -W ignore -m converters --to-pt {demo_store} {disk}/back\n"
        f"status=$?; find {disk} -mindepth 1; exit $status\n"
    )
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=IMPORTING,
        timeout=60,
        check=False,
    )
    if ran.returncode == 77 or "unshare:" in ran.stderr:
        pytest.skip(f"no mounting here: {ran.stderr.strip()}")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert len(ran.stderr.splitlines()) == 1
    assert "the disk is full" in ran.stderr


def killed(act: Callable[[], object], step: int) -> bool:
    """Act in a process that is killed when it renames a file for that time; whether it was."""

    def run() -> None:
        done, real = [0], Path.replace

        def counted(self: Path, other: Any) -> Any:
            done[0] += 1
            if done[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, other)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            act()

    return in_child(run) == -signal.SIGKILL


def killed_at(step: int, store: Path, target: Path) -> bool:
    """The same of an export."""
    return killed(lambda: export_pt(store, target), step)


def test_killed_export_is_run_again(
    demo_store: Path, tmp_path: Path, exported: dict[str, bytes]
) -> None:
    """Killed at any file, once or twice, whether it was being written or being put in place."""
    last = 0
    for step in range(1, 3 * FILES):
        target = tmp_path / str(step)
        if not killed_at(step, demo_store, target):
            break
        last = step
        assert killed_at(max(1, FILES - step), demo_store, target)
        assert len(export_pt(demo_store, target)) == FILES
        assert files(target) == exported
    assert last == 2 * FILES + 1  # all were written, then listed, then moved


def test_users_file_among_those_of_a_killed_export_is_kept(
    demo_store: Path, tmp_path: Path, exported: dict[str, bytes]
) -> None:
    """It is told from what the export had put there."""
    target = tmp_path / "back"
    assert killed_at(FILES + 10, demo_store, target)
    moved = sorted(path.name for path in target.glob("*.pt"))
    assert moved
    (target / moved[0]).write_bytes(b"mine")
    with pytest.raises(ExistsError, match=moved[0]):
        export_pt(demo_store, target)
    assert (target / moved[0]).read_bytes() == b"mine"
    (target / moved[0]).unlink()
    export_pt(demo_store, target)
    assert files(target) == exported


def test_link_to_nothing_counts_as_the_users_file(demo_store: Path, tmp_path: Path) -> None:
    """It is neither replaced nor followed."""
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "val_idx.pt").symlink_to(tmp_path / "none")
    with pytest.raises(ExistsError):
        export_pt(demo_store, tmp_path / "back")


def test_export_leaves_an_interrupted_conversion_to_be_completed(
    demo_folder: Path, demo_store: Path, tmp_path: Path
) -> None:
    """Both prepare their files in the same place."""
    target = tmp_path / "store"

    assert killed(lambda: convert(demo_folder, target), 9)
    with pytest.raises(ExistsError, match="interrupted conversion"):
        export_pt(demo_store, target)
    staged = [path.name for path in (target / ".converting").glob("*.safetensors")]
    assert staged
    assert 0 < len(convert(demo_folder, target).written) < FILES - 1  # it went on
