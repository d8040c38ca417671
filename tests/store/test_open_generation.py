"""A generation is read from the file that was opened, whatever its name means by now."""

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jasper_mmap.errors import (
    ContentError,
    ContentTypeError,
    FormatError,
    IndexRangeError,
    JasperError,
    MissingFileError,
    StorageError,
    StoreChangedError,
)
from jasper_mmap.files.safetensors import map_tensors
from jasper_mmap.files.shared_memory import Descriptor
from jasper_mmap.negatives.write import Change, write_staged
from jasper_mmap.store import generations
from jasper_mmap.store.generations import (
    content_errors,
    history_errors,
    map_generation,
    sound_generation,
    stamped_generation,
)
from jasper_mmap.store.pointer import FOLDER, POINTER, Pointer, file_name, read_pointer
from tests.damage import rewrite
from tests.publishing import pointer_chain

SIZES: Mapping[str, int] = {"N_p": 4, "N": 3, "N_s": 9}
REMEDY = "publish the negatives again, or run jasper-mmap rollback"


def tables(first: int) -> dict[str, torch.Tensor]:
    """Return tables of four pairs that differ by their first number."""
    negatives = torch.arange(12).reshape(4, 3) % 9
    negatives[0, 0] = first
    return {"hard_negatives": negatives, "negative_tiers": torch.ones(4, 3, dtype=torch.int64)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a folder with one generation, and nothing else of a store."""
    (tmp_path / FOLDER).mkdir()
    staged = write_staged(tmp_path / FOLDER / "staged", tables(7))
    stamp = {name: vars(staged.written)[name] for name in ("bytes", "sha256", "mtime_ns")}
    first = pointer_chain("a")
    entry = {**first.history[0], "bytes": stamp["bytes"], "sha256": stamp["sha256"]}
    pointer = replace(first, **stamp, history=(entry,))
    Change.written(pointer, tmp_path / FOLDER / "prepared", staged).commit(tmp_path)
    return tmp_path


@pytest.fixture
def path(store: Path) -> Path:
    """Return the file of that generation."""
    return store / FOLDER / file_name(1)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return another file of the same form and size."""
    return write_staged(tmp_path / "other", tables(3)).path


def spoil(path: Path, *, touch: bool) -> None:
    """Change one number; its new value is within range."""

    def change(there: dict[str, Any]) -> None:
        there["hard_negatives"][0, 0] = 5

    rewrite(path, change, touch=touch)


def test_what_opens_it_trusts_its_stamp_and_nothing_else(store: Path, path: Path) -> None:
    """Of the same time the content is not read, unless asked for; of another one it is."""
    pointer = read_pointer(store)
    for full in (False, True):
        opened = sound_generation(store, pointer, "id", SIZES, full=full)
        assert (opened.path, opened.mtime_ns) == (path, path.stat().st_mtime_ns)
        assert opened.descriptor.samefile(path)
        assert all(torch.equal(opened.tables[name], table) for name, table in tables(7).items())
    spoil(path, touch=False)
    sound_generation(store, pointer, "id", SIZES)
    altered = f"{path}: was altered after publishing (SHA-256 differs); {REMEDY}."
    with pytest.raises(FormatError) as caught:
        sound_generation(store, pointer, "id", SIZES, full=True)
    assert str(caught.value) == altered
    spoil(path, touch=True)
    stamped_generation(store, pointer, "id", SIZES)
    with pytest.raises(FormatError) as caught:
        sound_generation(store, pointer, "id", SIZES)
    assert str(caught.value) == altered


def test_content_is_that_of_the_open_file(store: Path, path: Path, other: Path) -> None:
    """Also where another file has its name by now, or none."""
    pointer = read_pointer(store)
    opened = stamped_generation(store, pointer, "id", SIZES)
    other.replace(path)
    assert [*content_errors(opened, pointer, SIZES)] == []
    path.unlink()
    assert [*content_errors(opened, pointer, SIZES)] == []
    assert torch.equal(opened.tables["hard_negatives"], tables(7)["hard_negatives"])


def test_lent_file_is_mapped_by_its_descriptor(store: Path, path: Path, other: Path) -> None:
    """Under the name that errors know; without one the file of the number is."""
    with other.open("rb") as file:
        lent = map_generation(store, 1, SIZES, at=Path(f"/dev/fd/{file.fileno()}"))
    assert lent.path == path
    assert torch.equal(lent.tables["hard_negatives"], tables(3)["hard_negatives"])
    assert lent.descriptor.samefile(other)
    own = map_generation(store, 1, SIZES)
    assert torch.equal(own.tables["hard_negatives"], tables(7)["hard_negatives"])
    path.unlink()
    with pytest.raises(MissingFileError) as caught:
        map_generation(store, 1, SIZES)
    assert str(caught.value) == (
        f"{path} not found, but {POINTER} names it: it was removed, or not copied. Copy it there,"
        f" or {REMEDY}."
    )


def test_map_is_of_the_very_file_that_was_opened(
    store: Path, path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is renamed into its place meanwhile is not the one that was looked at."""

    def replacing(*arguments: Any, **options: Any) -> Any:
        if other.exists():
            other.replace(path)
        return map_tensors(*arguments, **options)

    monkeypatch.setattr(generations, "map_tensors", replacing)
    opened = map_generation(store, 1, SIZES)
    assert torch.equal(opened.tables["hard_negatives"], tables(7)["hard_negatives"])


def _own_entry(pointer: Pointer, **changes: Any) -> Pointer:
    return replace(pointer, history=({**pointer.history[0], **changes},))


def _renamed_table(path: Path) -> None:
    save_file({"hard_negatives": tables(7)["hard_negatives"], "tiers": torch.ones(2)}, path)


def _floats(path: Path) -> None:
    save_file({name: table.double() for name, table in tables(7).items()}, path)


def _more_rows(path: Path) -> None:
    save_file({name: table.repeat(2, 1) for name, table in tables(7).items()}, path)


def _damaged(path: Path) -> None:
    path.write_bytes(b"x" * 100)


FORMS: dict[str, tuple[Callable[[Path], None], type[JasperError], str]] = {
    "names": (
        _renamed_table,
        ContentError,
        f"must hold hard_negatives and negative_tiers, found hard_negatives, tiers; {REMEDY}.",
    ),
    "dtype": (_floats, ContentTypeError, "hard_negatives holds float64"),
    "damaged": (_damaged, FormatError, ""),
    "rows": (_more_rows, ContentError, "hard_negatives [N_p, N] has 8 rows"),
}


@pytest.mark.parametrize("case", FORMS)
def test_file_of_another_form_is_refused_by_name(store: Path, path: Path, case: str) -> None:
    """Even by a process that was lent it."""
    change, kind, words = FORMS[case]
    change(path)
    with pytest.raises(kind) as caught:
        map_generation(store, 1, SIZES)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_generation_of_another_store_or_size_is_refused(store: Path, path: Path) -> None:
    """Both are named, and what to do."""
    pointer = read_pointer(store)
    with pytest.raises(StoreChangedError) as changed:
        stamped_generation(store, pointer, "new", SIZES)
    assert str(changed.value) == (
        f"{store / FOLDER / POINTER}: belongs to store id, but this store is new. If it was"
        " converted meanwhile, open the dataset again; else convert again."
    )
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(FormatError) as longer:
        stamped_generation(store, pointer, "id", SIZES)
    assert str(longer.value) == (
        f"{path}: has {pointer.bytes + 1} bytes, but {pointer.bytes} were published; {REMEDY}."
    )


def test_values_are_checked_against_their_store(store: Path, path: Path) -> None:
    """Where that exists; file, row and remedy are named, and a checksum may be left out."""
    pointer = read_pointer(store)
    few = {**SIZES, "N_s": 8}
    (wrong,) = content_errors(stamped_generation(store, pointer, "id", few), pointer, few)
    assert type(wrong) is IndexRangeError
    assert str(wrong).startswith(f"{path}: ")
    assert "references source 8" in str(wrong)
    assert str(wrong).endswith(f" Or {REMEDY}.")
    with pytest.raises(IndexRangeError, match="references source 8"):
        sound_generation(store, pointer, "id", few, full=True)
    opened = stamped_generation(store, pointer, "id", {})
    assert [*content_errors(opened, pointer, {})] == []
    spoilt = replace(pointer, sha256="0")
    assert len([*content_errors(opened, spoilt, {})]) == 1
    assert [*content_errors(opened, spoilt, {}, checksum=False)] == []


def test_pointer_and_its_entry_must_agree(store: Path) -> None:
    """The last entry of that number counts."""
    pointer = read_pointer(store)
    where = f"{store / FOLDER / POINTER}: its history"
    assert [*history_errors(store, pointer)] == []
    wrong = _own_entry(pointer, bytes=1, sha256=None)
    assert [str(error) for error in history_errors(store, wrong)] == [
        f"{where} has bytes 1 for generation 1, but the pointer has {pointer.bytes}; {REMEDY}.",
        f"{where} has sha256 None for generation 1, but the pointer has {pointer.sha256!r};"
        f" {REMEDY}.",
    ]
    twice = replace(pointer, history=(*wrong.history, *pointer.history))
    assert [*history_errors(store, twice)] == []
    (lost,) = history_errors(store, _own_entry(pointer, generation=2))
    assert str(lost) == f"{where} has no entry for generation 1; {REMEDY}."


def test_errors_of_the_disk_speak_of_reading_that_file(
    store: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the open, at the look at its size, and while its checksum is computed."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EREMOTEIO, "remote")

    pointer = read_pointer(store)
    opened = generations._opened

    def opened_well(at: Path) -> Descriptor:
        file = opened(at)
        monkeypatch.setattr(os, "fstat", fail)
        return file

    for name, replacement in (("regular_descriptor", fail), ("_opened", opened_well)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generations, name, replacement)
            with pytest.raises(StorageError) as caught:
                stamped_generation(store, pointer, "id", SIZES)
        monkeypatch.undo()
        assert str(caught.value) == f"{path}: cannot read it: remote. Run it again."
    well = stamped_generation(store, pointer, "id", SIZES)
    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(StorageError) as caught:
        next(content_errors(well, pointer, SIZES))
    assert str(caught.value) == f"{path}: cannot read it: remote. Run it again."
