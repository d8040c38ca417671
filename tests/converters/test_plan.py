"""What a conversion decides before it writes: from stamps, forms, and what a folder holds."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from converters import convert
from converters.plan import Plan, Settings, make_plan
from converters.precheck import Precheck, check_room, precheck
from converters.staging import Journal
from converters.survey import telling_all
from jasper_mmap.errors import ContentError, JasperError, MissingFileError, StorageError
from jasper_mmap.rules.schema import ARTIFACTS, NEGATIVES, STORED
from jasper_mmap.store.config_file import read_config
from jasper_mmap.store.manifest import STAGING, read_manifest
from jasper_mmap.store.pointer import read_pointer
from tests.converting import SMALL
from tools.demo.folder import make_builder_folder

NOTHING = Journal({}, 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a small builder's folder."""
    return make_builder_folder(tmp_path / "source", seed=4, **SMALL)


@pytest.fixture
def store(source: Path, tmp_path: Path) -> Path:
    """Return its store."""
    convert(source, tmp_path / "store")
    return tmp_path / "store"


def to_write(plan: Plan) -> list[str]:
    """Return the names of the artifacts that a plan writes."""
    return [task.artifact.name for task in plan.tasks if task.entry is None]


def touch(path: Path) -> None:
    """Let a file look as if it had been written a second later."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_a_fresh_store_needs_everything(source: Path, tmp_path: Path) -> None:
    """In the order of the schema."""
    plan = make_plan(source, tmp_path / "none", Settings(), NOTHING)
    assert to_write(plan) == [artifact.name for artifact in STORED]
    assert plan.new_negatives
    assert not plan.complete


def test_an_unchanged_folder_needs_nothing(source: Path, store: Path) -> None:
    """Unless it is forced."""
    plan = make_plan(source, store, Settings(), NOTHING)
    assert to_write(plan) == []
    assert plan.complete
    forced = make_plan(source, store, Settings(force=True), NOTHING)
    assert to_write(forced) == [artifact.name for artifact in STORED]
    assert forced.new_negatives


@pytest.mark.parametrize("name", [artifact.name for artifact in STORED])
def test_a_file_written_later_is_converted_again(source: Path, store: Path, name: str) -> None:
    """Alone, and what is derived from it."""
    touch(source / ARTIFACTS[name].source)
    plan = make_plan(source, store, Settings(), NOTHING)
    assert to_write(plan) == [name]
    assert not plan.new_negatives


@pytest.mark.parametrize("name", [artifact.name for artifact in STORED])
def test_a_file_of_the_store_that_changed_is_written_again(
    source: Path, store: Path, name: str
) -> None:
    """By its time."""
    touch(store / ARTIFACTS[name].file)
    assert to_write(make_plan(source, store, Settings(), NOTHING)) == [name]


@pytest.mark.parametrize("name", [artifact.name for artifact in NEGATIVES])
def test_new_negatives_leave_the_tables_alone(source: Path, store: Path, name: str) -> None:
    """Either of the two."""
    touch(source / ARTIFACTS[name].source)
    plan = make_plan(source, store, Settings(), NOTHING)
    assert to_write(plan) == []
    assert plan.new_negatives
    assert not plan.complete


def test_a_narrower_dtype_writes_what_is_narrowed(source: Path, store: Path) -> None:
    """Later plans repeat the choice, until the source's dtypes are asked for."""
    narrowed = [artifact.name for artifact in STORED if artifact.narrow]
    assert to_write(make_plan(source, store, Settings(embeddings_dtype="float16"), NOTHING)) == (
        narrowed
    )
    convert(source, store, embeddings_dtype="float16")
    again = make_plan(source, store, Settings(), NOTHING)
    assert (to_write(again), again.embeddings_dtype) == ([], "float16")
    back = make_plan(source, store, Settings(embeddings_dtype="source"), NOTHING)
    assert (to_write(back), back.embeddings_dtype) == (narrowed, None)


def test_files_of_an_interrupted_run_are_taken_over(source: Path, store: Path) -> None:
    """From the staging folder if their stamps fit; nothing after a commit that failed."""
    entries = dict(read_manifest(store).artifacts)
    (store / "manifest.json").unlink()
    name = STORED[0].file
    (store / STAGING).mkdir()
    shutil.move(store / name, store / STAGING / name)
    plan = make_plan(source, store, Settings(), Journal(entries, 0))
    assert to_write(plan) == []
    assert [task.artifact.file for task in plan.tasks if task.staged] == [name]
    failed = make_plan(source, store, Settings(), Journal({}, 0, failed=entries))
    assert to_write(failed) == [artifact.name for artifact in STORED]
    assert failed.pointer is None


def checked(source: Path, store: Path) -> Precheck:
    """Run the checks of a conversion that writes what is needed."""
    plan = make_plan(source, store, Settings(), NOTHING)
    return precheck(plan, source, store, read_config(source), allow_nonfinite=False)


def test_the_checks_count_the_bytes_to_write(source: Path, store: Path) -> None:
    """Those of each table's data, as the manifest's files have them beside their headers."""
    fresh = checked(source, store.parent / "none")
    entries = read_manifest(store).artifacts
    for name, entry in entries.items():
        assert 0 < entry.bytes - fresh.bytes[name] <= 8192, name
    generation = read_pointer(store).bytes
    assert 0 < generation - sum(fresh.bytes[a.name] for a in NEGATIVES) <= 8192
    assert checked(source, store).bytes == {}
    assert checked(source, store).sizes == fresh.sizes


def test_an_unchanged_table_is_checked_against_a_changed_one(source: Path, store: Path) -> None:
    """Fewer questions: the unchanged pairs name one that is not there any more."""
    path = source / "question_embs.pt"
    torch.save(torch.load(path, weights_only=True)[:3].clone(), path)
    with pytest.raises(JasperError, match="pair_index references question"):
        checked(source, store)


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    """With what is needed and what is free."""
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path, {"a": 1000})
    with pytest.raises(StorageError, match=r"needs [\d.]+ MiB, but the disk has [\d.]+ MiB free"):
        check_room(tmp_path, {"a": free, "b": free})


def test_a_survey_tells_all_problems_of_a_folder(source: Path) -> None:
    """Those of the configuration, of a missing file and of a table's form, a line each."""
    (source / "val_idx.pt").unlink()
    path = source / "pair_relevance.pt"
    torch.save(torch.load(path, weights_only=True)[:-1].clone(), path)
    config = json.loads((source / "config.json").read_text())
    del config["n_neg"]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(JasperError) as told, telling_all(source):
        raise ContentError("the first one found")
    lines = str(told.value).splitlines()
    for words in ("Split file not found", "'n_neg'", "pair_relevance.pt", "the first one found"):
        assert sum(words in line for line in lines) == 1, words


def test_a_survey_of_an_empty_folder_suggests_where_the_files_are(
    source: Path, tmp_path: Path
) -> None:
    """Below it; or says that there are none."""
    suggested = pytest.raises(MissingFileError, match=f"{source} does; name that folder")
    with suggested, telling_all(tmp_path):
        raise MissingFileError("something")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="Correct the path"), telling_all(tmp_path / "empty"):
        raise MissingFileError("something")
