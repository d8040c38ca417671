"""What a manifest remembers of a conversion: the configuration it saw, and the dtype asked for."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert
from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.errors import ConfigError, FormatError, JasperError, UsageError
from jasper_mmap.negatives.renewal import verify_store
from jasper_mmap.rules.schema import ARTIFACTS, STORED
from jasper_mmap.store.folder import Store
from jasper_mmap.store.manifest import MANIFEST_FILE, read_manifest
from jasper_mmap.store.summary import summarise
from tests.converting import SMALL, edit, inodes, load, same_bits, snapshot, stored
from tests.damage import edit_manifest
from tests.store.test_beyond_float32 import as_by_0_1_0
from tools.demo.folder import make_builder_folder, remine_negatives

NARROWED = [a.name for a in STORED if a.narrow]
SMALL_TABLES = ["keyword_embs", "centroid_embs"]
EDITED = "config.json was edited since the conversion"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


def edit_config(folder: Path, **changes: Any) -> str:
    """Change keys of a configuration; its new SHA-256."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return hashlib.sha256(path.read_bytes()).hexdigest()


CURRICULUM = {"zero_prob_start": 0.9, "zero_prob_end": 0.2, "epochs_total": 4}


# The configuration


def test_config_is_vouched_for(any_store: Path) -> None:
    """By its SHA-256, and nothing is said of it."""
    found = hashlib.sha256((any_store / "config.json").read_bytes()).hexdigest()
    assert read_manifest(any_store).config_sha256 == found
    assert not any(EDITED in note for note in summarise(any_store)["notes"])
    assert not any(EDITED in note for note in verify_store(any_store).notes)


def test_edited_config_is_told_and_allowed(store: Path) -> None:
    """A warning of verify, quick too, and of inspect; the store stays sound and serves it."""
    edit_config(store, curriculum=CURRICULUM)
    for quick in (False, True):
        report = verify_store(store, quick=quick)
        assert report.ok
        assert any(EDITED in note for note in report.notes)
    assert any(EDITED in note for note in summarise(store)["notes"])
    with JASPERSteeringDataset(store, "train") as dataset:
        assert dataset.steering_probs["zero"] == 0.9


@pytest.mark.parametrize("beside", [True, False])
def test_conversion_over_an_edited_config_takes_note_of_it(
    beside: bool, folder: Path, tmp_path: Path
) -> None:
    """The manifest is replaced, nothing else but the configuration; the store stays the same."""
    store = folder if beside else tmp_path / "store"
    first = convert(folder, store)
    sha256 = edit_config(folder, curriculum=CURRICULUM)
    before = snapshot(store)
    report = convert(folder, store)
    assert (report.written, report.store_id) == ((), first.store_id)
    after = snapshot(store)
    changed = {name for name in before if before[name] != after[name]}
    expected = {MANIFEST_FILE, "negatives/.lock"} | (set() if beside else {"config.json"})
    assert {"manifest.json"} <= changed - {"negatives"} <= expected
    assert read_manifest(store).config_sha256 == sha256
    assert verify_store(store).notes == ()
    quiet = snapshot(store)
    assert convert(folder, store).written == ()
    assert snapshot(store) == quiet
    edit_config(folder, curriculum={**CURRICULUM, "epochs_total": -1})
    with pytest.raises(ConfigError, match="epochs_total"):
        convert(folder, store)
    assert {**snapshot(store), "config.json": ()} == {**quiet, "config.json": ()}


def test_openers_never_see_a_manifest_that_is_only_replaced_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an error nor a pause, while the configuration is edited and converted over again."""
    convert(folder)
    done, failures = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                read_manifest(folder)
            except JasperError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(10):
            sha256 = edit_config(folder, note=number)
            convert(folder)
            assert read_manifest(folder).config_sha256 == sha256
    finally:
        done.set()
        reader.join()
    assert failures == []


def test_n_neg_and_negatives_of_another_width_change_together(folder: Path, tmp_path: Path) -> None:
    """There the manifest goes first, as where tables move: no opener may pair old with new."""
    store = tmp_path / "store"
    convert(folder, store)
    for name in ("hard_negatives", "negative_tiers"):
        edit(folder, name, lambda t: t[:, :3].contiguous())
    edit_config(folder, n_neg=3)
    assert convert(folder, store).generation == 2
    with JASPERSteeringDataset(store, "train") as dataset:
        assert dataset[0]["negative_tiers"].shape == (3,)
    assert verify_store(store).ok


def test_manifest_without_the_checksum_says_nothing_of_edits(folder: Path, tmp_path: Path) -> None:
    """One of 0.1.0, or whose stamps 0.1.0 renewed; the next conversion puts it there."""
    store = tmp_path / "store"
    first = convert(folder, store)
    as_by_0_1_0(store)
    tables = inodes(store)
    edit_config(store, curriculum=CURRICULUM)
    assert read_manifest(store).config_sha256 is None
    assert verify_store(store).notes == ()
    assert summarise(store)["notes"] == []
    Store(store, validate="full")
    sha256 = edit_config(folder, curriculum=CURRICULUM)
    report = convert(folder, store)
    assert (report.written, report.store_id) == ((), first.store_id)
    assert read_manifest(store).config_sha256 == sha256
    assert {**inodes(store), MANIFEST_FILE: 0} == {**tables, MANIFEST_FILE: 0}


def test_what_0_1_0_reads_stays_as_it_was(folder: Path, tmp_path: Path) -> None:
    """New fields stand at the top level of the manifest; entries and counts have none."""
    store = tmp_path / "store"
    convert(folder, store, embeddings_dtype="float16")
    manifest = json.loads((store / MANIFEST_FILE).read_text())
    assert set(manifest) == {
        "format_version",
        "store_id",
        "created",
        "converter",
        "warnings",
        "artifacts",
        "config_sha256",
        "beyond_float32",
        "embeddings_dtype",
    }
    keys = {"file", "dtype", "shape", "bytes", "sha256", "mtime_ns", "source", "ranges"}
    for entry in manifest["artifacts"].values():
        assert set(entry) <= {*keys, "nonfinite", "cosine_error"}
    known = {"pairs_in_two_splits", "pairs_twice_in_a_split", "nonfinite_values"}
    assert set(manifest["warnings"]) == known


@pytest.mark.parametrize(
    "wrong",
    [
        {"config_sha256": 3},
        {"beyond_float32": [1]},
        {"beyond_float32": {"source_embs": "1"}},
        {"beyond_float32": {"source_embs": 0}},
        {"embeddings_dtype": "float8"},
        {"embeddings_dtype": []},
    ],
)
def test_fields_that_cannot_be_are_refused(wrong: dict[str, Any], store: Path) -> None:
    """As all else in a manifest."""
    edit_manifest(store, lambda manifest: manifest.update(wrong))
    with pytest.raises(FormatError, match=r"manifest\.json"):
        read_manifest(store)


# The dtype


@contextmanager
def narrowing_small_tables() -> Iterator[None]:
    """Convert as version 0.1.0, which narrowed centroids and keywords too."""
    for name in SMALL_TABLES:
        object.__setattr__(ARTIFACTS[name], "narrow", True)
    try:
        yield
    finally:
        for name in SMALL_TABLES:
            object.__setattr__(ARTIFACTS[name], "narrow", False)


@pytest.fixture
def narrowed(folder: Path, tmp_path: Path) -> Path:
    """Return a store as version 0.1.0 made it with --dtype float16."""
    with narrowing_small_tables():
        convert(folder, tmp_path / "store", embeddings_dtype="float16")
    as_by_0_1_0(tmp_path / "store")
    return tmp_path / "store"


def dtypes(store: Path) -> dict[str, torch.dtype]:
    """Return the dtype of each float table that is not bounded."""
    names = (*NARROWED, *SMALL_TABLES)
    return {name: stored(store / f"{name}.safetensors")[name].dtype for name in names}


def test_narrowing_that_was_asked_for_is_kept(folder: Path, tmp_path: Path) -> None:
    """By conversions that say nothing of it, of changed tables too, until "source" goes back."""
    store = tmp_path / "store"
    convert(folder, store, embeddings_dtype="bfloat16")
    assert read_manifest(store).embeddings_dtype == "bfloat16"
    edit(folder, "source_embs", lambda t: t * 2)
    edit(folder, "keyword_embs", lambda t: t * 2)
    for force in (False, True):
        report = convert(folder, store, force=force)
        assert dtypes(store) == {
            **dict.fromkeys(NARROWED, torch.bfloat16),
            **dict.fromkeys(SMALL_TABLES, torch.float32),
        }
        assert read_manifest(store).embeddings_dtype == "bfloat16"
        (note,) = report.notes
        assert note.startswith(f"{', '.join(NARROWED)}: stored as bfloat16, as in an earlier")
        assert "--dtype source" in note
    assert convert(folder, store, embeddings_dtype="bfloat16").notes == ()
    old = read_manifest(store).store_id
    report = convert(folder, store, embeddings_dtype="source")
    assert set(report.written) == set(NARROWED)
    for name in (*NARROWED, *SMALL_TABLES):
        assert same_bits(stored(store / f"{name}.safetensors")[name], load(folder, name))
    (note,) = report.notes
    for words in (*NARROWED, old, report.store_id, "restart running trainings"):
        assert words in note
    assert read_manifest(store).embeddings_dtype is None
    again = convert(folder, store)
    assert (again.written, again.notes) == ((), ())


def test_narrowing_that_found_nothing_to_narrow_is_remembered(tmp_path: Path) -> None:
    """Tables that came narrow stay so; one that comes wider later is narrowed."""
    folder = make_builder_folder(tmp_path / "in", float_dtype=torch.bfloat16, **SMALL)
    store = tmp_path / "store"
    assert convert(folder, store, embeddings_dtype="float16").cosine_error == {}
    assert convert(folder, store).notes == ()
    edit(folder, "question_embs", lambda t: t.float())
    report = convert(folder, store)
    assert set(report.cosine_error) == {"question_embs"}
    assert report.notes[0].startswith("question_embs: stored as float16")


def test_small_tables_that_0_1_0_narrowed_stay_so(folder: Path, narrowed: Path) -> None:
    """Converting after the negatives were overwritten is a way to publish: the store's id stays,
    and running trainings go on. The report and inspect say so."""
    before = read_manifest(narrowed).store_id
    tables = inodes(narrowed)
    with JASPERSteeringDataset(narrowed, "train") as running:
        for name, table in zip(
            ("hard_negatives", "negative_tiers"), remine_negatives(folder, seed=9), strict=True
        ):
            torch.save(table, folder / f"{name}.pt")
        report = convert(folder, narrowed)
        assert running.reload_negatives() == report.generation == 2
    assert (report.store_id, set(report.written)) == (before, {"hard_negatives", "negative_tiers"})
    assert {**inodes(narrowed), MANIFEST_FILE: 0} == {**tables, MANIFEST_FILE: 0}
    assert set(dtypes(narrowed).values()) == {torch.float16}
    for notes in (report.notes, summarise(narrowed)["notes"], convert(folder, narrowed).notes):
        for name in SMALL_TABLES:
            assert any(f"{name} was narrowed to F16" in n for n in notes)
    assert read_manifest(narrowed).embeddings_dtype == "float16"


@pytest.mark.parametrize(
    ("how", "small", "rest"),
    [
        ({"embeddings_dtype": "float16"}, torch.float32, torch.float16),
        ({"embeddings_dtype": "bfloat16"}, torch.float32, torch.bfloat16),
        ({"embeddings_dtype": "source"}, torch.float32, torch.float32),
        ({"force": True}, torch.float32, torch.float16),
    ],
)
def test_small_tables_go_back_where_a_dtype_or_force_is_given(
    how: dict[str, Any], small: torch.dtype, rest: torch.dtype, folder: Path, narrowed: Path
) -> None:
    """The report says that the id changed, and what that means."""
    before = read_manifest(narrowed).store_id
    report = convert(folder, narrowed, **how)
    assert dtypes(narrowed) == {
        **dict.fromkeys(NARROWED, rest),
        **dict.fromkeys(SMALL_TABLES, small),
    }
    assert report.store_id != before
    note = report.notes[-1]
    for words in (*SMALL_TABLES, before, report.store_id, "restart running trainings"):
        assert words in note
    assert not any("was narrowed to" in n for n in summarise(narrowed)["notes"])
    assert verify_store(narrowed).ok


def test_small_table_that_changed_follows_its_source(folder: Path, narrowed: Path) -> None:
    """It is written anew in any case."""
    edit(folder, "keyword_embs", lambda t: t * 2)
    report = convert(folder, narrowed)
    assert report.written == ("keyword_embs",)
    assert dtypes(narrowed)["keyword_embs"] == torch.float32
    assert dtypes(narrowed)["centroid_embs"] == torch.float16
    assert "keyword_embs: no longer narrowed" in report.notes[-1]


def test_narrowing_outlives_a_kill_in_the_middle(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the manifest is gone already, what is left tells of it."""
    store = tmp_path / "store"
    convert(folder, store, embeddings_dtype="float16")
    edit(folder, "source_embs", lambda t: t * 2)
    original: Callable[..., Path] = Path.replace

    def stop(path: Path, target: Path) -> Path:
        if path.name == "source_embs.safetensors" and target.parent == store:
            raise KeyboardInterrupt
        return original(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(folder, store)
    assert not (store / MANIFEST_FILE).exists()
    convert(folder, store)
    assert set(dtypes(store).values()) == {torch.float16, torch.float32}
    assert read_manifest(store).embeddings_dtype == "float16"


@pytest.mark.parametrize("wrong", ["float32", "int8", "F16", "", torch.float16, ["float16"], 16])
def test_dtype_that_cannot_be_asked_for_is_told_what_can(wrong: Any, folder: Path) -> None:
    """All that is possible is named."""
    with pytest.raises(UsageError, match=r"float16 or bfloat16, or source .* or None"):
        convert(folder, embeddings_dtype=wrong)
