"""The command `jasper-mmap diff`: two generations, or files that are not published yet."""

import json
import re
from pathlib import Path

import pytest
import torch

from jasper_mmap import publish_negatives
from tests.commands.conftest import Command
from tests.conftest import REAL_FOLDER
from tests.converting import contents
from tests.publishing import NAMES, Tables, saved


@pytest.fixture(scope="module")
def mined() -> Path:
    """Return the real folder's second set of negatives."""
    folder = REAL_FOLDER.with_name("debian_small_new_negatives")
    if not folder.is_dir():
        pytest.skip(f"no real input at {folder}")
    return folder


def test_diff_of_the_real_folder(jasper: Command, real_store: Path, mined: Path) -> None:
    """What "4806 of 4806 rows changed" hid; nothing is written into the store."""
    before = contents(real_store)
    ended = jasper("diff", real_store, mined, columns=80)
    assert (ended.status, contents(real_store)) == (0, before)
    out = ended.out
    assert f"{real_store}: generation 1 -> folder {mined}" in out.replace("\n  ", " ")
    assert "\ntier 3: 100% kept; tiers 1, 2, 4: 99.0% replaced\n" in out
    assert "\n0 of 4,806 rows unchanged (0%)\n" in out
    assert re.search(r"^ *3 +14,418 +100% +0% +0% +0\.493 +47\.9% *$", out, re.MULTILINE)
    assert re.search(r"^with margin false negatives +62\.0% +62\.3% *$", out, re.MULTILINE)
    assert re.search(r"^.*right source nearest, zero steering +54\.2% +54\.3% *$", out, re.M)
    tables = [line for line in out.splitlines() if re.match(r" *\S+   *\S", line)]
    assert max(map(len, tables)) <= 80


def test_diff_for_programs(jasper: Command, store: Path, new: Tables, tmp_path: Path) -> None:
    """Counts, both lints, and where both sides are from; a folder's names may have either end."""
    saved(new, tmp_path / "new")
    answer = json.loads(jasper("diff", store, tmp_path / "new", "--json").out)
    assert answer["before"]["generation"] == 1
    assert answer["after"]["generation"] is None
    assert answer["after"]["files"] == [str(tmp_path / "new" / f"{name}.pt") for name in NAMES]
    assert sum(tier["slots_after"] for tier in answer["tiers"]) == new[0].numel()
    assert answer["rows"] == answer["lint_before"]["rows"] == answer["lint_after"]["rows"] == 500
    publish_negatives(store, *new)
    published = json.loads(jasper("diff", store, 1, 2, "--json").out)
    assert (published["before"]["generation"], published["after"]["generation"]) == (1, 2)
    for key in ("tiers", "changed_most", "lint_after"):
        assert published[key] == answer[key]


def test_sides_that_are_left_out(jasper: Command, store: Path, new: Tables, tmp_path: Path) -> None:
    """None: the two newest. A number: from it to the current one. A folder: from that to it."""
    folder = tmp_path / "1"  # a name that is a number is one only by its path
    saved(new, folder)

    def sides(*names: object) -> str:
        return jasper("diff", store, *names).out.splitlines()[0].removeprefix(f"{store}: ")

    ended = jasper("diff", store)
    assert ended.status == 1
    assert "generation 1 is the first, so there is no older one to compare it with" in ended.err
    publish_negatives(store, *new)
    assert sides() == sides(1) == sides(1, 2) == "generation 1 -> generation 2"
    assert sides(2, 1) == "generation 2 -> generation 1"
    assert sides(folder) == f"generation 2 -> folder {folder}"
    assert sides(folder, 1) == f"folder {folder} -> generation 1"
    assert jasper("diff", store, 1, 2, 3).status == 2


def test_generation_that_was_removed(jasper: Command, store: Path, new: Tables) -> None:
    """It is said which ones are there."""
    for _ in range(2):
        publish_negatives(store, *new, republish=True)
    (store / "negatives" / "000001.safetensors").unlink()
    for sides in ((1,), (1, 3), (3, 1), (7,), (0,)):
        ended = jasper("diff", store, *sides)
        assert (ended.status, ended.out) == (1, "")
        removed = 7 if 7 in sides else min(sides)
        assert f"generation {removed} was removed or never existed; available: 2, 3." in ended.err


def test_files_that_cannot_be_compared(jasper: Command, store: Path, tmp_path: Path) -> None:
    """Another number of negatives, numbers out of range, missing files: each by its name."""
    saved((torch.zeros(500, 5, dtype=torch.int64), torch.ones(500, 5, dtype=torch.int64)), tmp_path)
    ended = jasper("diff", store, tmp_path)
    assert (ended.status, ended.out) == (1, "")
    assert "hard_negatives [N_p, N] has 5 columns, but 'n_neg' in config.json is 12" in ended.err
    saved((torch.full((500, 12), 10**6), torch.ones(500, 12, dtype=torch.int64)), tmp_path)
    assert "references source 1000000 in row 0" in jasper("diff", store, tmp_path).err
    (tmp_path / "negative_tiers.pt").unlink()
    assert "holds no negative_tiers.pt or" in jasper("diff", store, tmp_path).err
    assert jasper("diff", store, tmp_path / "missing").status == 1


def test_files_are_copied_outside_the_store(
    jasper: Command, store: Path, new: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among temporary files, of which none is left: the store may be read-only."""
    saved(new, tmp_path / "new")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    folder = store / "negatives"
    before = folder.stat().st_mtime_ns, contents(store)
    assert jasper("diff", store, tmp_path / "new").status == 0
    assert (folder.stat().st_mtime_ns, contents(store)) == before
    assert [*(tmp_path / "tmp").iterdir()] == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    ended = jasper("diff", store, tmp_path / "new")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert str(tmp_path / "missing") in ended.err
