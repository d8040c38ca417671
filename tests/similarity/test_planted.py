"""Faults that are put into a folder are found, and every number stays that of the slow lint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from converters import convert
from jasper_mmap import lint_negatives
from jasper_mmap.similarity.margin import is_margin_false
from tests.converting import SMALL, change, edit, load, stored
from tests.files.test_torch_modes import MODES
from tests.similarity import slow_lint
from tests.similarity.slow_lint import SlowLint, assert_same, slow_store
from tools.demo.folder import make_builder_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder, to be spoilt."""
    return make_builder_folder(tmp_path / "builder", seed=1, **SMALL)


def linted(folder: Path, **options: Any) -> dict[str, Any]:
    """Convert a folder and return its lint as JSON, compared with the slow one."""
    store = folder.with_name("store")
    convert(folder, store, allow_nonfinite=True)
    report: dict[str, Any] = json.loads(
        json.dumps(lint_negatives(store, near_duplicates=True, **options).to_dict())
    )
    tables = slow_lint.load(folder)
    assert_same(report["of_store"], slow_store(tables))
    assert_same(report["of_generation"], SlowLint(tables).report())
    return report


def test_a_tidy_folder_has_no_faults(folder: Path) -> None:
    """Nothing is found where nothing is wrong."""
    report = linted(folder)
    assert report["of_generation"]["known_right"]["slots"]["count"] == 0
    assert report["of_store"]["sources"]["near"] == 0
    assert report["of_store"]["questions_in_two_splits"] == 0


def test_equal_sources_are_found(folder: Path) -> None:
    """By their bytes, and by their direction where one is twice as long."""
    change(folder, "source_embs", lambda t: t[9].copy_(t[4]))
    change(folder, "source_embs", lambda t: t[20].copy_(2 * t[4]))
    sources = linted(folder)["of_store"]["sources"]
    assert (sources["equal"], sources["equal_examples"]) == (1, [[4, 9]])
    assert sources["near"] == 2
    assert sources["far_from_one"] == 1
    assert [b for _, b in sources["near_examples"]] == [9, 20]


def test_equal_questions_are_found(folder: Path) -> None:
    """All rows of one question after the first."""
    change(folder, "question_embs", lambda t: t[2:5].copy_(t[1].expand(3, -1)))
    questions = linted(folder)["of_store"]["questions"]
    assert questions["equal_examples"] == [[1, 2], [1, 3], [1, 4]]


def test_a_right_source_under_another_number_is_found(folder: Path) -> None:
    """A copy of the right source stands among the negatives; the number alone does not tell."""
    right = int(load(folder, "pair_index")[7, 1])
    copy = int(load(folder, "hard_negatives")[7, 1])
    change(folder, "source_embs", lambda t: t[copy].copy_(t[right]))
    known = linted(folder)["of_generation"]["known_right"]
    assert known["slots_by_content"]["count"] >= 1
    assert known["slots_by_number"]["count"] == 0
    store = folder.with_name("store")
    out = folder.with_name("flags.safetensors")
    lint_negatives(store, out=out)
    assert stored(out)["known_right"][7, 1] == 1


def test_right_sources_among_the_negatives_are_found_by_number(folder: Path) -> None:
    """The own one too: it is a tie, so the row is not nearest to its right source."""
    right = int(load(folder, "pair_index")[3, 1])
    change(folder, "hard_negatives", lambda t: t[3, 0].fill_(right))
    lint = linted(folder)["of_generation"]
    assert lint["known_right"]["slots_by_number"]["count"] == 1
    untrained = lint["untrained"]["all"]["zero"]
    assert untrained["nearest_known_aside"]["count"] >= untrained["nearest"]["count"]


def test_a_known_right_source_counts_once(folder: Path) -> None:
    """By number, though its content is that of another right source too."""
    pairs = load(folder, "pair_index")
    first = next(
        i for i, (q, s) in enumerate(pairs.tolist()) if (pairs[pairs[:, 0] == q, 1] != s).any()
    )
    question, right = pairs[first].tolist()
    other = next(s for q, s in pairs.tolist() if q == question and s != right)
    change(folder, "source_embs", lambda t: t[other].copy_(t[right]))
    change(folder, "hard_negatives", lambda t: t[first, 0].fill_(other))
    known = linted(folder)["of_generation"]["known_right"]
    assert known["slots_by_number"]["count"] == 1
    assert known["slots"]["count"] == 1 + known["slots_by_content"]["count"]


def test_the_margin_widens_below_0_too(folder: Path) -> None:
    """It is subtracted from a right source that points away from its question."""
    s = torch.tensor([-0.22, -0.2, -0.19, 0.17, 0.19])
    p = torch.tensor([-0.2, -0.2, -0.2, 0.2, 0.2])
    assert is_margin_false(s, p, 0.1).tolist() == [False, True, True, False, True]
    assert not is_margin_false(torch.tensor([torch.nan]), p[:1]).any()
    change(folder, "question_embs", lambda t: t[::2].neg_())
    assert linted(folder)["of_generation"]["similarity"]["all"]["own"]["p25"] < 0


def test_a_question_in_two_splits_is_found(folder: Path) -> None:
    """One of its pairs moves to val."""
    pairs = load(folder, "pair_index")
    train = load(folder, "train_idx").tolist()
    questions = [int(pairs[i, 0]) for i in train]
    moved = next(i for i, q in zip(train, questions, strict=True) if questions.count(q) > 1)
    edit(folder, "train_idx", lambda t: t[t != moved])
    edit(folder, "val_idx", lambda t: torch.cat((t, torch.tensor([moved]))))
    of_store = linted(folder)["of_store"]
    assert of_store["questions_in_two_splits"] == 1
    assert of_store["question_examples"] == [int(pairs[moved, 0])]


def test_pairs_in_no_split_are_found(folder: Path) -> None:
    """And the rows that no pair has."""
    edit(folder, "train_idx", lambda t: t[2:])
    assert linted(folder)["of_store"]["pairs_in_no_split"] == 2


def test_swapped_tiers_are_found(folder: Path) -> None:
    """By the order of their medians, and by the clusters of their sources."""
    before = linted(folder)["of_generation"]["tiers"]
    swap = torch.tensor([0, 4, 2, 3, 1])
    edit(folder, "negative_tiers", lambda t: swap[t.long()])
    tiers = linted(folder)["of_generation"]["tiers"]
    assert before["by_median"] != tiers["by_median"]
    assert not tiers["as_described"]
    assert not tiers["cluster_as_described"]


def test_zero_rows_have_cosine_0(folder: Path) -> None:
    """Of a question, of a source and of steering."""
    change(folder, "question_embs", lambda t: t[0].zero_())
    change(folder, "source_embs", lambda t: t[:2].zero_())
    change(folder, "steering_residual", lambda t: t[:5].zero_())
    report = linted(folder)
    assert report["of_store"]["questions"]["zero"] == 1
    assert report["of_store"]["sources"]["zero"] == 2
    assert report["of_generation"]["without_cosine"] == 0
    assert report["of_generation"]["steering"]["residual"]["rows"] <= SMALL["n_pairs"] - 5


def test_rows_that_are_not_finite_have_no_cosine(folder: Path) -> None:
    """They are counted and flagged nowhere, not even where a right source has none, but for a right
    source by its number."""
    negative = int(load(folder, "hard_negatives")[5, 2])
    right = int(load(folder, "pair_index")[9, 1])
    change(folder, "source_embs", lambda t: t[negative, 3].fill_(torch.nan))
    change(folder, "source_embs", lambda t: t[right, 0].fill_(torch.inf))
    change(folder, "hard_negatives", lambda t: t[9, 0].fill_(right))
    change(folder, "question_embs", lambda t: t[4, 1].fill_(-torch.inf))
    change(folder, "steering_centroid", lambda t: t[6, 0].fill_(torch.nan))
    report = linted(folder)
    assert report["of_store"]["sources"]["nonfinite"] == 2
    assert report["of_generation"]["without_cosine"] > 0
    assert report["of_generation"]["known_right"]["slots_by_number"]["count"] == 1


@pytest.mark.parametrize("scale", [1e-30, 1e18, 1e37])
def test_lengths_do_not_matter(folder: Path, scale: float) -> None:
    """Where float32 could not hold a product either."""

    def stretch(table: Tensor) -> None:
        table[::2] *= scale

    change(folder, "source_embs", stretch)
    sources = linted(folder)["of_store"]["sources"]
    assert sources["far_from_one"] == (sources["count"] + 1) // 2


def test_one_cluster_and_no_val(tmp_path: Path) -> None:
    """Every source that is right is in the cluster then."""
    folder = make_builder_folder(
        tmp_path / "builder", seed=2, untidy=frozenset({"empty_val", "empty_test"}), **SMALL
    )
    edit(folder, "pair_cluster_id", torch.zeros_like)
    edit(folder, "centroid_embs", lambda t: t[:1].clone())
    (folder / "centroid_distances.pt").unlink()
    report = linted(folder)
    lint = report["of_generation"]
    assert lint["similarity"]["val"]["own"]["count"] == 0
    assert lint["evaluation_sources"]["sources"]["count"] == 0
    assert all(s["count"] == s["of"] for s in lint["tiers"]["in_cluster"].values())


def test_one_question_with_many_right_sources(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at in pieces, and the pairs in several blocks."""
    monkeypatch.setattr("jasper_mmap.similarity.known._CELLS", 8)
    monkeypatch.setattr("jasper_mmap.similarity.examine._STEP", 7)
    change(folder, "pair_index", lambda t: t[:40, 0].zero_())
    known = linted(folder)["of_generation"]["known_right"]
    assert known["slots_by_number"]["count"] > 0


@pytest.mark.parametrize("mode", [*MODES, "bfloat16 products"])
def test_modes_of_torch_do_not_matter(folder: Path, mode: str) -> None:
    """Nor does what a program asked of matrix products."""
    store = folder.with_name("store")
    convert(folder, store)
    want = SlowLint(slow_lint.load(folder)).report()
    enter: Callable[[], Any] = MODES.get(mode, less_precise)
    with enter():
        report = lint_negatives(store, near_duplicates=True)
    assert_same(json.loads(json.dumps(report.to_dict()))["of_generation"], want)


class less_precise:  # noqa: N801 - a context manager
    """Allow torch to multiply float32 in fewer bits."""

    def __enter__(self) -> None:
        torch.set_float32_matmul_precision("medium")

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision("highest")
