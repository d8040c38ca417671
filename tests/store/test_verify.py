"""`verify_store` finds every kind of damage, all at once, and renews stamps of sound files only."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert
from jasper_mmap import publish_negatives
from jasper_mmap.errors import BusyError, MissingFileError, StoreChangedError
from jasper_mmap.negatives import renewal
from jasper_mmap.negatives.renewal import verify_store
from jasper_mmap.negatives.write import publisher_lock
from jasper_mmap.rules.schema import ARTIFACTS, STORED
from jasper_mmap.store.folder import Store
from jasper_mmap.store.lint import lint_splits
from jasper_mmap.store.verify import VerifyReport
from tests.damage import edit_manifest, rewrite
from tests.oracle import Oracle
from tools.demo.folder import make_builder_folder, remine_negatives

GENERATION = "negatives/000001.safetensors"


def problems(report: VerifyReport) -> dict[str, str]:
    """Return file -> messages, joined."""
    found: dict[str, str] = {}
    for problem in report.problems:
        found[problem.file] = f"{found.get(problem.file, '')}{problem.message}\n"
    return found


def stamps(store: Path) -> dict[str, int]:
    """Return the stamped times of the manifest and of the pointer."""
    entries = json.loads((store / "manifest.json").read_text())["artifacts"].values()
    pointer = json.loads((store / "negatives" / "CURRENT.json").read_text())
    return {**{e["file"]: e["mtime_ns"] for e in entries}, GENERATION: pointer["mtime_ns"]}


def times(store: Path) -> dict[str, int]:
    """Return the times of the files that are stamped."""
    return {file: (store / file).stat().st_mtime_ns for file in stamps(store)}


def test_sound_store_has_no_problems(any_store: Path) -> None:
    """Whatever folder it came from; everything was looked at and nothing was changed."""
    before = {path: path.stat() for path in any_store.rglob("*.*")}
    for quick in (False, True):
        report = verify_store(any_store, quick=quick)
        assert report.ok, report.problems
        assert (report.files, report.generation) == (len(STORED) + 1, 1)
        assert report.bytes == sum(p.stat().st_size for p in any_store.rglob("*.safetensors"))
        assert report.renewed == ()
        assert bool(report.notes) == quick
    kept = {p: (s.st_mtime_ns, s.st_size) for p, s in before.items() if ".lock" not in p.name}
    assert kept == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in kept}


def test_warnings_are_counted_as_the_rows_say(any_store: Path, any_oracle: Oracle) -> None:
    """Row by row from the `.pt` files: own sources, false negatives, repeats, shared pairs."""
    true = [set[int]() for _ in any_oracle.tables["question_embs"]]
    for question, source in any_oracle.pair_index:
        true[question].add(source)
    rows = list(zip(any_oracle.pair_index, any_oracle.hard_negatives, strict=True))
    all_pairs = [pair for split in any_oracle.splits.values() for pair in set(split)]
    report = verify_store(any_store)
    assert report.warnings == {
        "own_source_rows": sum(source in row for (_, source), row in rows),
        "false_negative_rows": sum(bool((true[q] - {s}) & set(row)) for (q, s), row in rows),
        "repeat_rows": sum(len(set(row)) < len(row) for _, row in rows),
        "pairs_in_two_splits": len(all_pairs) - len(set(all_pairs)),
        "pairs_twice_in_a_split": sum(len(s) - len(set(s)) for s in any_oracle.splits.values()),
        "nonfinite_values": 0,
    }


DAMAGE: dict[str, tuple[str, str, Callable[[dict[str, torch.Tensor]], object]]] = {
    "index": (
        "pair_index",
        "references question 1000000 in row 3, column 0",
        lambda t: t["pair_index"][3, 0].fill_(10**6),
    ),
    "cluster": ("pair_cluster_id", "-1 in row 0", lambda t: t["pair_cluster_id"][0].fill_(-1)),
    "split": (
        "val_idx",
        "Split indices reference pair 500 in row 2",
        lambda t: t["val_idx"][2].fill_(500),
    ),
    "keyword": (
        "pair_keyword_ids",
        "references keyword 99999",
        lambda t: t["values"][1].fill_(99999),
    ),
    "offsets": ("pair_keyword_ids", "offsets", lambda t: t["offsets"][1].fill_(10**9)),
    "NaN": (
        "centroid_embs",
        "nan in row 1, column 4",
        lambda t: t["centroid_embs"][1, 4].fill_(float("nan")),
    ),
    "relevance": (
        "pair_relevance",
        "holds -0.5 in row 7",
        lambda t: t["pair_relevance"][7].fill_(-0.5),
    ),
    "bit": ("steering_residual", "SHA-256", lambda t: t["steering_residual"][0, 0].neg_()),
}


@pytest.mark.parametrize("touch", [False, True])
@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_of_damage_is_found(store: Path, kind: str, touch: bool) -> None:
    """File and place are named, also where the time was put back; the stamp is not renewed."""
    name, words, change = DAMAGE[kind]
    rewrite(store / f"{name}.safetensors", change, touch=touch)
    before = stamps(store)
    report = verify_store(store)
    assert list(problems(report)) == [f"{name}.safetensors"]
    assert words in problems(report)[f"{name}.safetensors"]
    assert "SHA-256" in problems(report)[f"{name}.safetensors"]
    assert stamps(store) == before


@pytest.mark.parametrize("kind", ["index", "cluster", "split", "keyword", "offsets"])
def test_quick_finds_wrong_indices(store: Path, kind: str) -> None:
    """Whatever the times say, without reading floats."""
    name, words, change = DAMAGE[kind]
    rewrite(store / f"{name}.safetensors", change, touch=False)
    report = verify_store(store, quick=True)
    assert words in problems(report)[f"{name}.safetensors"]


def test_all_problems_are_told_at_once(store: Path) -> None:
    """Each file with its own, none hides another."""
    for name, _, change in (DAMAGE["index"], DAMAGE["NaN"]):
        rewrite(store / f"{name}.safetensors", change, touch=True)
    (store / "test_idx.safetensors").unlink()
    os.truncate(store / "source_embs.safetensors", 5000)
    rewrite(store / GENERATION, lambda t: t["negative_tiers"][1, 1].fill_(9), touch=True)
    found = problems(verify_store(store))
    assert set(found) == {
        "pair_index.safetensors",
        "centroid_embs.safetensors",
        "test_idx.safetensors",
        "source_embs.safetensors",
        GENERATION,
    }
    assert "Split file not found" in found["test_idx.safetensors"]
    assert all(str(store) in message for message in found.values())


@pytest.mark.parametrize("change", ["hard_negatives", "negative_tiers"])
def test_spoilt_generation_is_found(store: Path, change: str) -> None:
    """By its checksum in full, by its ranges when quick."""
    rewrite(store / GENERATION, lambda t: t[change][8, 2].fill_(10**6), touch=False)
    assert "SHA-256" in problems(verify_store(store))[GENERATION]
    assert "1000000 in row 8, column 2" in (
        problems(verify_store(store, quick=True))[GENERATION].replace("1e+06", "1000000")
    )


def test_older_generations_are_checked_by_their_checksums(store: Path, demo_folder: Path) -> None:
    """What a rollback would read; one that is no longer there is no problem."""
    for seed in (5, 6):
        publish_negatives(store, *remine_negatives(demo_folder, seed=seed))
    report = verify_store(store)
    assert report.ok
    assert (report.generation, report.files) == (3, len(STORED) + 3)
    rewrite(store / GENERATION, lambda t: t["hard_negatives"][0, 0].add_(1), touch=False)
    assert list(problems(verify_store(store))) == [GENERATION]
    (store / GENERATION).unlink()
    assert verify_store(store).ok


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("manifest.json", lambda p: p.write_text("{")),
        ("config.json", lambda p: p.unlink()),
        (
            "config.json",
            lambda p: p.write_text(p.read_text().replace('"n_neg": 12', '"n_ngs": 12')),
        ),
        ("config.json", lambda p: p.write_text(p.read_text().replace(": 32,", ": 33,"))),
        ("negatives/CURRENT.json", lambda p: p.write_text("[]")),
        ("negatives/CURRENT.json", lambda p: p.unlink()),
        (GENERATION, lambda p: p.unlink()),
        (GENERATION, lambda p: os.truncate(p, 100)),
    ],
)
def test_spoilt_file_beside_the_tables_is_a_problem(
    store: Path, file: str, spoil: Callable[[Path], object]
) -> None:
    """Manifest, config, pointer and generation: a problem of that very file."""
    spoil(store / file)
    assert list(problems(verify_store(store))) == [file]


def test_copied_store_gets_its_stamps_renewed(demo_store: Path, tmp_path: Path) -> None:
    """Afterwards opening trusts them; nothing else of manifest and pointer changed."""
    copied = tmp_path / "copied"
    shutil.copytree(demo_store, copied, copy_function=shutil.copyfile)
    before = json.loads((copied / "manifest.json").read_text())
    assert stamps(copied) != times(copied)
    assert verify_store(copied, renew=False).renewed == ()
    assert verify_store(copied, quick=True).renewed == ()
    report = verify_store(copied)
    assert report.ok
    assert set(report.renewed) == set(stamps(copied))
    assert stamps(copied) == times(copied)
    after = json.loads((copied / "manifest.json").read_text())
    for manifest in (before, after):
        for entry in manifest["artifacts"].values():
            del entry["mtime_ns"]
    assert after == before
    assert verify_store(copied).renewed == ()


def test_only_sound_files_are_renewed(store: Path) -> None:
    """A damaged file keeps its wrong stamp, so that opening goes on reading it."""
    os.utime(store / "source_embs.safetensors", ns=(1, 1))
    name, _, change = DAMAGE["bit"]
    rewrite(store / f"{name}.safetensors", change, touch=True)
    report = verify_store(store)
    assert report.renewed == ("source_embs.safetensors",)
    assert {f for f, t in times(store).items() if stamps(store)[f] != t} == {f"{name}.safetensors"}


def test_publisher_at_work_keeps_stamps_from_being_renewed(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewing waits for the lock, then leaves it with a note: nothing is wrong."""
    monkeypatch.setattr(renewal, "_LOCK_TIMEOUT_S", 0.05)
    os.utime(store / "source_embs.safetensors", ns=(1, 1))
    before = stamps(store)
    with publisher_lock(store, 1.0):
        report = verify_store(store)
    assert report.ok
    assert report.renewed == ()
    assert "held by" in report.notes[0]
    assert stamps(store) == before
    assert issubclass(BusyError, TimeoutError)


def test_store_converted_meanwhile_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked must be one store."""
    from jasper_mmap.store import verify

    def convert_then(*arguments: Any) -> Any:
        edit_manifest(store, lambda m: m.update(created="later"))
        return lint_splits(*arguments)

    monkeypatch.setattr(verify, "lint_splits", convert_then)
    with pytest.raises(StoreChangedError, match="run it again"):
        verify_store(store)


def test_altered_ranges_in_the_manifest_are_found(store: Path) -> None:
    """They are what an unchanged table is checked by when another one changes."""
    edit_manifest(store, lambda m: m["artifacts"]["pair_index"].update(ranges=[[0, 1], [0, 1]]))
    assert "when it was converted" in problems(verify_store(store))["pair_index.safetensors"]


def test_nonfinite_values_are_fine_where_they_were_allowed(tmp_path: Path) -> None:
    """They are counted; one more or less is a problem."""
    folder = make_builder_folder(tmp_path / "b", n_pairs=50, dim=8)
    table = torch.load(folder / "source_embs.pt", weights_only=True)
    table[3, :2] = torch.tensor([float("nan"), float("inf")])
    torch.save(table, folder / "source_embs.pt")
    store = tmp_path / "s"
    convert(folder, store, allow_nonfinite=True)
    report = verify_store(store)
    assert report.ok
    assert report.warnings["nonfinite_values"] == 2
    Store(store, validate="full")
    rewrite(
        store / "source_embs.safetensors",
        lambda t: t["source_embs"][4, 0].fill_(float("inf")),
        touch=False,
    )
    assert "3 NaN or infinite" in problems(verify_store(store))["source_embs.safetensors"]


def test_report_is_plain_json(store: Path) -> None:
    """Programs read it."""
    (store / ARTIFACTS["val_idx"].file).unlink()
    told = json.loads(json.dumps(verify_store(store).to_dict()))
    assert told["ok"] is False
    assert told["problems"][0]["file"] == "val_idx.safetensors"
    assert told["problems"][0]["error"] == "MissingFileError"


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    """There is nothing that could have problems; a folder without a store has one."""
    with pytest.raises(MissingFileError, match="Dataset directory not found"):
        verify_store(tmp_path / "x")
    assert "jasper-convert" in problems(verify_store(tmp_path))["manifest.json"]


def test_progress_rises_to_the_bytes_of_all_files(store: Path, demo_folder: Path) -> None:
    """Each file is told when it is begun, older generations too."""
    publish_negatives(store, *remine_negatives(demo_folder, seed=2))
    calls: list[tuple[str, int, int]] = []
    report = verify_store(store, progress=lambda *call: calls.append(call))
    files = [artifact.file for artifact in STORED]
    files += ["negatives/000002.safetensors", "negatives/000001.safetensors"]
    assert list(dict.fromkeys(name for name, _, _ in calls)) == files
    assert sum((store / file).stat().st_size for file in files) == report.bytes
    assert {total for _, _, total in calls} == {report.bytes}
    done = [bytes_done for _, bytes_done, _ in calls]
    assert (done[0], done[-1], done) == (0, report.bytes, sorted(done))


def test_what_progress_raises_passes_as_it_is(store: Path) -> None:
    """An `OSError` of the caller's is no problem of a file."""

    def fail(*_: object) -> None:
        raise BrokenPipeError("the caller's own")

    with pytest.raises(BrokenPipeError, match="the caller's own"):
        verify_store(store, progress=fail)
