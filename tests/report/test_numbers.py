"""The numbers of the report that the lint lacks, each by a second route."""

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import convert
from jasper_mmap.__main__ import main
from jasper_mmap.report.numbers.clusters import CELLS, clusters_of
from jasper_mmap.report.numbers.content import Content, content_of
from jasper_mmap.report.numbers.histograms import histograms_of
from jasper_mmap.report.numbers.shell import command
from jasper_mmap.store.folder import Store
from tests.converting import change, edit, load
from tools.demo.folder import make_builder_folder


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """The cosine of two rows in float64."""
    return float(torch.dot(a.double(), b.double()) / (a.double().norm() * b.double().norm()))


def test_worst_rows_are_those_of_a_slow_search(folder: Path, content: Content) -> None:
    """Row by row: the largest difference, known right sources set aside by number."""
    pairs = load(folder, "pair_index").tolist()
    questions, sources = load(folder, "question_embs"), load(folder, "source_embs")
    store = Store(content.lint.store)
    _, generation = store.current_generation()
    negatives = generation.tables["hard_negatives"].tolist()
    tiers = generation.tables["negative_tiers"].tolist()
    right: dict[int, set[int]] = {}
    for question, source in pairs:
        right.setdefault(question, set()).add(source)
    rows = []
    for pair, (question, _) in enumerate(pairs):
        p = min(cosine(questions[question], sources[s]) for s in right[question])
        for slot, source in enumerate(negatives[pair]):
            if source not in right[question]:
                s = cosine(questions[question], sources[source])
                rows.append((s - p, pair, source, tiers[pair][slot], s, p))
    best: dict[int, Any] = {}
    for row in sorted(rows, key=lambda one: (-one[0], one[1])):
        best.setdefault(row[1], row)
    assert len(content.worst) == 20
    for shown, row in zip(content.worst, [*best.values()][:20], strict=True):
        assert (shown.pair, shown.negative, shown.tier) == row[1:4]
        numbers = (shown.above, shown.similarity, shown.lowest_right)
        assert numbers == pytest.approx((row[0], *row[4:]), abs=2e-6)


def test_clusters_and_their_map_are_those_of_a_decomposition(folder: Path, published: Path) -> None:
    """Sizes by counting; places and variance by singular values, up to the sign of an axis."""
    clusters = clusters_of(Store(published), 42)
    numbers = load(folder, "pair_cluster_id").tolist()
    assert list(clusters.pairs) == [numbers.count(c) for c in range(len(clusters.pairs))]
    sources = load(folder, "source_embs").double().numpy()
    middle = sources.mean(0)
    _, values, axes = np.linalg.svd(sources - middle, full_matrices=False)
    assert clusters.variance == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())
    places = (load(folder, "centroid_embs").double().numpy() - middle) @ axes[:2].T
    signs = np.sign((places * np.array(clusters.centroids)).sum(0))
    assert np.array(clusters.centroids) == pytest.approx(places * signs, abs=1e-6)
    density = np.zeros((CELLS, CELLS), np.int64)
    for x, y in (sources - middle) @ axes[:2].T * signs:
        column = int((x - clusters.x[0]) / (clusters.x[1] - clusters.x[0]) * CELLS)
        density[int((y - clusters.y[0]) / (clusters.y[1] - clusters.y[0]) * CELLS), column] += 1
    assert np.array(clusters.density).tolist() == density.tolist()
    assert clusters.sources == clusters.of == len(sources)


def test_histograms_count_every_value(folder: Path, published: Path) -> None:
    """Each value in the bin that holds it."""
    norms = load(folder, "source_embs").double().norm(dim=1)
    values = {"relevance": load(folder, "pair_relevance"), "source_norm": norms}
    for name, column in values.items():
        one = histograms_of(Store(published), 42)[name]
        step = (one.high - one.low) / len(one.counts)
        bins = ((column.double() - one.low) / step).floor().clamp(max=len(one.counts) - 1)
        assert list(one.counts) == [int((bins == b).sum()) for b in range(len(one.counts))]
        assert (sum(one.counts), one.left_out) == (len(column), 0)


def test_what_is_planted_is_what_to_mend_and_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question in two splits and a zero source come before what is doubtful."""
    folder = make_builder_folder(tmp_path / "it's", n_pairs=80, dim=8, n_neg=4)
    train = load(folder, "train_idx")
    edit(folder, "val_idx", lambda rows: torch.cat((rows, train[:1])))
    change(folder, "source_embs", lambda table: table[3].zero_())
    edit(folder, "negative_tiers", lambda tiers: tiers.flip(1))
    convert(folder)
    content = content_of(folder)
    first, second, third = content.mend
    assert "1 question has pairs in more than one split" in first.what
    assert "zero, NaN or infinite" in second.what
    assert "The tiers are not as described: the most similar first" in third.what
    monkeypatch.chdir(tmp_path)
    for remedy in content.mend:
        monkeypatch.setattr(sys, "argv", shlex.split(remedy.command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert capsys.readouterr().out


def test_rows_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    """NaN has no place on the map, no norm and no row among the worst."""
    folder = make_builder_folder(tmp_path / "folder", n_pairs=40, dim=8, n_neg=4)
    source = int(load(folder, "pair_index")[0, 1])
    change(folder, "source_embs", lambda table: table[source].fill_(torch.nan))
    change(folder, "centroid_embs", lambda table: table[0].fill_(torch.inf))
    convert(folder, allow_nonfinite=True)
    content = content_of(folder)
    assert content.histograms["source_norm"].left_out == 1
    assert content.clusters.sources == content.clusters.of - 1
    assert content.clusters.centroids[0] is None
    assert all(row.negative != source for row in content.worst)


def test_commands_are_quoted_for_the_shell() -> None:
    """Printable, whatever is in a word."""
    assert command("a", Path("b c"), 3, "it's") == "a 'b c' 3 'it'\"'\"'s'"
    assert command("a\x1b\\'\udcff\u202e") == r"$'a\x1b\\\'\xff\xe2\x80\xae'"
