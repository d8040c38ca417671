"""What a second process shows: shared pages and locks, and what it says where there are none."""

import os
from pathlib import Path

import pytest

from jasper_mmap.doctor import processes
from jasper_mmap.errors import StorageError


def altered(program: Path, folder: Path, before: str, after: str) -> Path:
    """Return a copy of a program, in which some text is another one."""
    text = program.read_text()
    assert before in text
    (folder / program.name).write_text(text.replace(before, after))
    return folder / program.name


def test_pages_that_are_not_shared(demo_store: Path, tmp_path: Path) -> None:
    """A process that writes to its pages has a copy of each, as where a system shares none."""
    write = "mapping[place] = mapping[place]"
    program = altered(
        processes.MAPPING_PROGRAM, tmp_path, "        mapping[place]\n", f"        {write}\n"
    )
    seen = processes.sharing([demo_store / "source_embs.safetensors"], program)
    assert seen is not None
    assert seen.shared == 0
    assert seen.pss == seen.rss >= seen.mapped


def test_pages_that_cannot_be_measured(demo_store: Path, tmp_path: Path) -> None:
    """Without smaps nothing is known."""
    program = altered(processes.MAPPING_PROGRAM, tmp_path, "/proc/self/smaps", "/proc/self/none")
    assert processes.sharing([demo_store / "source_embs.safetensors"], program) is None


def test_files_that_cannot_be_mapped(tmp_path: Path) -> None:
    """The error is that of the process, in a line."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(StorageError, match=r"^IsADirectoryError.*folder'$"):
        processes.sharing([folder])


def test_a_large_store_is_read_in_part(tmp_path: Path) -> None:
    """Two processes that share nothing read less than 64 MB together; small files are left out."""
    large, small = tmp_path / "large", tmp_path / "small"
    for path, length in ((large, 40 << 20), (small, 1 << 20)):
        path.touch()
        os.truncate(path, length)
    seen = processes.sharing([small, large])
    assert seen is not None
    assert seen.mapped == processes.MOST_BYTES
    assert 2 * processes.MOST_BYTES < 64_000_000


@pytest.mark.parametrize("answer", ["taken", "No locks available"])
def test_a_lock_that_does_not_work(answer: str, tmp_path: Path) -> None:
    """One that two processes hold at once, and one that the system refuses."""
    program = altered(
        processes.LOCKING_PROGRAM, tmp_path, "print(attempt(sys.argv[1])", f"print({answer!r}"
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    if answer == "taken":
        assert processes.lock_excludes(folder, program) is False
    else:
        with pytest.raises(StorageError, match="No locks available"):
            processes.lock_excludes(folder, program)
    assert not list(folder.iterdir())
