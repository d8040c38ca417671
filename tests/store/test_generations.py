"""Every reader checks the current generation alike; a pointer is trusted nowhere."""

import copy
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converters import convert
from converters.export import export_pt
from jasper_mmap import JASPERSteeringDataset, publish_negatives, rollback_negatives
from jasper_mmap.errors import ContentError, FormatError, IndexRangeError, StorageError
from jasper_mmap.negatives.renewal import verify_store
from jasper_mmap.negatives.write import next_generation
from jasper_mmap.store.folder import Store
from jasper_mmap.store.pointer import (
    FOLDER,
    MAX_GENERATION,
    POINTER,
    file_name,
    generations_on_disk,
    read_pointer,
)
from jasper_mmap.store.summary import summarise
from tests.converting import contents
from tests.damage import edit_pointer, forge_generation
from tests.oracle import Oracle
from tests.publishing import Tables, current_pointer, generations_left, numbered, publish_numbered

GENERATION = f"{FOLDER}/{file_name(1)}"
POINTER_FILE = f"{FOLDER}/{POINTER}"


# A generation of another time than was stamped


def _too_large(tables: dict[str, torch.Tensor]) -> None:
    tables["hard_negatives"][8, 2] = 10**6


def _tier_5(tables: dict[str, torch.Tensor]) -> None:
    tables["negative_tiers"][8, 2] = 5


FORGED = {
    "hard_negatives": (_too_large, IndexRangeError, "references source 1000000 in row 8, column 2"),
    "negative_tiers": (_tier_5, ContentError, "holds 5 in row 8, column 2"),
}
READERS: dict[str, Callable[[Path, Path], object]] = {
    "open": lambda store, _: JASPERSteeringDataset(store, "val"),
    "combined splits": lambda store, _: JASPERSteeringDataset.create_combined_splits(store),
    "inspect": lambda store, _: summarise(store),
    "export": export_pt,
}


@pytest.mark.parametrize("table", FORGED)
@pytest.mark.parametrize("reader", READERS)
def test_numbers_of_a_copied_generation_are_read_by_whoever_opens_it(
    reader: str, table: str, store: Path, tmp_path: Path
) -> None:
    """Its checksum is the pointer's, but a number leads outside: row and remedy are named."""
    spoil, kind, words = FORGED[table]
    forge_generation(store, spoil)
    with pytest.raises(kind, match=f"{words}.*jasper-mmap rollback"):
        READERS[reader](store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moved_s", [-3600, 3600])
def test_older_and_newer_times_are_alike(moved_s: int, store: Path) -> None:
    """Whatever differs from the stamp has it read again, a time before it too."""
    forge_generation(store, _too_large, touch=False)
    path = store / GENERATION
    JASPERSteeringDataset(store, "val").close()  # its stamp vouches for it
    stamp = path.stat().st_mtime_ns
    os.utime(path, ns=(stamp, stamp + moved_s * 10**9))
    with pytest.raises(IndexRangeError):
        JASPERSteeringDataset(store, "val")


def test_bytes_of_a_copied_generation_are_read_too(store: Path) -> None:
    """Numbers inside their tables that are not those published."""
    forge_generation(store, lambda tables: tables["hard_negatives"][0].add_(0))
    edit_pointer(store, lambda p: p.update(sha256="0" * 64))
    with pytest.raises(FormatError, match="SHA-256"):
        JASPERSteeringDataset(store, "val")


def test_a_copied_generation_that_is_sound_is_served(store: Path, tmp_path: Path) -> None:
    """A copy or a download has other times and the same content."""
    copied = tmp_path / "copied"
    shutil.copytree(store, copied, copy_function=shutil.copyfile)
    assert (copied / GENERATION).stat().st_mtime_ns != current_pointer(copied)["mtime_ns"]
    with JASPERSteeringDataset(copied, "val") as dataset:
        assert torch.equal(dataset.hard_negatives, load_file(store / GENERATION)["hard_negatives"])


def test_convert_replaces_a_copied_generation_with_wrong_numbers(
    demo_folder: Path, store: Path, tmp_path: Path
) -> None:
    """The current generation afterwards opens; with its stamp in order too, where the tables were
    written again."""
    for touch in (True, False):
        forge_generation(store, _too_large)
        copied = tmp_path / f"copied-{touch}"
        shutil.copytree(store, copied, copy_function=shutil.copyfile if touch else shutil.copy2)
        assert convert(demo_folder, copied).generation == 2
        with JASPERSteeringDataset(copied, "train", validate="full") as dataset:
            assert torch.equal(dataset.hard_negatives, Oracle(demo_folder).tables["hard_negatives"])


def test_convert_after_a_lost_manifest_checks_the_generation_it_keeps(
    demo_folder: Path, store: Path
) -> None:
    """Nothing says what its numbers referred to: they are checked against the new tables."""
    forge_generation(store, _too_large)
    (store / "manifest.json").unlink()
    with pytest.raises(IndexRangeError, match=r"1000000 in row 8, column 2"):
        convert(demo_folder, store)
    forge_generation(store, lambda tables: tables["hard_negatives"][8].fill_(0))
    assert convert(demo_folder, store).generation == 1
    JASPERSteeringDataset(store, "train").close()


def test_publish_says_nothing_of_rows_changed_since_a_spoilt_generation(
    store: Path, new: Tables
) -> None:
    """Publishing is its remedy, and rows are compared with sound ones only."""
    forge_generation(store, _too_large)
    assert publish_negatives(store, *new) == 2
    assert current_pointer(store)["changed_rows"] is None
    JASPERSteeringDataset(store, "val").close()


@pytest.mark.parametrize("remake", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_a_copy_by_pickle_checks_what_it_opens(
    remake: Callable[[Any], Any], store: Path, oracle: Oracle
) -> None:
    """It may be opened elsewhere and later; a generation that is no longer current in full."""
    with JASPERSteeringDataset(store, "val") as dataset:
        before = dataset.hard_negatives.clone()
        twin = remake(dataset)
        publish_numbered(store, oracle)
        assert torch.equal(twin.hard_negatives, before)  # generation 1, which it came with
        other = remake(dataset)
        path = store / GENERATION
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.unlink()  # or the mapping of the first would change
        path.write_bytes(data)
        with pytest.raises(FormatError, match="altered"):
            _ = other.hard_negatives


# Pointers


POINTERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "true": lambda p: p.update(generation=True),
    "a float": lambda p: p.update(generation=1.0),
    "a string": lambda p: p.update(generation="1"),
    "zero": lambda p: p.update(generation=0),
    "negative": lambda p: p.update(generation=-1),
    "beyond": lambda p: p.update(generation=MAX_GENERATION + 1, file=f"{10**12}.safetensors"),
    "huge": lambda p: p.update(generation=10**300),
    "file of another": lambda p: p.update(file=file_name(2)),
    "file with more zeros": lambda p: p.update(file="0000001.safetensors"),
    "number of another": lambda p: p.update(generation=2),
    "bytes": lambda p: p.update(bytes=None),
    "time": lambda p: p.update(mtime_ns=1.5),
    "checksum": lambda p: p.update(sha256=7),
    "lint": lambda p: p.update(lint=[1]),
    "a count": lambda p: p["lint"].update(repeat_rows="many"),
    "changed rows": lambda p: p.update(changed_rows="all"),
    "history": lambda p: p.update(history="1"),
    "entry": lambda p: p["history"].append(3),
    "entry without number": lambda p: p["history"][0].pop("generation"),
    "entry beyond": lambda p: p["history"].insert(0, {"generation": 10**12}),
    "entry true": lambda p: p["history"].insert(0, {"generation": True}),
    "entry's time": lambda p: p["history"][0].update(when=3),
}


@pytest.mark.parametrize("case", POINTERS)
def test_pointer_that_no_publisher_wrote_is_refused_by_all(
    case: str, store: Path, demo_folder: Path, new: Tables
) -> None:
    """Open, reload and verify name the pointer; publishing and converting replace it."""
    with JASPERSteeringDataset(store, "val") as dataset:
        edit_pointer(store, POINTERS[case])
        with pytest.raises(FormatError, match=r"CURRENT\.json.*jasper-mmap publish"):
            dataset.reload_negatives()
        assert dataset.generation == 1
    with pytest.raises(FormatError, match=r"CURRENT\.json"):
        JASPERSteeringDataset(store, "val")
    with pytest.raises(FormatError, match=r"CURRENT\.json"):
        rollback_negatives(store)
    assert [p.file for p in verify_store(store).problems] == [POINTER_FILE]
    spoilt = (store / POINTER_FILE).read_text()
    assert publish_negatives(store, *new) == 2
    JASPERSteeringDataset(store, "val").close()
    (store / POINTER_FILE).write_text(spoilt)
    assert convert(demo_folder, store).generation == 3
    assert verify_store(store).ok


def test_pointer_to_a_file_that_nobody_published_adopts_nothing(store: Path) -> None:
    """A number and a file that differ: one would be checked and the other one served."""
    shutil.copy(store / GENERATION, store / FOLDER / file_name(2))
    with JASPERSteeringDataset(store, "val") as dataset:
        edit_pointer(store, lambda p: p.update(generation=2))
        with pytest.raises(FormatError, match="the file of generation 2 is '000002"):
            dataset.reload_negatives()
        assert dataset.generation == 1


HISTORIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "checksum": (lambda p: p["history"][-1].update(sha256="0" * 64), "sha256"),
    "bytes": (lambda p: p["history"][-1].update(bytes=5), "bytes"),
    "no checksum": (lambda p: p["history"][-1].pop("sha256"), "sha256 None"),
    "no entry": (lambda p: p["history"].clear(), "no entry for generation 1"),
}


@pytest.mark.parametrize("case", HISTORIES)
@pytest.mark.parametrize("quick", [False, True])
def test_verify_compares_pointer_and_history(case: str, quick: bool, store: Path) -> None:
    """A rollback would later go by the history alone."""
    change, words = HISTORIES[case]
    edit_pointer(store, change)
    (problem,) = verify_store(store, quick=quick).problems
    assert problem.file == POINTER_FILE
    assert words in problem.message
    assert "publish the negatives again" in problem.message


# The bound of numbers


def test_file_beyond_the_bound_is_ignored_and_named_once(
    store: Path, new: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no generation: it neither takes a number nor goes with the old ones."""
    strays = [store / FOLDER / f"{10**12 + n}.safetensors" for n in range(2)]
    odd = store / FOLDER / "0000007.safetensors"
    for path in (*strays, odd):
        shutil.copy(store / GENERATION, path)
    with caplog.at_level(logging.WARNING, "jasper_mmap"):
        assert publish_negatives(store, *new, grace_s=0, keep=1) == 2
        assert list(generations_on_disk(store)) == generations_left_below(store) == [2]
        assert verify_store(store).ok
    named = [r.getMessage() for r in caplog.records if "ignored" in r.getMessage()]
    assert sorted(named) == [m for p in strays for m in named if m.startswith(f"{p}: ")]
    assert len(named) == 2
    assert all(path.exists() for path in (*strays, odd))


def generations_left_below(store: Path) -> list[int]:
    """Return the numbers on disk that are not beyond the bound or written in another way."""
    return [n for n in generations_left(store) if n <= MAX_GENERATION and n != 7]


def test_after_the_last_number_there_is_none(store: Path, oracle: Oracle) -> None:
    """The last one is served, worked with and verified; then an error says what to do."""
    before = publish_numbered(store, oracle)
    target = store / FOLDER / file_name(MAX_GENERATION - 1)
    (store / FOLDER / file_name(before)).rename(target)
    number = {"generation": MAX_GENERATION - 1}
    edit_pointer(
        store, lambda p: (p.update(number, file=target.name), p["history"][-1].update(number))
    )
    tables = numbered(oracle, 3)
    assert publish_negatives(store, *tables) == MAX_GENERATION
    with JASPERSteeringDataset(store, "val") as dataset:
        assert dataset.generation == MAX_GENERATION
        assert torch.equal(dataset.hard_negatives, tables[0])
    assert verify_store(store).ok
    kept = contents(store)
    with pytest.raises(StorageError, match="new folder, where numbers start at 1"):
        publish_negatives(store, *tables, republish=True)
    with pytest.raises(StorageError):
        rollback_negatives(store)
    assert {k: v for k, v in contents(store).items() if not k.endswith("negatives")} == {
        k: v for k, v in kept.items() if not k.endswith("negatives")
    }


def test_number_of_the_history_is_not_used_again(store: Path, oracle: Oracle) -> None:
    """Also where the pointer was set back by hand and the newer files were removed."""
    for _ in range(3):
        publish_numbered(store, oracle)
    pointer = current_pointer(store)
    first = {key: value for key, value in pointer["history"][0].items() if key in pointer}
    edit_pointer(store, lambda p: p.update(first, file=file_name(1)))
    for number in (2, 3, 4):
        (store / FOLDER / file_name(number)).unlink()
    assert next_generation(store, read_pointer(store)) == 5


def test_reserved_number_beyond_the_bound_is_not_used(
    demo_folder: Path, store: Path, new: Tables
) -> None:
    """The journal of an interrupted conversion may say anything."""
    publish_negatives(store, *new)
    (store / ".converting").mkdir()
    (store / ".converting" / "journal.json").write_text(
        json.dumps({"entries": {}, "generation": 10**12})
    )
    assert convert(demo_folder, store, force=True).generation == 3
    Store(store)
