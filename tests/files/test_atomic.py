"""The layer of durable writes, call by call: what it makes, syncs, takes back, and says."""

import errno
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap.errors import (
    AccessError,
    DurabilityError,
    FormatError,
    MissingFileError,
    StorageError,
)
from jasper_mmap.files import atomic, jsonfile
from jasper_mmap.files.failures import user_path

MOST_BYTES = 1000
"""Limit of a JSON file in these tests."""


def descriptors() -> set[str]:
    """Return the numbers of this process's descriptors."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return what is synced from now on, in order."""
    names: list[Path] = []
    sync = os.fsync

    def traced(fd: int) -> None:
        names.append(Path(f"/proc/self/fd/{fd}").readlink())
        sync(fd)

    monkeypatch.setattr(os, "fsync", traced)
    return names


def failing_sync(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let every sync fail."""

    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)


# Files


def test_new_file_replaces_nothing_and_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is taken is an error; a file that cannot be opened gives its number back."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        atomic.create(path)
    assert path.read_bytes() == b"old"

    def fail(*_: object) -> None:
        raise MemoryError

    before = descriptors()
    monkeypatch.setattr(io, "FileIO", fail)
    with pytest.raises(MemoryError):
        atomic.create(tmp_path / "y")
    assert descriptors() == before


def test_every_sibling_is_known_as_the_file_it_prepares(tmp_path: Path) -> None:
    """No two are alike, and errors and the sweep know them."""
    path = tmp_path / "x.json"
    siblings = {atomic.sibling_of(path) for _ in range(20)}
    assert len(siblings) == 20
    for sibling in siblings:
        assert user_path(sibling, tmp_path) == path
        sibling.touch()
    atomic.sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_removing_what_is_not_there_is_an_error_unless_it_may_be(tmp_path: Path) -> None:
    """Only a caller that allows for another program's removal says so."""
    atomic.remove(tmp_path / "x", missing_ok=True)
    with pytest.raises(FileNotFoundError):
        atomic.remove(tmp_path / "x")


def test_sweep_races_with_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sibling that is gone meanwhile is no error; links go, folders stay."""
    (tmp_path / ".a.0.tmp").mkdir()
    (tmp_path / ".b.0.tmp").symlink_to(tmp_path)
    there = [*tmp_path.glob(".*"), tmp_path / ".gone.0.tmp"]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(there))
    atomic.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".a.0.tmp"]


def test_sweep_that_fails_names_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the sibling helps nobody."""
    atomic.sibling_of(tmp_path / "x").touch()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EREMOTEIO, "remote")

    monkeypatch.setattr(atomic, "remove", fail)
    with pytest.raises(StorageError) as caught:
        atomic.sweep(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot write it: remote. Run it again."


# JSON


def test_json_is_text_that_a_person_can_read(tmp_path: Path) -> None:
    """One value a line, and no number that JSON does not have."""
    atomic.write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert atomic.read_json(tmp_path / "x.json") == {"a": 1}


def test_json_is_written_up_to_the_size_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte more would be a file that this version itself refuses."""
    for module in (atomic, jsonfile):
        monkeypatch.setattr(module, "MOST_BYTES", MOST_BYTES)
    path = tmp_path / "x.json"
    frame = len('{\n  "a": ""\n}\n')
    atomic.write_json(path, {"a": "x" * (MOST_BYTES - frame)})
    assert path.stat().st_size == MOST_BYTES
    assert len(atomic.read_json(path)["a"]) == MOST_BYTES - frame
    with pytest.raises(StorageError) as caught:
        atomic.write_json(path, {"a": "x" * (MOST_BYTES - frame + 1)})
    assert str(caught.value) == (
        f"{path}: not written, since its {MOST_BYTES + 1} bytes exceed the limit of {MOST_BYTES}."
        " Shorten the notes in it."
    )
    assert path.stat().st_size == MOST_BYTES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON: Expecting property name"),
        ("[1]", "must hold a JSON object, found list."),
        ("1", "must hold a JSON object, found int."),
    ],
)
def test_what_is_no_json_object_is_named(tmp_path: Path, text: str, words: str) -> None:
    """The file, and what stands there."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=re.escape(f"{path}: {words}")):
        atomic.read_json(path)


def test_errors_of_reading_speak_of_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a missing file nor one that the system cannot look at is written."""
    path = tmp_path / "x.json"
    with pytest.raises(MissingFileError, match=re.escape(f"{path}: not found.")):
        atomic.read_json(path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EREMOTEIO, "remote", str(path))

    monkeypatch.setattr(atomic, "read_small", fail)
    monkeypatch.setattr(Path, "exists", fail)
    for read in (atomic.read_json, atomic.exists):
        with pytest.raises(StorageError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: cannot read it: remote. Run it again."


# Folders


def test_folders_last_as_long_as_what_is_in_them(tmp_path: Path, synced: list[Path]) -> None:
    """Each that is made is synced in the one above it, from the top down; the others are not."""
    atomic.make_folder(tmp_path / "a" / "b" / "c", parents=True)
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    atomic.own_folder(tmp_path / "a" / "b" / "c", parents=True)
    assert len(synced) == 3
    atomic.own_folder(tmp_path / "d" / "e", parents=True)
    assert synced[3:] == [tmp_path, tmp_path / "d"]


def test_parents_are_made_only_on_request(tmp_path: Path) -> None:
    """A misspelt path is an error that names the folder, and makes none."""
    target = tmp_path / "a" / "b"
    with pytest.raises(FileNotFoundError):
        atomic.make_folder(target)
    with pytest.raises(MissingFileError, match=re.escape(str(target))):
        atomic.own_folder(target)
    assert not list(tmp_path.iterdir())


def test_folder_that_another_process_makes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there at the look, but at the call."""
    (tmp_path / "a").mkdir()
    looks = iter([False])
    look = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: next(looks, True) and look(path))
    atomic.make_folder(tmp_path / "a")


@pytest.mark.parametrize("made_by_other", [False, True])
def test_folder_that_cannot_be_made_to_last_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_by_other: bool
) -> None:
    """Or the next run would not sync it. The cause is what is raised, whatever else fails."""
    failing_sync(monkeypatch, errno.EIO)
    if made_by_other:  # it is not empty any more

        def made(path: Path, **_: Any) -> None:
            os.mkdir(path)  # noqa: PTH102
            (path / "x").touch()

        monkeypatch.setattr(Path, "mkdir", made)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.make_folder(tmp_path / "a")
    assert (tmp_path / "a").exists() == made_by_other


def test_folder_above_that_may_not_be_read_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be opened to sync it."""
    failing_sync(monkeypatch, errno.EACCES)
    atomic.make_folder(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_links_in_the_place_of_own_folders_are_refused(tmp_path: Path) -> None:
    """They came with the dataset, and say where to write."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "own").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AccessError) as caught:
        atomic.own_folder(tmp_path / "own")
    assert str(caught.value) == (
        f"{tmp_path / 'own'}: is a link to {str(tmp_path / 'elsewhere')!r}; this package does not"
        " write through links. Remove the link (a folder on another disk can be bind-mounted"
        " instead)."
    )


# The sync of a folder


def test_only_folders_that_know_no_sync_are_excused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network and FUSE file systems; any other failure counts, and no descriptor is left."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        atomic.sync_folder(tmp_path / "file")
    before = descriptors()
    for number in (errno.EINVAL, errno.ENOTSUP):
        failing_sync(monkeypatch, number)
        atomic.sync_folder(tmp_path)
    failing_sync(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.sync_folder(tmp_path)
    assert descriptors() == before


def test_what_is_current_but_may_not_last_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file under its own name is what readers see; one that is being prepared is not."""
    failing_sync(monkeypatch, errno.ENOSPC)
    path = tmp_path / "x.json"
    with pytest.raises(DurabilityError) as caught:
        atomic.make_last(path)
    assert str(caught.value) == (
        f"{path}: is current, but may not survive a power cut: the disk is full or the quota"
        " exceeded; free some space and run it again."
    )
    with pytest.raises(OSError, match="No space left") as raw:
        atomic.make_last(atomic.sibling_of(path))
    assert type(raw.value) is OSError


# Who denies access


DENIED = {
    "folder above": ({"top": "r"}, "write", "top/in/file", "top"),
    "folder above, reading": ({"top": "r"}, "read", "top/in/file", "top"),
    "its own folder": ({"top/in": "rx"}, "write", "top/in/file", "top/in"),
    "its own folder and itself": (
        {"top/in": "rx", "top/in/file": "r"},
        "write",
        "top/in/file",
        "top/in",
    ),
    "file": ({"top": "rx", "top/in/file": "r"}, "write", "top/in/file", "top/in/file"),
    "file, reading": ({"top/in/file": "w"}, "read", "top/in/file", "top/in/file"),
    "new file": ({"top/in": "rx", "top/in/new": ""}, "write", "top/in/new", "top/in"),
    "new file, not by a mode": ({"top/in/new": ""}, "write", "top/in/new", "top/in"),
    "folder, not by a mode": ({}, "write", "top/in", "top/in"),
}


@pytest.mark.parametrize("case", DENIED)
def test_error_names_the_folder_or_file_that_denies(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first folder that may not be entered, else the file, else the folder it is in."""
    granted, verb, tried, barrier = DENIED[case]
    target = tmp_path / tried
    (tmp_path / "top" / "in").mkdir(parents=True)
    (tmp_path / "top" / "in" / "file").touch()
    letters = {os.R_OK: "r", os.W_OK: "w", os.X_OK: "x"}

    def access(path: Path, mode: int) -> bool:
        relative = path.relative_to(tmp_path).as_posix() if path.is_relative_to(tmp_path) else ""
        return letters[mode] in granted.get(relative, "rwx")

    monkeypatch.setattr(os, "access", access)
    error = PermissionError(errno.EACCES, "Permission denied", str(target))
    said = str(atomic.access_error(tmp_path, verb, error))
    at = tmp_path / barrier
    assert said.startswith(
        f"{target}: no permission to {verb} it (Permission denied):"
        f" {'it' if at == target else at} belongs to "
    )
    remedy = ", or use a folder of your own" if verb == "write" else ""
    assert said.endswith(f" Ask the owner to permit it (chmod){remedy}.")


def test_error_of_a_folder_that_is_denied_names_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one above it, where internal names lie in it; it may also be gone at the look."""
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    for path in (tmp_path, tmp_path / ".converting" / ".x.tmp"):
        said = str(atomic.access_error(path, "write", PermissionError(errno.EPERM, "no")))
        assert said.startswith(f"{tmp_path}: no permission to write it (no): it belongs to ")

    def fail(_: Path) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "lstat", fail)
    said = str(atomic.access_error(tmp_path, "read", PermissionError(errno.EPERM, "no")))
    assert said == (
        f"{tmp_path}: no permission to read it (no). Ask the owner of the folder for it."
    )
