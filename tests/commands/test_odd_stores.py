"""Show, diff and dry runs of stores that lack something, or hold what is allowed but odd."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert
from jasper_mmap.store.folder import Store
from tests.commands.conftest import Command
from tests.converting import SMALL, change, edit, load, put
from tests.publishing import saved
from tools.demo.folder import make_builder_folder


def one_cluster(folder: Path) -> None:
    """Put all pairs into cluster 0, the only one."""
    edit(folder, "centroid_embs", lambda t: t[:1].clone())
    change(folder, "pair_cluster_id", lambda t: t.zero_())


def zero_rows(folder: Path) -> None:
    """Make the question and the right source of pair 0, its steering and a centroid zero."""
    question, source = load(folder, "pair_index")[0].tolist()
    change(folder, "question_embs", lambda t: t[question].zero_())
    change(folder, "source_embs", lambda t: t[source].zero_())
    change(folder, "steering_residual", lambda t: t[0].zero_())
    change(folder, "centroid_embs", lambda t: t.zero_())


def not_finite(folder: Path) -> None:
    """Put NaN and infinity into what pair 0 is made of."""
    question, source = load(folder, "pair_index")[0].tolist()
    put(folder, "question_embs", question, float("nan"))
    put(folder, "source_embs", source, float("inf"))
    put(folder, "steering_centroid", 0, float("-inf"))
    put(folder, "pair_relevance", 0, float("nan"))


def no_evaluation(folder: Path) -> None:
    """Leave val and test without pairs, and pair 0 out of train."""
    for name in ("val_idx", "test_idx"):
        edit(folder, name, lambda t: t[:0].clone())
    edit(folder, "train_idx", lambda t: torch.arange(1, 60, dtype=t.dtype))


@pytest.fixture(scope="module", params=[one_cluster, zero_rows, not_finite, no_evaluation])
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of each kind, beside its `.pt` files."""
    make: Callable[[Path], None] = request.param
    folder = make_builder_folder(tmp_path_factory.mktemp("odd") / make.__name__, **SMALL)
    make(folder)
    convert(folder, allow_nonfinite=True)
    return folder


def strictly(text: str) -> Any:
    """Parse JSON, which has neither NaN nor infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("as_json", [True, False])
def test_odd_stores_are_shown_and_compared(
    jasper: Command, odd: Path, tmp_path: Path, as_json: bool
) -> None:
    """Nothing is divided by zero, and no NaN comes out."""
    question, source = load(odd, "pair_index")[0].tolist()
    negatives, tiers = load(odd, "hard_negatives"), load(odd, "negative_tiers")
    negatives[0, 0] = source
    saved((negatives, tiers), tmp_path)
    option = ["--json"] if as_json else []
    for call in (
        ("show", odd, "--pair", 0),
        ("show", odd, "--question", question),
        ("show", odd, "--source", source),
        ("diff", odd, tmp_path),
        ("publish", odd, tmp_path, "--dry-run"),
    ):
        ended = jasper(*call, *option)
        assert (ended.status, ended.err) == (0, ""), call
        assert "nan" not in ended.out.lower().replace("with nan", "")
        if as_json:
            strictly(ended.out)


def test_what_is_odd_is_said(jasper: Command, tmp_path: Path) -> None:
    """Zero vectors by their names; that a value that is not finite has no cosine; no split."""
    for make, said in (
        (zero_rows, "are zero vectors: their cosine with everything is taken as 0"),
        (not_finite, "an embedding with NaN or infinity has no cosine, shown as -"),
        (no_evaluation, "split none, cluster"),
    ):
        folder = make_builder_folder(tmp_path / make.__name__, **SMALL)
        make(folder)
        convert(folder, allow_nonfinite=True)
        out = jasper("show", folder, "--pair", 0).out
        assert said in out
    question, source = load(tmp_path / "zero_rows", "pair_index")[0].tolist()
    out = jasper("show", tmp_path / "zero_rows", "--pair", 0).out
    cluster = Store(tmp_path / "zero_rows").tables["pair_cluster_id"][0]
    named = f"question {question}, source {source}, the centroid of cluster {int(cluster)}"
    assert named in out
