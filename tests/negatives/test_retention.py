"""Which generations stay on disk, against the rule written down once more."""

import itertools
import os
import random
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jasper_mmap.files import atomic
from jasper_mmap.negatives import retention
from jasper_mmap.negatives.retention import OnDisk, Pruned, judged, remove, remove_old
from jasper_mmap.store.pointer import FOLDER, Pointer, file_name, generations_on_disk

AGES_S = (5, 50, 500, 5000)


def pointer_of(began: dict[int, float]) -> Pointer:
    """Return a pointer with a history of these generations and the times when each began."""
    history = tuple(
        {"generation": n, "when": datetime.fromtimestamp(s, UTC).isoformat()}
        for n, s in began.items()
    )
    last = max(began)
    return Pointer(
        generation=last,
        file=file_name(last),
        bytes=0,
        mtime_ns=0,
        sha256="",
        store_id="",
        source={},
        when=str(history[-1]["when"]),
        by="",
        lint={},
        history=history,
    )


@pytest.mark.parametrize("seed", range(40))
def test_what_stays_is_what_the_rule_says(tmp_path: Path, seed: int) -> None:
    """In force, of the last `keep` that are still there, or replaced no longer than the grace."""
    draw = random.Random(seed)
    now = time.time()
    folder = tmp_path / FOLDER
    folder.mkdir()
    ages = sorted((draw.uniform(1, 2 * max(AGES_S)) for _ in range(8)), reverse=True)
    began = {number: now - age for number, age in enumerate(ages, 1) if draw.random() < 0.8}
    began = began or {1: now}
    on_disk = {n for n in began if draw.random() < 0.8} | {max(began)}
    orphans = {n: draw.choice(AGES_S) for n in range(20, 23)}  # a publisher died before its commit
    for number in on_disk | orphans.keys():
        path = folder / file_name(number)
        path.touch()
        if number in orphans:
            os.utime(path, (now - orphans[number],) * 2)
    keep, grace_s = draw.randint(1, 4), draw.choice([10.0, 100.0, 1000.0])
    remove_old(tmp_path, pointer_of(began), keep, grace_s)

    numbers = sorted(began)
    stay = set(sorted(on_disk)[-keep:]) | {max(began)}
    for number, following in itertools.pairwise(numbers):
        if number in on_disk and now - began[following] <= grace_s:
            stay.add(number)
    stay |= {number for number, age in orphans.items() if age <= grace_s}
    assert {int(path.stem) for path in folder.iterdir()} == stay


def three_old(folder: Path) -> dict[int, float]:
    """Make the files of three generations, replaced long ago but for the last."""
    (folder / FOLDER).mkdir()
    for number in (1, 2, 3):
        (folder / FOLDER / file_name(number)).touch()
    now = time.time()
    return {1: now - 9000, 2: now - 8000, 3: now - 7000}


def test_the_log_names_what_was_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By number, once, and nothing if there was nothing."""
    pointer = pointer_of(three_old(tmp_path))
    with caplog.at_level("INFO", "jasper_mmap"):
        remove_old(tmp_path, pointer, 1, 10.0)
        remove_old(tmp_path, pointer, 1, 10.0)
    assert [r.getMessage() for r in caplog.records] == [f"removed generations [1, 2] of {tmp_path}"]


def test_a_file_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The new generation is in force, so publishing goes on."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "there")

    monkeypatch.setattr(atomic, "remove", refuse)
    remove_old(tmp_path, pointer_of(three_old(tmp_path)), 1, 10.0)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"could not remove an old generation of {tmp_path}: [Errno 13] Permission denied: 'there'"
    )


def test_one_that_is_gone_already_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program may have removed it between the look and now."""
    pointer = pointer_of(three_old(tmp_path))
    there = generations_on_disk(tmp_path)
    (tmp_path / FOLDER / file_name(1)).unlink()
    monkeypatch.setattr(retention, "generations_on_disk", lambda _: there)
    remove_old(tmp_path, pointer, 1, 10.0)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert [*generations_on_disk(tmp_path)] == [3]


def test_a_strange_entry_hides_no_other(tmp_path: Path) -> None:
    """An entry of another program may lack a time; those after it count all the same."""
    began = three_old(tmp_path)
    pointer = pointer_of({**began, 4: time.time()})
    history = [dict(entry) for entry in pointer.history]
    del history[1]["when"]
    (tmp_path / FOLDER / file_name(4)).touch()
    os.utime(tmp_path / FOLDER / file_name(2), (0, 0))
    remove_old(tmp_path, replace(pointer, history=tuple(history)), 1, 1000.0)
    # 3 was replaced just now, by its entry; its file's time would say so too, were it older.
    os.utime(tmp_path / FOLDER / file_name(3), (0, 0))
    remove_old(tmp_path, replace(pointer, history=tuple(history)), 1, 1000.0)
    assert [*generations_on_disk(tmp_path)] == [1, 3, 4]


def test_time_that_lies_ahead_counts_as_now(tmp_path: Path) -> None:
    """Clocks of two machines differ: what was just replaced is not old."""
    pointer = pointer_of(three_old(tmp_path))
    ahead = time.time() + 9000
    lost = replace(pointer, history=pointer.history[2:])  # without entries their files' times count
    path = tmp_path / FOLDER / file_name(1)
    path.write_bytes(b"12345")
    os.utime(path, (ahead, ahead))
    first, *_ = judged(tmp_path, lost, 1, 0.0)
    assert first == OnDisk(1, path, 5, "replaced 0 s ago, within the grace time of 0 s")


def test_file_that_is_gone_at_its_turn_counts_as_removed(tmp_path: Path) -> None:
    """Another program was faster; what stays is not touched."""
    there = three_old(tmp_path)
    (tmp_path / FOLDER / file_name(1)).unlink()
    removed: list[int] = []
    whys = (None, None, "current")
    judgements = [
        OnDisk(n, tmp_path / FOLDER / file_name(n), 0, why)
        for n, why in zip(there, whys, strict=True)
    ]
    remove(tmp_path, judgements, removed)
    assert removed == [1, 2]
    assert [*generations_on_disk(tmp_path)] == [3]


@pytest.mark.parametrize("dry_run", [True, False])
def test_answer_in_json_has_each_generation_once(dry_run: bool) -> None:
    """With its size, and with what it stays for."""
    path = Path("x")
    pruned = Pruned([OnDisk(1, path, 10, None), OnDisk(2, path, 20, "current")], dry_run)
    assert pruned.to_dict() == {
        "dry_run": dry_run,
        "freed_bytes": 10,
        "removed": [{"generation": 1, "bytes": 10}],
        "stay": [{"generation": 2, "bytes": 20, "why": "current"}],
    }
