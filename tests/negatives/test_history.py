"""What the history tells of each generation, and what versions before 0.2.0 read of it."""

import getpass
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from converters import convert
from jasper_mmap import (
    JASPERSteeringDataset,
    lint_negatives,
    publish_negatives,
    rollback_negatives,
)
from jasper_mmap.commands.main import command
from jasper_mmap.errors import FormatError
from jasper_mmap.store.pointer import FOLDER, POINTER, made_from_files, read_pointer
from tests.publishing import NAMES, Tables, current_pointer, saved

# The fields of version 0.1.0: it refuses a pointer with any other key.
KEYS_OF_0_1_0 = {
    *("generation", "file", "bytes", "mtime_ns", "sha256", "store_id", "source", "when", "by"),
    *("note", "lint", "changed_rows", "history"),
}
NEW = {"who", "files", "rows"}


def listed(store: Path) -> list[dict[str, Any]]:
    """Return the answer of `generations --json`."""
    ran = CliRunner().invoke(command, ["generations", str(store), "--json"])
    assert ran.exit_code == 0, ran.output
    answer: list[dict[str, Any]] = json.loads(ran.output)
    return answer


def test_history_tells_who_and_from_which_files(
    built: Path, demo_folder: Path, new: Tables, tmp_path: Path
) -> None:
    """By conversion, tensors, files, and rollback; only in the entries, which 0.1.0 takes as is."""
    paths = saved(tuple(table.flip(0) for table in new), tmp_path / "mined")  # type: ignore[arg-type]
    publish_negatives(built, *new)
    publish_negatives(built, *paths)
    rollback_negatives(built, 2)
    pointer = current_pointer(built)
    assert pointer.keys() == KEYS_OF_0_1_0
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    assert [entry["who"] for entry in pointer["history"]] == [who] * 4
    assert [entry["files"] for entry in pointer["history"]] == [
        [f"built/{name}.pt" for name in NAMES],
        [],
        [f"mined/{path.name}" for path in paths],
        ["negatives/000002.safetensors"],
    ]
    assert {entry["rows"] for entry in pointer["history"]} == {len(new[0])}
    for entry in pointer["history"]:
        assert entry.keys() - NEW < KEYS_OF_0_1_0
        assert all(type(count) is int for count in entry["lint"].values())


def test_history_of_an_older_version_is_listed(store: Path, new: Tables) -> None:
    """It did not record who and from which files; one it made from files is known by its source."""
    publish_negatives(store, *new)
    path = store / FOLDER / POINTER
    pointer = current_pointer(store)
    for entry in pointer["history"]:
        for key in NEW:
            del entry[key]
    path.write_text(json.dumps(pointer))
    first, second = listed(store)
    assert (first["who"], first["files"], first["rows"]) == (None, None, None)
    assert (first["from_builder"], second["from_builder"]) == (True, False)
    text = CliRunner().invoke(command, ["generations", str(store)]).output.splitlines()
    assert "  hard_negatives.pt, negative_tiers.pt  " in text[2]
    cells = [line.split("  ") for line in text[2:4]]
    assert [sum(cell.strip() == "-" for cell in row) for row in cells] == [3, 2]
    publish_negatives(store, *(table.flip(0) for table in new))
    assert [entry["who"] is None for entry in listed(store)] == [True, True, False]


@pytest.mark.parametrize(
    "wrong", [{"who": 3}, {"files": "x"}, {"files": [1]}, {"rows": "many"}, {"rows": True}]
)
def test_entry_of_a_wrong_type_is_refused(store: Path, wrong: dict[str, Any]) -> None:
    """As every other key of an entry."""
    pointer = current_pointer(store)
    pointer["history"][-1].update(wrong)
    (store / FOLDER / POINTER).write_text(json.dumps(pointer))
    with pytest.raises(FormatError, match=next(iter(wrong))):
        read_pointer(store)


def test_builders_files_of_current_values_make_no_generation(built: Path, new: Tables) -> None:
    """Reload and conversion record whose content they are, so a change back is seen."""
    before = {name: (built / f"{name}.pt").read_bytes() for name in NAMES}
    publish_negatives(built, *new)
    saved((new[0].to(torch.int16), new[1].to(torch.uint8)), built)
    with JASPERSteeringDataset(built, "train") as dataset:
        assert dataset.reload_negatives() == 2
        made = made_from_files(read_pointer(built))
        assert made is not None
        assert made["generation"] == 2
        assert convert(built).generation == 2
        for name, data in before.items():
            (built / f"{name}.pt").write_bytes(data)
        assert dataset.reload_negatives() == 3
    assert len(current_pointer(built)["history"]) == 3


def test_conversion_of_current_values_makes_no_generation(
    demo_folder: Path, new: Tables, tmp_path: Path
) -> None:
    """With force their dtypes count."""
    folder = Path(shutil.copytree(demo_folder, tmp_path / "built"))
    store = tmp_path / "store"
    convert(folder, store)
    publish_negatives(store, *new)
    saved((new[0].to(torch.int16), new[1].to(torch.uint8)), folder)
    assert convert(folder, store).generation == 2
    made = made_from_files(read_pointer(store))
    assert made is not None
    assert made["generation"] == 2
    assert convert(folder, store).generation == 2
    assert convert(folder, store, force=True).generation == 3
    saved(new, folder)
    assert convert(folder, store).generation == 3


def test_history_tells_how_many_rows_the_lint_found_too_similar(store: Path, new: Tables) -> None:
    """Of generations that were linted, also after their files were removed; a wrong note of it by
    another program is ignored."""
    rows = lint_negatives(store).of_generation.margin_false.rows
    publish_negatives(store, *new, keep=1, grace_s=0)
    first, second = listed(store)
    assert (first["on_disk"], second["similarity"]) == (False, None)
    assert (first["similarity"]["margin_rows"], first["similarity"]["rows"]) == (
        rows.count,
        rows.of,
    )
    text = CliRunner().invoke(command, ["generations", str(store)]).output
    assert text.count(f"{rows.count:,} ({rows.count / rows.of:.1%}) rows") == 1
    pointer = current_pointer(store)
    pointer["history"][0]["similarity"] = {"rule": 1, "margin_rows": "many", "rows": 0}
    (store / FOLDER / POINTER).write_text(json.dumps(pointer))
    assert listed(store)[0]["similarity"] is None
