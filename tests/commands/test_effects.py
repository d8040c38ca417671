"""What publishing changes: the line after it, and the dry run before it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from jasper_mmap import publish_negatives
from jasper_mmap.errors import BusyError
from jasper_mmap.negatives.write import publisher_lock
from jasper_mmap.similarity.examine import Examination
from jasper_mmap.store.folder import Store
from tests.commands.conftest import Command
from tests.converting import contents
from tests.oracle import Oracle
from tests.publishing import Tables, mounted, saved
from tests.publishing import contents as generations_of


@pytest.fixture
def files(new: Tables, tmp_path: Path) -> tuple[object, ...]:
    """Return the options that name the files of new negatives."""
    first, second = saved(new, tmp_path / "new")
    return "--negatives", first, "--tiers", second


def one_tier(oracle: Oracle) -> Tables:
    """Return the negatives as they are, those of tier 2 replaced."""
    negatives, tiers = (oracle.tables[f"{name}"] for name in ("hard_negatives", "negative_tiers"))
    n_sources = len(oracle.tables["source_embs"])
    fresh = negatives.clone()
    for row, tier_row in zip(fresh, tiers, strict=True):
        spare = sorted(set(range(n_sources)) - set(row.tolist()))
        row[tier_row == 2] = torch.tensor(spare[: int((tier_row == 2).sum())])
    return fresh, tiers


def test_publish_says_what_became_of_the_tiers(
    jasper: Command, store: Path, oracle: Oracle, tmp_path: Path
) -> None:
    """That a tier is as it was stands beside the count of changed rows; in JSON the counts."""
    first, second = saved(one_tier(oracle), tmp_path)
    ended = jasper("publish", store, "--negatives", first, "--tiers", second)
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert lines[0].startswith("published generation 2; 500 of 500 rows changed")
    assert lines[1] == "tiers 1, 3, 4: 100% kept; tier 2: 100% replaced"
    answer = json.loads(jasper("rollback", store, "--json").out)
    slots = {tier: sum(row.count(int(tier)) for row in oracle.negative_tiers) for tier in "1234"}
    assert answer["slots"] == {
        tier: {
            "kept": 0 if tier == "2" else slots[tier],
            "moved": 0,
            "replaced": slots[tier] if tier == "2" else 0,
        }
        for tier in "1234"
    }


def test_publish_without_one_before_says_nothing(
    jasper: Command, store: Path, files: tuple[object, ...]
) -> None:
    """The generation before may be gone, or be spoilt; equal ones are compared."""
    (store / "negatives" / "000001.safetensors").unlink()
    ended = jasper("publish", store, *files)
    assert (ended.status, len(ended.out.splitlines())) == (0, 1)
    again = "publish", store, *files, "--republish", "--json"
    assert json.loads(jasper(*again).out)["slots"]["1"]["kept"] > 0
    (store / "negatives" / "000003.safetensors").write_bytes(b"")
    assert json.loads(jasper(*again).out)["slots"] is None


def test_dry_run_changes_nothing(
    jasper: Command, store: Path, files: tuple[object, ...], new: Tables
) -> None:
    """It shows what diff shows, and the number that publishing gives then."""
    before = generations_of(store), contents(store)
    ended = jasper("publish", store, *files, "--dry-run", columns=80)
    assert (ended.status, (generations_of(store), contents(store))) == (0, before)
    shown, last = ended.out.rstrip().rsplit("\n\n", 1)
    assert last.endswith("dry run, nothing was published: this would be generation 2")
    assert shown == jasper("diff", store, Path(str(files[1])).parent, columns=80).out.rstrip()
    answer = json.loads(jasper("publish", store, *files, "--dry-run", "--json").out)
    diff = json.loads(jasper("diff", store, Path(str(files[1])).parent, "--json").out)
    assert (answer["dry_run"], answer["generation"], answer["refused"]) == (True, 2, None)
    assert {key: answer[key] for key in diff} == diff
    assert publish_negatives(store, *new, dry_run=True) == 2
    assert (generations_of(store), contents(store)) == before
    assert publish_negatives(store, *new) == 2


@pytest.mark.parametrize(
    "limit", ["--max-changed", "--max-margin-false-negatives", "--max-eval-sources"]
)
def test_dry_run_ends_as_publishing_would(
    jasper: Command, store: Path, files: tuple[object, ...], limit: str
) -> None:
    """With the same words and status, after the comparison."""
    dry = jasper("publish", store, *files, limit, 0, "--dry-run")
    assert (dry.status, dry.err.count("\n")) == (1, 1)
    assert "tier" in dry.out
    as_json = jasper("publish", store, *files, limit, 0, "--dry-run", "--json")
    assert (as_json.status, as_json.err) == (1, dry.err)
    answer = json.loads(as_json.out)
    assert (answer["generation"], f"Error: {answer['refused']}\n") == (None, dry.err)
    real = jasper("publish", store, *files, limit, 0)
    assert (real.status, real.out, real.err) == (1, "", dry.err)


def test_dry_run_lints_each_side_once(
    jasper: Command, store: Path, files: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though both a limit and the comparison need it; where there is nothing to compare with, only
    a limit does."""
    linted = []
    lint = Examination.lint

    def counted(self: Examination, generation: Any, **options: Any) -> Any:
        linted.append(generation)
        return lint(self, generation, **options)

    monkeypatch.setattr(Examination, "lint", counted)
    for limit in (["--max-margin-false-negatives", 1], []):
        assert jasper("publish", store, *files, *limit, "--dry-run").status == 0
        assert len(linted) == 2
        linted.clear()
    (store / "negatives" / "CURRENT.json").write_text("{")
    for limit, times in ((["--max-eval-sources", 1], 1), ([], 0)):
        assert jasper("publish", store, *files, *limit, "--dry-run").status == 0
        assert len(linted) == times
        linted.clear()


def test_dry_run_refuses_invalid_files_by_name(
    jasper: Command, store: Path, files: tuple[object, ...], new: Tables
) -> None:
    """As publishing does: there is nothing to compare then."""
    new[0][3, 1] = -1
    torch.save(new[0], str(files[1]))
    dry, real = (jasper("publish", store, *files, *more) for more in (["--dry-run"], []))
    assert dry == real
    assert "hard_negatives references source -1 in row 3, column 1" in dry.err


def test_dry_run_does_not_wait_for_a_publisher(store: Path, new: Tables) -> None:
    """Who holds the lock may change what is current; that does not keep anyone from looking."""
    with publisher_lock(store, 1.0):
        assert publish_negatives(store, *new, dry_run=True, lock_timeout_s=0.0) == 2
        with pytest.raises(BusyError):
            publish_negatives(store, *new, lock_timeout_s=0.0)


def test_dry_run_of_equal_values(jasper: Command, store: Path, tmp_path: Path) -> None:
    """What is current already is the number that is given."""
    tables = Store(store).generation()[1].tables
    both = tables["hard_negatives"].clone(), tables["negative_tiers"].clone()
    files = saved(both, tmp_path)
    ended = jasper("publish", store, files[0].parent, "--dry-run", "--note", "new")
    assert "generation 1 has these values already, so the note would not be used\n" in ended.out
    assert publish_negatives(store, *both, dry_run=True, republish=False) == 1
    assert publish_negatives(store, *both, dry_run=True, republish=True) == 2


def test_dry_run_warns_of_suspicious_negatives(
    jasper: Command, store: Path, new: Tables, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the answer of the command; in the log where it is called from Python."""
    new[0][:, 1] = new[0][:, 0]
    first, second = saved(new, tmp_path / "same")
    ended = jasper("publish", store, "--negatives", first, "--tiers", second, "--dry-run")
    assert "warning: 100.0% of rows of negatives contain a source twice" in ended.out
    assert (ended.status, ended.err) == (0, "")
    with caplog.at_level(logging.WARNING, "jasper_mmap"):
        publish_negatives(store, *new, dry_run=True)
    assert "generation 2 of" in caplog.text


def test_dry_run_where_no_generation_can_be_read(
    jasper: Command, store: Path, files: tuple[object, ...], new: Tables
) -> None:
    """Publishing is the remedy there, so trying it works too; nothing can be compared."""
    (store / "negatives" / "CURRENT.json").write_text("{")
    ended = jasper("publish", store, *files, "--dry-run")
    assert ended.status == 0
    assert ended.out == "dry run, nothing was published: this would be generation 2\n"
    for path in (store / "negatives").iterdir():
        path.unlink()
    (store / "negatives").rmdir()
    assert publish_negatives(store, *new, dry_run=True) == 1
    assert not (store / "negatives").exists()


READ_ONLY = """
import sys
from jasper_mmap import publish_negatives
from jasper_mmap.__main__ import main
store, negatives, tiers, folder = sys.argv[1:]
assert publish_negatives(store, negatives, tiers, dry_run=True) == 2
for arguments in (
    ["publish", store, "--negatives", negatives, "--tiers", tiers, "--dry-run"],
    ["diff", store, folder],
    ["show", store, "--pair", "0"],
):
    sys.argv = ["jasper-mmap", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
"""


def test_store_on_a_read_only_mount_can_be_looked_at(
    store: Path, files: tuple[object, ...]
) -> None:
    """Show, diff and a dry run write nothing there."""
    paths = [str(path) for path in (files[1], files[3])]
    options = f"--bind {store} {store} && mount -o remount,bind,ro {store}"
    out = mounted(store, options, READ_ONLY, *paths, str(Path(paths[0]).parent))
    assert "this would be generation 2" in out
    assert "pair 0 of" in out
