"""Publishing: what is checked, what is written, what stays, and the way back."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from jasper_mmap import JASPERSteeringDataset, publish_negatives, rollback_negatives
from jasper_mmap.errors import (
    ContentError,
    ContentTypeError,
    FormatError,
    IndexRangeError,
    JasperError,
    MissingFileError,
    UsageError,
)
from jasper_mmap.negatives import candidate, write
from jasper_mmap.store.pointer import FOLDER, POINTER, file_name
from tests.converting import state
from tests.oracle import Oracle
from tests.publishing import (
    IMPORTING,
    NAMES,
    Tables,
    contents,
    current_pointer,
    generations_left,
    numbered,
    own_copy,
    publish_numbered,
    saved,
    with_value,
)

# What is written


def safetensors_writes(dtype: torch.dtype) -> bool:
    """Return whether this version does: 0.5 does not write uint16."""
    try:
        save({"x": torch.zeros(1, dtype=dtype)})
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("form", ["tensors", "pt", "safetensors", "one safetensors"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint16])
def test_published_is_what_was_given(
    store: Path, new: Tables, form: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Whatever the form, the generation holds the same values in the same dtypes."""
    if "safetensors" in form and not safetensors_writes(dtype):
        pytest.skip(f"this version of safetensors does not write {dtype}")
    tables = (new[0].to(dtype), new[1].to(torch.uint8))
    given: tuple[Any, Any] = tables
    if form == "pt":
        given = saved(tables, tmp_path / "mined")
    elif form == "safetensors":
        given = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
        for path, table in zip(given, tables, strict=True):
            save_file({"mined": table}, path)
    elif form == "one safetensors":
        given = (str(tmp_path / "both.safetensors"),) * 2
        save_file(dict(zip(NAMES, tables, strict=True)), given[0])
    assert publish_negatives(store, *given, note="why") == 2
    written = load_file(store / FOLDER / file_name(2))
    for name, table in zip(NAMES, tables, strict=True):
        assert written[name].dtype == table.dtype
        assert torch.equal(written[name].to(torch.int64), table.to(torch.int64))


def test_pointer_names_the_current_generation_and_its_history(store: Path, new: Tables) -> None:
    """One file commits it all: number, file, checksum, when, by whom, note, counts, history."""
    publish_negatives(store, *new, note="mined at step 1000")
    pointer = current_pointer(store)
    path = store / FOLDER / pointer["file"]
    assert pointer["generation"] == 2
    assert pointer["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (pointer["bytes"], pointer["mtime_ns"]) == (
        path.stat().st_size,
        path.stat().st_mtime_ns,
    )
    assert pointer["by"].startswith(f"{os.getpid()}@")
    assert pointer["note"] == "mined at step 1000"
    assert pointer["changed_rows"] == len(new[0])
    assert set(pointer["lint"]) == {"own_source_rows", "false_negative_rows", "repeat_rows"}
    assert [entry["generation"] for entry in pointer["history"]] == [1, 2]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_real_counts_are_those_of_the_data(
    real_store: Path, real_folder: Path, tmp_path: Path
) -> None:
    """No own source, 32 % rows with a false negative; all but a few rows changed."""
    store = own_copy(real_store, tmp_path / "store")
    mined = real_folder.with_name("debian_small_new_negatives")
    publish_negatives(store, *(mined / f"{name}.pt" for name in NAMES))
    pointer = current_pointer(store)
    old, new = (torch.load(f / "hard_negatives.pt") for f in (real_folder, mined))
    assert pointer["lint"]["own_source_rows"] == 0
    assert pointer["lint"]["false_negative_rows"] == 1549
    assert pointer["changed_rows"] == int((old != new).any(1).sum())


# What is refused


BAD: dict[str, tuple[Callable[[Tables], Any], type[JasperError], str]] = {
    "source too large": (
        lambda t: with_value(t, 0, 41, 3, 10**6),
        IndexRangeError,
        "hard_negatives references source 1000000 in row 41, column 3",
    ),
    "source negative": (
        lambda t: with_value(t, 0, 7, 0, -1),
        IndexRangeError,
        "hard_negatives references source -1 in row 7, column 0",
    ),
    "tier 0": (lambda t: with_value(t, 1, 0, 11, 0), ContentError, "holds 0 in row 0, column 11"),
    "tier 5": (lambda t: with_value(t, 1, 499, 0, 5), ContentError, "holds 5 in row 499, column 0"),
    "float": (lambda t: (t[0].float(), t[1]), ContentTypeError, "hard_negatives holds float32"),
    "bool": (lambda t: (t[0], t[1].bool()), ContentTypeError, "negative_tiers holds bool"),
    "one row less": (lambda t: (t[0][1:], t[1]), ContentError, "has 499 rows"),
    "one column less": (lambda t: (t[0], t[1][:, 1:]), ContentError, "has 11 columns"),
    "flat": (lambda t: (t[0].reshape(-1), t[1]), ContentError, "has 1 dimensions"),
    "a list": (lambda t: (t[0].tolist(), t[1]), ContentTypeError, "list"),
    "one missing": (lambda t: (t[0], "/nowhere/negative_tiers.pt"), MissingFileError, "/nowhere"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("as_files", [False, True])
def test_bad_negatives_are_refused_before_anything_is_written(
    case: str, as_files: bool, store: Path, new: Tables, tmp_path: Path
) -> None:
    """The error names file, row and value; the folder is as it was."""
    spoil, kind, message = BAD[case]
    given = spoil(new)
    if as_files and not isinstance(given[1], str):
        given = saved(given, tmp_path / "mined")
    before = contents(store)
    with pytest.raises(kind, match=message):
        publish_negatives(store, *given)
    assert contents(store) == before


@pytest.mark.parametrize(("read", "written"), [(1, (0,)), (2, (1,)), (2, (0,)), (2, (0, 1))])
def test_file_written_anew_while_both_are_read_is_refused(
    read: int,
    written: tuple[int, ...],
    store: Path,
    oracle: Oracle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`written` of the two, once `read` of them were: what came of it would be of two pairs."""
    paths = saved(numbered(oracle, 2), tmp_path / "mined")
    later = saved(numbered(oracle, 3), tmp_path / "later")
    copy, copies = candidate._copy, 0

    def copy_and_write(*arguments: Any) -> None:
        nonlocal copies
        copy(*arguments)
        copies += 1
        if copies == read:
            for number in written:
                later[number].replace(paths[number])

    monkeypatch.setattr(candidate, "_copy", copy_and_write)
    with pytest.raises(FormatError, match="changed while being read"):
        publish_negatives(store, *paths)
    assert current_pointer(store)["generation"] == 1


def test_file_cut_while_it_is_read_is_not_called_damaged(
    store: Path, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer has begun anew."""
    paths = saved(numbered(oracle, 2), tmp_path / "mined")
    copy = candidate._copy

    def cut_and_copy(*arguments: Any) -> None:
        os.truncate(paths[0], 100)
        copy(*arguments)

    monkeypatch.setattr(candidate, "_copy", cut_and_copy)
    with pytest.raises(FormatError, match="changed while being read"):
        publish_negatives(store, *paths)


def test_damaged_file_is_refused(store: Path, new: Tables, tmp_path: Path) -> None:
    """A `.pt` file cut short is no generation."""
    paths = saved(new, tmp_path / "mined")
    os.truncate(paths[0], 1000)
    with pytest.raises(FormatError, match=r"hard_negatives\.pt"):
        publish_negatives(store, *paths)


@pytest.mark.parametrize(
    ("limit", "share"),
    [
        ("max_false_negatives", 0.0),
        ("max_own_source", 0.0),
        ("max_repeats", 0.0),
        ("max_changed", 0.5),
    ],
)
def test_limits_refuse_what_lint_counts(
    limit: str, share: float, store: Path, new: Tables, oracle: Oracle
) -> None:
    """More rows than allowed are an error that says how many; as many are let through."""
    own = torch.tensor([source for _, source in oracle.pair_index])
    sources = {q: [s for p, s in oracle.pair_index if p == q] for q, _ in oracle.pair_index}
    both = next(i for i, (q, _) in enumerate(oracle.pair_index) if len(set(sources[q])) > 1)
    bad = new[0].clone()
    bad[0, 0] = own[0]
    bad[1, 0] = bad[1, 1]
    question, source = oracle.pair_index[both]
    bad[both, 2] = next(s for s in sources[question] if s != source)
    publish: Callable[..., int] = partial(publish_negatives, store, bad, new[1])
    with pytest.raises(ContentError, match="refused: "):
        publish(**{limit: share})
    assert current_pointer(store)["generation"] == 1
    assert publish(**{limit: 1.0}) == 2
    with pytest.raises(UsageError):
        publish(**{limit: 5})


# What stays on disk


def test_last_generations_stay_and_the_grace_time_protects_others(
    store: Path, oracle: Oracle
) -> None:
    """Of those long out of service `keep` stay; none goes before its grace time is over."""
    for _ in range(4):
        publish_numbered(store, oracle)
    assert generations_left(store) == [1, 2, 3, 4, 5]
    publish_numbered(store, oracle, grace_s=0)
    assert generations_left(store) == [4, 5, 6]
    publish_numbered(store, oracle, keep=1, grace_s=0)
    assert generations_left(store) == [7]
    with pytest.raises(UsageError):
        publish_numbered(store, oracle, keep=0)


def test_file_of_a_dead_publisher_goes_and_its_number_is_not_used(
    store: Path, oracle: Oracle
) -> None:
    """A generation that no pointer ever named leaves a gap."""
    shutil.copy(store / FOLDER / file_name(1), store / FOLDER / file_name(2))
    assert publish_negatives(store, *numbered(oracle, 3), grace_s=0) == 3
    assert generations_left(store) == [1, 3]
    assert publish_negatives(store, *numbered(oracle, 4), grace_s=0) == 4


def test_history_stays_short(store: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old entries go, but for the one that was made from the builder's files."""
    monkeypatch.setattr(write, "HISTORY_LENGTH", 3)
    for _ in range(5):
        publish_numbered(store, oracle)
    assert [entry["generation"] for entry in current_pointer(store)["history"]] == [1, 4, 5, 6]


def test_publishing_is_the_remedy_for_a_lost_pointer(store: Path, oracle: Oracle) -> None:
    """A damaged `CURRENT.json` does not keep anybody from publishing."""
    (store / FOLDER / POINTER).write_text("{")
    with pytest.raises(FormatError, match="jasper-mmap publish"):
        JASPERSteeringDataset(store, "train")
    assert publish_negatives(store, *numbered(oracle, 2)) == 2
    with JASPERSteeringDataset(store, "train") as dataset:
        assert dataset.generation == 2


# The way back


def test_rollback_publishes_the_older_content_again(store: Path, oracle: Oracle) -> None:
    """The number rises; without a number it is the one before the current one."""
    first = load_file(store / FOLDER / file_name(1))
    publish_numbered(store, oracle)
    assert rollback_negatives(store) == 3
    again = load_file(store / FOLDER / file_name(3))
    assert all(torch.equal(first[name], again[name]) for name in NAMES)
    assert current_pointer(store)["note"] == "rollback to 1"
    assert rollback_negatives(store, 2, note="after all") == 4
    assert current_pointer(store)["note"] == "after all"
    with JASPERSteeringDataset(store, "train") as dataset:
        assert torch.equal(dataset.hard_negatives, numbered(oracle, 2)[0])


def test_rollback_to_what_cannot_be_names_what_can(store: Path, oracle: Oracle) -> None:
    """A generation that is gone, never existed, is current or was altered is refused."""
    with pytest.raises(MissingFileError, match="generation 1 is the first"):
        rollback_negatives(store)
    for _ in range(4):
        publish_numbered(store, oracle, grace_s=0)
    for gone in (1, 99):
        with pytest.raises(MissingFileError, match="roll back to: 3, 4"):
            rollback_negatives(store, gone)
    with pytest.raises(UsageError, match="already current"):
        rollback_negatives(store, 5)
    with (store / FOLDER / file_name(4)).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(FormatError, match="altered"):
        rollback_negatives(store, 4)
    assert current_pointer(store)["generation"] == 5


def test_rollback_is_the_remedy_for_a_spoilt_generation(store: Path, oracle: Oracle) -> None:
    """What opening advises works."""
    path = store / FOLDER / file_name(publish_numbered(store, oracle))
    os.truncate(path, 4096)
    with pytest.raises(FormatError, match="jasper-mmap rollback"):
        JASPERSteeringDataset(store, "train")
    assert rollback_negatives(store) == 3
    with JASPERSteeringDataset(store, "train") as dataset:
        assert dataset.generation == 3


def test_equal_values_are_published_again_only_where_asked(
    store: Path, new: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    """Another dtype is no other value; a generation that was spoilt is no equal one."""
    assert publish_negatives(store, *new, note="first") == 2
    narrow = (new[0].to(torch.int16), new[1].to(torch.uint8))
    before = contents(store)
    with caplog.at_level("INFO", "jasper_mmap"):
        assert publish_negatives(store, *narrow) == 2
        assert publish_negatives(store, *narrow, note="lost\nnote") == 2
    assert contents(store) == before
    levels = [(r.levelname, "not published" in r.getMessage()) for r in caplog.records]
    assert levels == [("INFO", True), ("INFO", True), ("WARNING", False)]
    assert r"the note 'lost\nnote' is not used" in caplog.records[-1].getMessage()
    assert publish_negatives(store, *narrow, republish=True) == 3
    changed = with_value(new, 1, 7, 3, int(new[1][7, 3]) % 4 + 1)
    assert publish_negatives(store, *changed) == 4
    os.truncate(store / FOLDER / file_name(4), 10)
    assert publish_negatives(store, *changed) == 5


def test_rollback_to_equal_values_is_published(store: Path, new: Tables) -> None:
    """The history shows that somebody went back."""
    assert publish_negatives(store, *new) == 2
    assert publish_negatives(store, *new, republish=True) == 3
    assert rollback_negatives(store, 2) == 4


def test_publishing_and_converting_at_the_end_of_the_interpreter(
    store: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """A trainer may do so in a function of `atexit`, when no thread can be started any more."""
    program = (
        "import atexit, sys, torch\n"
        "from pathlib import Path\n"
        "from converters import convert\n"
        "from jasper_mmap import publish_negatives\n"
        "store, folder, target = map(Path, sys.argv[1:])\n"
        "tables = (torch.load(folder / f'{name}.pt') for name in "
        "('hard_negatives', 'negative_tiers'))\n"
        "negatives, tiers = tables\n"
        "atexit.register(lambda: print(convert(folder, target).generation))\n"
        "atexit.register(lambda: print(publish_negatives(store, negatives.flip(0), tiers)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(store), str(demo_folder), str(tmp_path / "target")],
        capture_output=True,
        text=True,
        timeout=60,
        env=IMPORTING,
        check=False,
    )
    assert (ran.stdout.split(), ran.stderr) == (["2", "1"], "")
    assert state(store) is not None
    assert state(tmp_path / "target") is not None
