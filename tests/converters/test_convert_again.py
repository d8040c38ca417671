"""A second conversion writes only what changed, and carries the negatives over."""

import errno
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from converters import convert
from jasper_mmap import publish_negatives
from jasper_mmap.errors import (
    AccessError,
    ContentError,
    IndexRangeError,
    NewerFormatError,
    StorageError,
)
from jasper_mmap.files import jsonfile
from jasper_mmap.negatives import builder_pair
from jasper_mmap.rules.schema import ARTIFACTS, STORED
from jasper_mmap.store.manifest import MANIFEST_FILE
from jasper_mmap.store.pointer import read_pointer
from tests.converting import SMALL, change, inodes, load, snapshot, stored, touch
from tools.demo.folder import make_builder_folder, remine_negatives


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


def test_a_second_run_touches_nothing(folder: Path, tmp_path: Path) -> None:
    """Not even the time of a folder."""
    first = convert(folder, tmp_path / "store")
    before = snapshot(tmp_path)
    second = convert(folder, tmp_path / "store")
    assert snapshot(tmp_path) == before
    assert (set(first.written), first.left_alone) == (set(ARTIFACTS), ())
    assert (second.written, set(second.left_alone)) == ((), set(ARTIFACTS))
    assert second.bytes_written == 0
    assert (first.store_id, first.warnings) == (second.store_id, second.warnings)


def test_the_store_may_lie_beside_the_pt_files(folder: Path) -> None:
    """They stay untouched, and a second run finds nothing to do."""
    before = snapshot(folder)
    convert(folder)
    after = snapshot(folder)
    assert {name: after[name] for name in before} == before
    assert convert(folder).written == ()


def test_only_what_changed_is_written_again(folder: Path, tmp_path: Path) -> None:
    """The others keep their very files; the generation is carried over to the new store."""
    store = tmp_path / "store"
    old = convert(folder, store)
    before = inodes(store)
    change(folder, "steering_residual", lambda t: t.mul_(2))
    report = convert(folder, store)
    assert report.written == ("steering_residual",)
    after = inodes(store)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"steering_residual.safetensors", MANIFEST_FILE}
    assert report.store_id != old.store_id
    assert (report.generation, read_pointer(store).store_id) == (1, report.store_id)


def test_a_damaged_or_lost_file_is_written_again(folder: Path, tmp_path: Path) -> None:
    """Cut off, removed, or a generation with another content."""
    store = tmp_path / "store"
    first = convert(folder, store)
    (store / "val_idx.safetensors").unlink()
    with (store / "pair_index.safetensors").open("r+b") as file:
        file.truncate(100)
    generation = store / "negatives" / "000001.safetensors"
    generation.write_bytes(generation.read_bytes()[:-1] + b"\1")
    report = convert(folder, store)
    assert set(report.written) == {"val_idx", "pair_index", "hard_negatives", "negative_tiers"}
    assert (report.store_id, report.generation) == (first.store_id, 2)


def test_changed_negatives_become_the_next_generation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store itself stays the same one; a mere touch publishes nothing and is remembered."""
    monkeypatch.setattr(builder_pair, "ALONE_S", 0.1)
    store = tmp_path / "store"
    convert(folder, store)
    before = inodes(store)
    touch(folder / "hard_negatives.pt")
    assert convert(folder, store).written == ()
    assert read_pointer(store).source["hard_negatives"]["mtime_ns"] == (
        (folder / "hard_negatives.pt").stat().st_mtime_ns
    )
    quiet = snapshot(store)
    assert convert(folder, store).generation == 1
    assert snapshot(store) == quiet

    for name, table in zip(
        ("hard_negatives", "negative_tiers"), remine_negatives(folder, seed=9), strict=True
    ):
        torch.save(table, folder / f"{name}.pt")
    report = convert(folder, store)
    assert set(report.written) == {"hard_negatives", "negative_tiers"}
    assert report.generation == 2
    assert inodes(store) == before
    pointer = read_pointer(store)
    assert [e["generation"] for e in pointer.history] == [1, 2]
    assert pointer.changed_rows in range(1, SMALL["n_pairs"] + 1)
    found = stored(store / "negatives" / "000002.safetensors")["hard_negatives"]
    assert torch.equal(found, load(folder, "hard_negatives"))


def test_published_negatives_stay_current(folder: Path, tmp_path: Path) -> None:
    """Only `force` puts the builder's own back, when they are no news; and only once."""
    store = tmp_path / "store"
    convert(folder, store)
    assert publish_negatives(store, *remine_negatives(folder, seed=9)) == 2
    change(folder, "steering_residual", lambda t: t.mul_(2))
    assert convert(folder, store).generation == 2
    assert convert(folder, store, force=True).generation == 3
    assert convert(folder, store, force=True).generation == 3


def test_a_table_that_shrank_is_checked_against_what_stayed(folder: Path, tmp_path: Path) -> None:
    """Unchanged numbers, of a table or of the current generation, may now lead outside."""
    store = tmp_path / "store"
    pairs, sources = load(folder, "pair_index"), load(folder, "source_embs")
    torch.save(torch.cat([sources, sources[:1]]), folder / "source_embs.pt")
    change(folder, "hard_negatives", lambda t: t[7, 2].fill_(len(sources)))
    convert(folder, store)
    before = snapshot(store)
    row = int(pairs[:, 1].argmax())
    torch.save(sources[: int(pairs[row, 1])].clone(), folder / "source_embs.pt")
    with pytest.raises(
        IndexRangeError,
        match=rf"pair_index references source {int(pairs[row, 1])} in row {row}, column 1",
    ):
        convert(folder, store)
    torch.save(sources, folder / "source_embs.pt")
    with pytest.raises(
        IndexRangeError,
        match=rf"made from hard_negatives.pt.*references source {len(sources)} in row 7, column 2",
    ):
        convert(folder, store)
    # An older filelock changes the time of the file that it locks.
    taken = {"negatives": (), "negatives/.lock": ()}
    assert snapshot(store) | taken == before | taken


def test_a_store_of_a_newer_format_is_only_overwritten_by_force(
    folder: Path, tmp_path: Path
) -> None:
    """What another version wrote is not lost unasked."""
    convert(folder, tmp_path / "store")
    manifest = tmp_path / "store" / MANIFEST_FILE
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 9}))
    before = snapshot(tmp_path)
    with pytest.raises(NewerFormatError, match=r"version is 9, .* up to 1.*--force"):
        convert(folder, tmp_path / "store")
    assert snapshot(tmp_path) == before
    convert(folder, tmp_path / "store", force=True)
    assert json.loads(manifest.read_text())["format_version"] == 1


def test_an_edited_config_is_noticed(folder: Path, tmp_path: Path) -> None:
    """It has no stamp: it is copied where it differs, and checked even where nothing else is."""
    store = tmp_path / "store"
    convert(folder, store)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "note": "more"}))
    assert convert(folder, store).written == ()
    assert json.loads((store / "config.json").read_text())["note"] == "more"
    for key, value in {"embedding_dim": 9, "n_neg": 3}.items():
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ContentError, match=f"'{key}' in config.json is {value}"):
            convert(folder, store)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_manifest_that_cannot_be_read_is_not_thrown_away(
    folder: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may be sound; a damaged manifest is written anew."""
    store = tmp_path / "store"
    convert(folder, store)
    before = snapshot(store)

    def fail(path: Path, **_: Any) -> NoReturn:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(jsonfile, "open_regular", fail)
        with pytest.raises((StorageError, AccessError), match=r"manifest\.json"):
            convert(folder, store)
    assert snapshot(store) == before
    (store / MANIFEST_FILE).write_text("{")
    assert set(convert(folder, store).written) == {artifact.name for artifact in STORED}
