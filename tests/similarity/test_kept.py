"""What a lint keeps, when it counts, and that nothing else takes it for its own."""

import json
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters import convert
from jasper_mmap import lint_negatives, publish_negatives, rollback_negatives
from jasper_mmap.errors import ContentError, JasperError, MissingFileError, UsageError
from jasper_mmap.files import atomic
from jasper_mmap.negatives import lint as lint_module
from jasper_mmap.negatives.write import next_generation, publisher_lock
from jasper_mmap.rules.permutation import permute
from jasper_mmap.similarity import examine
from jasper_mmap.similarity.reports.summary import MOST_BYTES
from jasper_mmap.store.pointer import FOLDER, generations_on_disk, read_pointer
from tests.converting import SMALL, change, stored
from tests.oracle import Oracle
from tests.publishing import contents, current_pointer, numbered
from tests.similarity import slow_lint
from tests.similarity.slow_lint import SlowLint, assert_same
from tools.demo.folder import make_builder_folder

OF_0_1_0 = (r"\d{6,}\.safetensors", r"\..*\.tmp", r"CURRENT\.json", r"\.lock.*")
"""What version 0.1.0 takes for its own in the folder of generations."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small builder's folder and its store."""
    root = tmp_path_factory.mktemp("kept")
    convert(make_builder_folder(root / "builder", seed=1, **SMALL), root / "store")
    return root


@pytest.fixture
def small(made: Path, tmp_path: Path) -> Path:
    """Return a small store, to be published to."""
    return Path(shutil.copytree(made / "store", tmp_path / "store"))


@pytest.fixture
def builder(made: Path) -> Path:
    """Return the folder that the small store was made from."""
    return made / "builder"


def kept(store: Path) -> list[str]:
    """Return the names of the kept lints."""
    return sorted(path.name for path in (store / FOLDER).glob("lint-*"))


@pytest.fixture
def computing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every computed lint of a generation adds its rows."""
    rows: list[int] = []
    run = examine.Examination.lint

    def lint(*arguments: Any, **options: Any) -> Any:
        result = run(*arguments, **options)
        rows.append(result.rows)
        return result

    monkeypatch.setattr(examine.Examination, "lint", lint)
    return rows


def test_a_lint_is_computed_once(small: Path, computing: list[int]) -> None:
    """The second is the same, and so are the files."""
    first = lint_negatives(small)
    files = contents(small)
    assert lint_negatives(small) == first
    assert computing == [SMALL["n_pairs"]]
    assert contents(small) == files
    assert len(kept(small)) == 2


def test_a_sample_never_stands_for_all(small: Path, builder: Path, computing: list[int]) -> None:
    """Nor another sample, another seed or another margin; the same sample does."""
    for options in (
        {"sample": 10},
        {"sample": 10},
        {"sample": 10, "seed": 5},
        {"sample": 11},
        {"margin": 0.1},
        {},
        {"sample": SMALL["n_pairs"]},
    ):
        lint_negatives(small, **options)
    assert computing == [10, 10, 11, 60, 60]
    assert lint_negatives(small, sample=99).sample is None
    assert lint_negatives(small, sample=10).seed == 42


def test_a_sample_is_the_lint_of_its_rows(small: Path, builder: Path, tmp_path: Path) -> None:
    """The rows are those that the permutation keyed by the seed gives."""
    rows = sorted(permute(np.arange(10), SMALL["n_pairs"], "lint", 3).tolist())
    want = SlowLint(slow_lint.load(builder), rows=rows, margin=0.2).report()
    report = lint_negatives(small, sample=10, seed=3, margin=0.2)
    assert_same(json.loads(json.dumps(report.to_dict()))["of_generation"], want)
    assert "similarity" not in current_pointer(small)["history"][0]


def spoil_text(text: str) -> str:
    return text[: len(text) // 2]


def spoil_number(text: str) -> str:
    return re.sub(r'"rows": \d+', '"rows": "many"', text, count=1)


def spoil_key(text: str) -> str:
    return text.replace('"hubness"', '"hubs"')


def spoil_subject(text: str) -> str:
    return re.sub(r'"store_id": "\w', '"store_id": "x', text)


@pytest.mark.parametrize(
    "spoil", [spoil_text, spoil_number, spoil_key, spoil_subject, lambda _: "[1]", lambda _: ""]
)
def test_a_damaged_file_is_computed_again(
    small: Path, spoil: Callable[[str], str], computing: list[int]
) -> None:
    """And replaced."""
    first = lint_negatives(small)
    (path,) = (small / FOLDER).glob("lint-generation-*")
    text = path.read_text()
    assert spoil(text) != text
    path.write_text(spoil(text))
    assert lint_negatives(small) == first
    assert path.read_text() == text
    assert len(computing) == 2


def test_no_version_takes_a_kept_lint_for_its_own(small: Path) -> None:
    """Neither for a generation nor for what a killed writer left."""
    lint_negatives(small)
    before = contents(small)
    assert not [n for n in kept(small) for one in OF_0_1_0 if re.fullmatch(one, n)]
    assert generations_on_disk(small).keys() == {1}
    assert next_generation(small, None) == 2
    atomic.sweep(small / FOLDER)
    assert contents(small) == before


def test_the_history_has_a_few_numbers(small: Path, builder: Path) -> None:
    """Under a key of its own, so that an older version reads the pointer as before."""
    before = current_pointer(small)
    lint_negatives(small, sample=5)
    lint_negatives(small, margin=0.3)
    assert current_pointer(small) == before
    lint = lint_negatives(small).of_generation
    after = current_pointer(small)
    numbers = after["history"][0].pop("similarity")
    assert after == before
    assert all(type(value) in (int, float) for value in numbers.values())
    assert len(json.dumps(numbers, indent=2)) <= MOST_BYTES
    assert numbers["margin_rows"] == lint.margin_false.rows.count
    assert numbers["tier3"] == lint.similarity["all"].tiers["3"].p50


def test_publishing_keeps_what_it_linted(small: Path, builder: Path, computing: list[int]) -> None:
    """For `lint` and for the history; a rollback takes it over."""
    oracle = Oracle(builder)
    assert publish_negatives(small, *numbered(oracle, 2), max_eval_sources=1.0) == 2
    summary = current_pointer(small)["history"][1]["similarity"]
    publish_negatives(small, *numbered(oracle, 3))
    assert "similarity" not in current_pointer(small)["history"][2]
    rollback_negatives(small, 2)
    assert current_pointer(small)["history"][3]["similarity"] == summary
    report = lint_negatives(small)
    assert computing == [SMALL["n_pairs"]]
    assert report.generation == 4
    assert report.of_generation.margin_false.rows.count == summary["margin_rows"]


def test_lints_of_what_is_gone_are_removed(small: Path, builder: Path) -> None:
    """Of removed generations by the next lint; of another store too."""
    lint_negatives(small)
    publish_negatives(small, *numbered(Oracle(builder), 2), keep=1, grace_s=0)
    old = kept(small)
    lint_negatives(small)
    left = kept(small)
    assert len(old) == len(left) == 2
    assert set(old) & set(left) == {name for name in old if name.startswith("lint-store-")}
    other = shutil.copytree(builder, builder.with_name("other"), dirs_exist_ok=True)
    change(other, "question_embs", lambda t: t[0].neg_())
    convert(other, small)
    lint_negatives(small)
    assert len(kept(small)) == 2
    assert not set(left) & set(kept(small))


def test_few_lints_of_other_options_stay(small: Path) -> None:
    """The latest ones."""
    for number in range(20):
        lint_negatives(small, margin=number / 20)
    assert len(kept(small)) == 16


def test_a_removed_generation_is_named(small: Path, builder: Path) -> None:
    """With those that are there."""
    oracle = Oracle(builder)
    for number in (2, 3, 4):
        publish_negatives(small, *numbered(oracle, number), keep=2, grace_s=0)
    with pytest.raises(MissingFileError, match=r"generation 1 was removed.*available: 3, 4\."):
        lint_negatives(small, generation=1)
    report = lint_negatives(small, generation=3)
    assert report.generation == 3
    assert [e["generation"] for e in read_pointer(small).history if "similarity" in e] == [3]


def test_a_store_that_cannot_be_written_is_linted(small: Path, tmp_path: Path) -> None:
    """Nothing is kept, and that is said once."""
    moved = small / FOLDER
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    before = contents(small)
    report = lint_negatives(small)
    (note,) = report.notes
    assert note.startswith("not kept for the next call: ")
    assert "is a link" in note
    assert contents(small) == before


def test_a_busy_publisher_is_not_waited_for(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lint is there, and nothing is kept."""
    monkeypatch.setattr(lint_module, "_LOCK_TIMEOUT_S", 0.05)
    reports = []
    with publisher_lock(small, 1):
        other = threading.Thread(target=lambda: reports.append(lint_negatives(small)))
        other.start()
        other.join()
    (report,) = reports
    assert "held by" in report.notes[0]
    assert not kept(small)
    assert lint_negatives(small).of_generation == report.of_generation


def test_an_interrupted_lint_leaves_nothing(small: Path, tmp_path: Path) -> None:
    """No part of a file, wherever it is interrupted."""
    calls = 0
    lint_negatives(small)
    total = 30
    for moment in range(total):
        calls = 0

        def interrupt(_name: str, _done: int, _total: int, at: int = moment) -> None:
            nonlocal calls
            calls += 1
            if calls > at:
                raise KeyboardInterrupt

        folder = tmp_path / f"out{moment}"
        folder.mkdir()
        before = contents(small)
        try:
            lint_negatives(small, margin=0.2, out=folder / "flags.safetensors", progress=interrupt)
        except KeyboardInterrupt:
            assert not list(folder.iterdir())
            assert contents(small) == before
        else:
            assert moment > 1
            return
    raise AssertionError("it was never finished")


@pytest.mark.parametrize("options", [{}, {"sample": 7}, {"near_duplicates": True}])
def test_progress_ends_at_its_total(small: Path, options: dict[str, Any]) -> None:
    """It rises steadily, with one total."""
    calls: list[tuple[str, int, int]] = []
    lint_negatives(small, progress=lambda *call: calls.append(call), **options)
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert {call[2] for call in calls} == {done[-1]}


def test_flags_are_written(small: Path, builder: Path, tmp_path: Path) -> None:
    """What they say adds up to the report."""
    out = tmp_path / "flags.safetensors"
    report = lint_negatives(small, out=out)
    slow = SlowLint(slow_lint.load(builder))
    tensors = stored(out)
    rows = range(SMALL["n_pairs"])
    similarities = torch.tensor([slow.s[i] for i in rows])
    assert (tensors["similarities"].double() - similarities).abs().max() < 1e-5
    assert tensors["similarities"].dtype == torch.float32
    suspects = [[int(f) for f in slow.suspects(i, slow.p[i])] for i in rows]
    assert tensors["margin_false"].tolist() == suspects
    own = [[int(f) for f in slow.suspects(i, slow.own[i])] for i in rows]
    assert tensors["margin_false_own"].tolist() == own
    assert tensors["known_right"].tolist() == [[int(f) for f in slow.known(i)] for i in rows]
    assert report.of_generation.margin_false.slots.count == sum(map(sum, suspects)) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": float("nan")}, "margin must be a number from 0 to 1"),
        ({"margin": 1.5}, "margin must be a number from 0 to 1"),
        ({"sample": 0}, "sample must be an integer >= 1"),
        ({"sample": "5"}, "sample must be an integer"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"generation": 0}, "generation must be an integer >= 1"),
        ({"out": 5}, "out must be a path"),
        ({"out": "flags.safetensors", "sample": 5}, "out has every pair"),
        ({"progress": 5}, "progress must be a function"),
    ],
)
def test_invalid_arguments_are_refused(small: Path, options: dict[str, Any], message: str) -> None:
    """Before anything is read."""
    with pytest.raises(UsageError, match=message):
        lint_negatives(small, **options)


def test_no_file_of_the_store_is_replaced_by_flags(small: Path) -> None:
    """Whatever name leads there."""
    link = small.with_name("link")
    link.symlink_to(small)
    for path in (small / "source_embs.safetensors", link / FOLDER / "000001.safetensors"):
        with pytest.raises(UsageError, match="is inside the store"):
            lint_negatives(small, out=path)


def test_only_earlier_flags_are_replaced(small: Path) -> None:
    """No other file is, nor is a folder made; both are said before the store is read."""
    out, model = small.with_name("flags.safetensors"), small.with_name("model.safetensors")
    for _ in range(2):
        lint_negatives(small, out=out)
    tensors = {**load_file(out), "weights": torch.zeros(2)}
    save_file(tensors, model)
    written = model.read_bytes()
    missing = small.with_name("none") / "flags.safetensors"
    for target, words in ((model, "exists and is no file of flags"), (missing, "make it first")):
        with pytest.raises(JasperError, match=words):
            lint_negatives(small, out=target, progress=lambda *_: pytest.fail("read"))
    assert model.read_bytes() == written


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("max_margin_false_negatives", r"refused: \d+ of 60 rows contain a negative that is too"),
        ("max_eval_sources", r"refused: \d+ of \d\d rows of train contain a source that is right"),
    ],
)
def test_limits_refuse_before_anything_is_written(
    small: Path, builder: Path, limit: str, message: str
) -> None:
    """Without the lock, at the same share that the lint gives; the share itself is accepted."""
    publish: Any = partial(publish_negatives, small, *numbered(Oracle(builder), 2))
    before = contents(small)
    with publisher_lock(small, 1), pytest.raises(ContentError, match=message):
        publish(**{limit: 0.0})
    assert contents(small) == before
    assert publish() == 2
    lint = lint_negatives(small).of_generation
    rows = {
        "max_margin_false_negatives": lint.margin_false.rows,
        "max_eval_sources": lint.evaluation_sources.rows,
    }[limit]
    assert 0 < rows.count < rows.of
    assert publish(**{limit: rows.share}) > 1
    with pytest.raises(ContentError):
        publish(**{limit: rows.share - 1e-6})
    with pytest.raises(UsageError, match=limit):
        publish(**{limit: 2.0})
