"""The file and the pointer of the next generation: which number, what history, in which order."""

import errno
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jasper_mmap.errors import BusyError, DurabilityError, JasperError, StorageError
from jasper_mmap.files import atomic
from jasper_mmap.files.locks import process_name, user_name
from jasper_mmap.negatives import write
from jasper_mmap.negatives.write import (
    Change,
    next_generation,
    publisher_lock,
    with_source,
    write_pointer,
    write_staged,
)
from jasper_mmap.store.pointer import (
    FOLDER,
    MAX_GENERATION,
    POINTER,
    Pointer,
    file_name,
    read_pointer,
)
from tests.publishing import STAMPS, pointer_chain

# The file


@pytest.mark.parametrize(
    ("negatives", "tiers"),
    [(torch.uint8, torch.int64), (torch.int64, torch.uint8), (torch.int16, torch.int32)],
)
def test_tables_lie_aligned_whatever_their_dtypes(
    tmp_path: Path, negatives: torch.dtype, tiers: torch.dtype
) -> None:
    """The wider one first; equal tables give equal bytes, in whatever order they come."""
    tables = {
        "hard_negatives": torch.arange(15).reshape(5, 3).to(negatives),
        "negative_tiers": torch.arange(15).reshape(5, 3).remainder(4).add(1).to(tiers),
    }
    staged = write_staged(tmp_path / "one", tables)
    other = write_staged(tmp_path / "two", dict(reversed(tables.items())))
    assert staged.path == tmp_path / "one"
    assert staged.path.read_bytes() == other.path.read_bytes()
    assert staged.written.sha256 == other.written.sha256
    data = staged.path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    read = load_file(staged.path)
    for name, table in tables.items():
        assert (8 + length + header[name]["data_offsets"][0]) % table.element_size() == 0
        assert torch.equal(read[name], table)
        assert read[name].dtype == table.dtype


# The pointer


def test_pointer_says_of_its_generation_what_its_entry_says() -> None:
    """Both name the file, the publisher and the counts; who and from what is in entries alone."""
    pointer = pointer_chain("", "second", sources=(2,))
    entry = pointer.history[-1]
    assert (pointer.generation, pointer.file, pointer.bytes) == (2, file_name(2), 20)
    assert (pointer.mtime_ns, pointer.sha256, pointer.store_id) == (200, "sha2", "id")
    assert (pointer.note, pointer.lint, pointer.changed_rows) == (
        "second",
        {"own_source_rows": 2},
        1,
    )
    assert pointer.source == STAMPS
    assert pointer.by == process_name()
    assert {k: v for k, v in entry.items() if k in asdict(pointer)} == {
        k: v for k, v in asdict(pointer).items() if k in entry
    }
    only = {k: v for k, v in entry.items() if k not in asdict(pointer)}
    assert only == {
        "who": user_name(),
        "files": ["run/negatives.pt", "tiers.pt"],  # no whole path of this machine
        "rows": 7,
        "similarity": {"own": 0.5},
    }
    assert "similarity" not in pointer.history[0]
    assert [e["generation"] for e in pointer.history] == [1, 2]
    assert pointer.history[0]["note"] == ""


def test_written_pointer_is_the_one_that_is_read(tmp_path: Path) -> None:
    """In its place in the folder of generations."""
    (tmp_path / FOLDER).mkdir()
    pointer = pointer_chain("", "second", sources=(2,))
    write_pointer(tmp_path, pointer)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [POINTER]
    assert read_pointer(tmp_path) == pointer


@pytest.mark.parametrize("made", [(), (1,), (2,), (1, 5), (6,)])
def test_history_is_as_long_as_fits(monkeypatch: pytest.MonkeyPatch, made: tuple[int, ...]) -> None:
    """A quarter of what a pointer may have, and beyond it the entry last made from files."""
    whole = pointer_chain(*"abcdef", sources=made).history
    size = [len(json.dumps(entry, indent=2)) for entry in whole]
    for length in range(1, 7):
        for less in (0, 1):
            monkeypatch.setattr(write, "MOST_BYTES", 4 * (sum(size[-length:]) - less))
            kept = [e["generation"] for e in pointer_chain(*"abcdef", sources=made).history]
            last = [n for n in (*range(1, 7),) if n > 6 - max(1, length - less)]
            older = [n for n in made[-1:] if n not in last]
            assert kept == [*older, *last], (length, less)
    monkeypatch.setattr(write, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(write, "HISTORY_LENGTH", 2)
    kept = [e["generation"] for e in pointer_chain(*"abcdef", sources=made).history]
    assert kept == [*(n for n in made[-1:] if n < 5), 5, 6]


def test_new_stamps_are_those_of_the_entry_made_from_files() -> None:
    """Or of the current one, on request; the pointer's own only where it is that generation."""
    new = {"hard_negatives": {"bytes": 3, "mtime_ns": 4}}

    def sources(pointer: Pointer) -> list[Any]:
        return [pointer.source, *(entry["source"] for entry in pointer.history)]

    last, older, none = (pointer_chain("a", "b", sources=made) for made in ((1, 2), (1,), ()))
    assert sources(with_source(last, new)) == [new, STAMPS, new]
    assert sources(with_source(older, new)) == [{}, new, {}]
    assert sources(with_source(older, new, of_current=True)) == [new, STAMPS, new]
    assert with_source(none, new) == none
    assert sources(with_source(none, new, of_current=True)) == [new, {}, new]
    lost = replace(last, history=last.history[:1])
    assert with_source(lost, new, of_current=True) == lost


def test_next_number_was_never_used(tmp_path: Path) -> None:
    """By no file, by no entry and by no pointer; where nothing is, it is the first."""
    assert next_generation(tmp_path, None) == 1
    (tmp_path / FOLDER).mkdir()
    assert next_generation(tmp_path, None) == 1
    (tmp_path / FOLDER / file_name(4)).touch()
    assert next_generation(tmp_path, None) == 5
    assert next_generation(tmp_path, pointer_chain(*"abc")) == 5
    assert next_generation(tmp_path, pointer_chain(*"abcdef")) == 7
    assert next_generation(tmp_path, replace(pointer_chain(*"abcdef"), generation=3)) == 7
    assert next_generation(tmp_path, replace(pointer_chain("a"), generation=9, history=())) == 10
    last = replace(pointer_chain("a"), generation=MAX_GENERATION - 1)
    assert next_generation(tmp_path, last) == MAX_GENERATION
    with pytest.raises(StorageError) as caught:
        next_generation(tmp_path, replace(last, generation=MAX_GENERATION))
    assert str(caught.value) == (
        f"{tmp_path / FOLDER}: generation {MAX_GENERATION} is the largest possible number. Convert"
        " the builder's folder into a new folder, where numbers start at 1 again."
    )


# The commit


@pytest.fixture
def change(tmp_path: Path) -> Change:
    """Return a first generation that is prepared and not committed."""
    (tmp_path / FOLDER).mkdir()
    tables = {name: torch.ones(2, 2, dtype=torch.int64) for name in ("hard_negatives",)}
    tables["negative_tiers"] = tables["hard_negatives"]
    staged = write_staged(tmp_path / FOLDER / "staged", tables)
    return Change.written(pointer_chain("a"), tmp_path / FOLDER / "prepared", staged)


def failing_sync(monkeypatch: pytest.MonkeyPatch, at: int) -> list[list[str]]:
    """Let the sync number `at` fail; return what is in the folder at each."""
    seen: list[list[str]] = []

    def sync(folder: Path) -> None:
        seen.append(sorted(path.name for path in folder.iterdir()))
        if len(seen) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(atomic, "sync_folder", sync)
    return seen


@pytest.mark.parametrize("last", [True, False])
def test_commit_makes_the_file_last_before_the_pointer_names_it(
    tmp_path: Path, change: Change, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """A power cut leaves no pointer to a file that is not there."""
    seen = failing_sync(monkeypatch, 0)
    change.commit(tmp_path, last=last)
    assert seen == [[file_name(1), "prepared"], [file_name(1), POINTER]]


COMMITS: dict[str, tuple[int, Callable[[Change, Path], None], type[JasperError], str]] = {
    "file": (1, Change.commit, StorageError, "the disk or the network reported an I/O error."),
    "pointer": (2, Change.commit, DurabilityError, "is current, but may not survive a power cut:"),
    "pointer before others": (
        2,
        lambda change, store: change.commit(store, last=False),
        StorageError,
        "the disk or the network reported an I/O error.",
    ),
}


@pytest.mark.parametrize("case", COMMITS)
def test_commit_that_cannot_be_made_to_last_says_what_is_current(
    tmp_path: Path, change: Change, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Before the pointer nothing is; after it the new generation, unless more is to come."""
    at, commit, kind, words = COMMITS[case]
    failing_sync(monkeypatch, at)
    with pytest.raises(kind, match=re.escape(words)) as caught:
        commit(change, tmp_path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{tmp_path / FOLDER / POINTER}: ")
    assert (tmp_path / FOLDER / POINTER).exists() == (at == 2)


def test_lock_of_publishers_says_what_helps_and_sweeps(tmp_path: Path) -> None:
    """A second one waits as long as it was allowed to."""
    (tmp_path / FOLDER).mkdir()
    left = atomic.sibling_of(tmp_path / FOLDER / POINTER)
    left.touch()
    with publisher_lock(tmp_path, 0.0):
        assert not left.exists()
        with (
            pytest.raises(BusyError, match="allow a longer lock_timeout_s"),
            publisher_lock(tmp_path, 0.0),
        ):
            pass
    with publisher_lock(tmp_path, 0.0):
        pass
