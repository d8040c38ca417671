"""The command `jasper-mmap report`: what it writes where, and what it refuses."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap.files import atomic
from jasper_mmap.report import of_store, whole_page
from tests.commands.conftest import Command


@pytest.fixture
def one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one picture, which is quicker."""
    monkeypatch.setattr(whole_page, "pictures", lambda content: [of_store.splits(content)])


@pytest.mark.usefixtures("one_picture")
def test_page_is_written_and_replaced(jasper: Command, store: Path, tmp_path: Path) -> None:
    """Its own page again; with --json the numbers are printed too."""
    target = tmp_path / "report.html"
    ended = jasper("report", store, "-o", target)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"{target}: {target.stat().st_size / 1024:.1f} KiB\n"
    first = target.stat()
    ended = jasper("report", store, "-o", target, "--json", "--sample", 20)
    assert json.loads(ended.out)["lint"]["sample"] == 20
    assert target.stat().st_ino != first.st_ino
    assert "A sample" in target.read_text()
    assert oct(target.stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_numbers_alone_need_no_matplotlib(
    jasper: Command, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a page is refused before any work, and the error names the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ended = jasper("report", store, "-o", tmp_path / "report.html")
    assert ended.status == 1
    assert "needs matplotlib and Jinja2" in ended.err
    assert "pip install 'jasper-mmap[report]'" in ended.err
    ended = jasper("report", store, "--json")
    assert json.loads(ended.out)["pairs"] == 500
    assert jasper("report", store).status == 2


def test_targets_that_are_refused(jasper: Command, store: Path, tmp_path: Path) -> None:
    """Another file, a folder, a link, a file in the store, and where there is no folder: each in
    one line, before any work, with everything left as it was."""
    other, link = tmp_path / "model.py", tmp_path / "link.html"
    other.write_text("import torch\n")
    link.symlink_to(other)
    refused = {
        other: "exists and is no report",
        tmp_path: "is a folder",
        link: "does not write through links",
        store / "report.html": "is inside the store",
        tmp_path / "missing" / "report.html": "there is no such folder",
        other / "report.html": "there is no such folder",
    }
    for target, words in refused.items():
        ended = jasper("report", store, "-o", target)
        assert ended.status == 1
        assert words in ended.err
        assert ended.err.count("\n") == 1
    assert other.read_text() == "import torch\n"
    assert {path.name for path in tmp_path.iterdir()} == {"store", "model.py", "link.html"}
    assert not [*(store / "negatives").glob("lint-*")]


@pytest.mark.usefixtures("one_picture")
@pytest.mark.parametrize(
    ("number", "call", "words"),
    [
        (errno.ENOSPC, "write_all", "the disk is full"),
        (errno.EACCES, "create", "no permission to write"),
        (errno.EROFS, "create", "Use a folder on a writable disk"),
    ],
)
def test_disk_that_fails_leaves_the_page_that_was_there(
    jasper: Command,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    call: str,
    words: str,
) -> None:
    """A full disk while it is written, a folder that is read-only: before any work."""
    target = tmp_path / "pages" / "report.html"
    target.parent.mkdir()
    assert jasper("report", store, "-o", target).status == 0
    before = target.read_bytes()

    def failing(first: Any, *_: Any) -> None:
        named = [str(first)] if isinstance(first, Path) else []
        raise OSError(number, os.strerror(number), *named)

    with monkeypatch.context() as patched:
        patched.setattr(atomic, call, failing)
        ended = jasper("report", store, "-o", target)
    assert ended.status == 1
    assert words in ended.err
    assert str(target.parent) in ended.err
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
