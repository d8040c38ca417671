"""Removing old generations on request: which go, which stay and why, and what is freed."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.commands.main import command
from jasper_mmap.errors import (
    AccessError,
    BusyError,
    FormatError,
    MissingFileError,
    StorageError,
    UsageError,
)
from jasper_mmap.files import atomic
from jasper_mmap.negatives import retention
from jasper_mmap.negatives.retention import prune_negatives
from jasper_mmap.negatives.write import publisher_lock
from jasper_mmap.store.pointer import FOLDER, file_name
from tests.oracle import Oracle
from tests.publishing import contents, current_pointer, generations_left, numbered


@pytest.fixture
def four(store: Path, oracle: Oracle) -> Path:
    """Return a store of four generations, all on disk, replaced a moment ago."""
    for number in (2, 3, 4):
        assert publish_negatives(store, *numbered(oracle, number), keep=9) == number
    return store


def sizes(store: Path) -> dict[int, int]:
    """Return the bytes of each generation on disk, read without the package."""
    return {
        n: (store / FOLDER / f"{n:06d}.safetensors").stat().st_size for n in generations_left(store)
    }


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 9])
def test_last_ones_stay_and_the_others_are_freed(four: Path, keep: int) -> None:
    """A dry run says the same, and changes nothing; the current one is served as before."""
    before, all_bytes = contents(four), sizes(four)
    planned = prune_negatives(four, keep=keep, grace_s=0, dry_run=True)
    assert contents(four) == before
    done = prune_negatives(four, keep=keep, grace_s=0)
    left = sizes(four)
    assert [*left] == [1, 2, 3, 4][-keep:]
    assert done.freed_bytes == sum(all_bytes.values()) - sum(left.values())
    assert planned.to_dict() == {**done.to_dict(), "dry_run": True}
    assert {one.generation for one in done.removed} == all_bytes.keys() - left.keys()
    assert done.generations[-1].stays == "current"
    assert prune_negatives(four, keep=keep, grace_s=0).removed == []
    with JASPERSteeringDataset(four, "train", validate="full") as dataset:
        assert dataset.generation == 4


def test_grace_keeps_what_was_replaced_a_moment_ago(four: Path) -> None:
    """By default ten minutes; each says why it stays."""
    pruned = prune_negatives(four, keep=2)
    assert generations_left(four) == [1, 2, 3, 4]
    whys = [one.stays or "" for one in pruned.generations]
    assert whys[2:] == ["among the last 2", "current"]
    assert all("within the grace time of 600 s" in why for why in whys[:2])


def test_file_of_a_publisher_that_died_goes_too(four: Path) -> None:
    """It was never current; its own time counts."""
    orphan = four / FOLDER / file_name(7)
    orphan.write_bytes(b"x" * 1000)
    assert 7 not in {one.generation for one in prune_negatives(four, keep=4).removed}
    os.utime(orphan, (0, 0))
    pruned = prune_negatives(four, keep=4)
    assert ([one.generation for one in pruned.removed], pruned.freed_bytes) == ([7], 1000)


def test_current_one_stays_after_a_rollback_that_lost_its_history(four: Path) -> None:
    """Even if the history does not name it."""
    path = four / FOLDER / "CURRENT.json"
    pointer = current_pointer(four)
    path.write_text(json.dumps(pointer | {"history": []}))
    prune_negatives(four, keep=1, grace_s=0)
    assert generations_left(four) == [4]


@pytest.fixture
def held(four: Path) -> Iterator[Path]:
    """Hold the publishers' lock of the store."""
    with publisher_lock(four, 1):
        yield four


def test_a_publisher_at_work_excludes_it(held: Path) -> None:
    """A dry run takes no lock."""
    with pytest.raises(BusyError, match="held by"):
        prune_negatives(held, keep=1, grace_s=0, lock_timeout_s=0)
    assert len(prune_negatives(held, keep=1, grace_s=0, dry_run=True).removed) == 3


def test_read_only_disk_is_an_error(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That names the folder; nothing else changed."""

    def refuse(path: Path, **_: object) -> None:
        if path.suffix == ".safetensors":
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(atomic, "remove", refuse)
    with pytest.raises(AccessError, match="Read-only file system"):
        prune_negatives(four, keep=1, grace_s=0)
    assert generations_left(four) == [1, 2, 3, 4]


@pytest.mark.parametrize("dry_run", [True, False])
def test_disk_that_cannot_be_read_is_an_error(
    four: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    """That names the folder, and says at what; nothing is removed."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EREMOTEIO, "remote")

    for module, name, verb in ((retention, "judged", "read"), (atomic, "remove", "write")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(StorageError) as caught:
                prune_negatives(four, keep=1, grace_s=0, dry_run=dry_run)
        assert str(caught.value) == f"{four / FOLDER}: cannot {verb} it: remote. Run it again."
        if dry_run:
            break  # it removes nothing


def test_log_names_what_was_removed(four: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and nothing where nothing was; the answer says that it was done."""
    with caplog.at_level("INFO", "jasper_mmap"):
        prune_negatives(four, keep=2, grace_s=0, dry_run=True)
        assert prune_negatives(four, keep=2, grace_s=0).dry_run is False
        prune_negatives(four, keep=2, grace_s=0)
    said = [r.getMessage() for r in caplog.records if "removed" in r.getMessage()]
    assert said == [f"removed generations [1, 2] of {four}"]


def test_wrong_calls(four: Path, tmp_path: Path) -> None:
    """None of them removes anything."""
    for options in ({"keep": 0}, {"grace_s": -1}, {"grace_s": "x"}, {"lock_timeout_s": -1}):
        with pytest.raises(UsageError, match=rf"^{next(iter(options))}\b"):
            prune_negatives(four, **options)
    with pytest.raises(UsageError, match=r"^dataset_dir\b"):
        prune_negatives(3)  # type: ignore[arg-type]
    with pytest.raises(MissingFileError, match="not a converted store"):
        prune_negatives(tmp_path)
    (four / FOLDER / "CURRENT.json").write_text("{")
    with pytest.raises(FormatError):
        prune_negatives(four, keep=1, grace_s=0)
    assert generations_left(four) == [1, 2, 3, 4]


def test_command_says_what_it_frees_and_why_others_stay(four: Path) -> None:
    """In words and as JSON."""
    arguments = ["prune", str(four), "--keep", "2", "--grace", "0"]
    dry = CliRunner().invoke(command, [*arguments, "--dry-run", "--json"])
    answer = json.loads(dry.output)
    assert answer["dry_run"] is True
    assert [one["generation"] for one in answer["removed"]] == [1, 2]
    assert [(one["generation"], one["why"]) for one in answer["stay"]] == [
        (3, "among the last 2"),
        (4, "current"),
    ]
    assert answer["freed_bytes"] == sum(sizes(four)[n] for n in (1, 2))
    assert "2 generations would be removed, 195.5 KiB freed; 2 stay" in (
        CliRunner().invoke(command, [*arguments, "--dry-run"]).output
    )
    lines = CliRunner().invoke(command, arguments).output.splitlines()
    assert [line.split(maxsplit=3)[3] for line in lines[2:6]] == [
        "removed",
        "removed",
        "stays: among the last 2",
        "stays: current",
    ]
    assert generations_left(four) == [3, 4]
