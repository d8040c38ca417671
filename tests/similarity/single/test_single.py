"""One pair, question or source, compared with plain loops over the builder's files."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch

from converters import convert
from jasper_mmap.errors import IndexRangeError
from jasper_mmap.files import safetensors
from jasper_mmap.progress import Progress
from jasper_mmap.rules.names import VARIANTS
from jasper_mmap.similarity.single import source as source_module
from jasper_mmap.similarity.single.pair import pair_of
from jasper_mmap.similarity.single.question import question_of
from jasper_mmap.similarity.single.source import source_of
from jasper_mmap.store.folder import Store
from tests.converting import SMALL, change, put
from tests.similarity.slow import MARGIN, Slow, cosine, norm
from tools.demo.folder import make_builder_folder

CLOSE = 1e-9
ALL_FLAGS = {
    "own_source",
    "right_source",
    "right_by_content",
    "margin_false_negative",
    "evaluation_only",
}


def opened(path: Path) -> tuple[Store, dict[str, torch.Tensor]]:
    """Return a store and the tables of its current generation."""
    store = Store(path)
    return store, store.generation()[1].tables


def check_pair(store: Store, tables: dict[str, torch.Tensor], slow: Slow, pair: int) -> set[str]:
    """Compare a pair with what loops give; return its flags."""
    shown = pair_of(store, tables, pair, MARGIN)
    question, own = slow.pairs[pair]
    rights = slow.rights(question)
    cosines = {s: slow.similarity(question, s) for s in rights}
    assert (shown.question, shown.source, [*shown.splits]) == (question, own, slow.splits(pair))
    assert [*shown.right_sources] == rights
    assert shown.cluster == slow.oracle.cluster_ids[pair]
    assert [*shown.keywords] == list(slow.oracle.tables["pair_keyword_ids"][pair])
    assert shown.relevance == float(slow.oracle.tables["pair_relevance"][pair])
    assert shown.similarity == pytest.approx(cosines[own], abs=CLOSE)
    assert shown.lowest_right == pytest.approx(min(cosines.values()), abs=CLOSE)
    assert cosines[shown.lowest_right_source] == pytest.approx(shown.lowest_right, abs=CLOSE)
    assert [n.source for n in shown.negatives] == slow.oracle.hard_negatives[pair]
    assert [n.tier for n in shown.negatives] == slow.oracle.negative_tiers[pair]
    for negative in shown.negatives:
        expected = slow.similarity(question, negative.source)
        assert negative.similarity == pytest.approx(expected, abs=CLOSE)
        assert [*negative.flags] == slow.flags(pair, negative.source)
    asked, right = slow.vector("question_embs", question), slow.vector("source_embs", own)
    beside = {
        "question": asked,
        "centroid": slow.vector("centroid_embs", shown.cluster),
        "source": right,
        "difference": [b - a for a, b in zip(asked, right, strict=True)],
    }
    for variant, direction in enumerate(shown.steering):
        steering = slow.steering(pair, variant)
        assert direction.variant == VARIANTS[variant]
        assert direction.norm == pytest.approx(norm(steering), abs=CLOSE)
        assert direction.rank == slow.rank(pair, variant)
        for name, vector in beside.items():
            assert getattr(direction, name) == pytest.approx(cosine(steering, vector), abs=CLOSE)
    return {flag for negative in shown.negatives for flag in negative.flags}


def test_pairs_are_as_loops_give_them(
    planted: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pair of a folder where every flag is planted, zero vectors too; in pieces of 6 rows."""
    monkeypatch.setattr(safetensors, "CHUNK_BYTES", 6 * 16)
    store, tables = opened(planted)
    flags = [check_pair(store, tables, slow, pair) for pair in range(len(slow.pairs))]
    assert set(chain(*flags)) == ALL_FLAGS


@pytest.mark.parametrize("name", ["float64_uint16", "bfloat16_noncontiguous", "seven_pairs"])
def test_dtypes_make_no_difference(
    name: str, folder_named: Callable[[str], Path], store_named: Callable[[str], Path]
) -> None:
    """Whatever the widths of integers and floats are."""
    store, tables = opened(store_named(name))
    slow = Slow(folder_named(name))
    for pair in (0, len(slow.pairs) // 2, len(slow.pairs) - 1):
        check_pair(store, tables, slow, pair)
        check_question(store, tables, slow, slow.pairs[pair][0])
    check_source(store, tables, slow, slow.pairs[0][1])


def test_zero_vectors_are_named(planted: Path, slow: Slow) -> None:
    """Question, right source, negatives and centroid."""
    store, tables = opened(planted)
    named = set(chain(*(pair_of(store, tables, p, MARGIN).zero_vectors for p in range(60))))
    questions = [q for q in range(slow.pairs[-1][0]) if not norm(slow.vector("question_embs", q))]
    assert {f"question {questions[0]}", "the centroid of cluster 0"} < named
    assert any(name.startswith("source") for name in named)


def check_question(
    store: Store, tables: dict[str, torch.Tensor], slow: Slow, question: int
) -> None:
    """Compare a question with what loops give."""
    shown = question_of(store, tables, question)
    pairs = [p for p, (q, _) in enumerate(slow.pairs) if q == question]
    assert [p.pair for p in shown.pairs] == pairs
    for one in shown.pairs:
        own = slow.pairs[one.pair][1]
        assert (one.source, [*one.splits]) == (own, slow.splits(one.pair))
        assert one.similarity == pytest.approx(slow.similarity(question, own), abs=CLOSE)
        assert [(s.pair, s.tier) for s in one.negative_in] == [
            (p, tier)
            for p in pairs
            for n, tier in zip(
                slow.oracle.hard_negatives[p], slow.oracle.negative_tiers[p], strict=True
            )
            if n == own
        ]
    lowest = min((slow.similarity(question, s) for s in slow.rights(question)), default=None)
    assert shown.lowest_right == (None if lowest is None else pytest.approx(lowest, abs=CLOSE))


def test_questions_are_as_loops_give_them(planted: Path, slow: Slow) -> None:
    """Every question, with several right sources or one."""
    store, tables = opened(planted)
    for question in range(len(slow.oracle.tables["question_embs"])):
        check_question(store, tables, slow, question)


def check_source(store: Store, tables: dict[str, torch.Tensor], slow: Slow, source: int) -> None:
    """Compare a source with what loops give."""
    shown = source_of(store, tables, source, Progress(None))
    oracle = slow.oracle
    right = [p for p, (_, s) in enumerate(slow.pairs) if s == source]
    assert [r.pair for r in shown.right] == right
    assert all([*r.splits] == slow.splits(r.pair) for r in shown.right)
    assert shown.evaluation_only == slow.evaluation_only(source)
    slots = [
        (slow.similarity(slow.pairs[pair][0], source), pair, tier)
        for pair, row in enumerate(oracle.hard_negatives)
        for negative, tier in zip(row, oracle.negative_tiers[pair], strict=True)
        if negative == source
    ]
    tiers = [tier for _, _, tier in slots]
    assert shown.negative_slots == {tier: tiers.count(tier) for tier in (1, 2, 3, 4)}
    n_pairs, n_neg = oracle.tables["hard_negatives"].shape
    n_sources = len(oracle.tables["source_embs"])
    assert shown.mean_slots == pytest.approx(n_pairs * n_neg / n_sources)
    nearest = sorted(slots, reverse=True)[: len(shown.nearest_rows)]
    assert len(nearest) == min(len(slots), source_module.MOST_LISTED)
    for row, (similarity, _, _) in zip(shown.nearest_rows, nearest, strict=True):
        question, own = slow.pairs[row.pair]
        assert (row.pair, row.tier) in [(pair, tier) for _, pair, tier in slots]
        assert row.similarity == pytest.approx(similarity, abs=CLOSE)
        assert row.own_similarity == pytest.approx(slow.similarity(question, own), abs=CLOSE)
        assert row.right == (source in slow.rights(question))
    vector = slow.vector("source_embs", source)
    others = [
        cosine(vector, slow.vector("source_embs", s)) for s in range(n_sources) if s != source
    ]
    near = [n.cosine for n in shown.nearest_sources]
    assert near == pytest.approx(sorted(others, reverse=True)[: len(near)], abs=CLOSE)
    assert len(near) == min(len(others), source_module.MOST_LISTED)


def test_sources_are_as_loops_give_them(
    planted: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right ones, negatives, unused and zero ones; in blocks of few rows too."""
    store, tables = opened(planted)
    zero = slow.pairs[slow.oracle.splits["test"][0]][1]
    negatives = slow.oracle.hard_negatives[slow.oracle.splits["train"][0]]
    for source in {zero, *negatives, 0}:
        check_source(store, tables, slow, source)
    monkeypatch.setattr(source_module, "CHUNK_BYTES", 8 * 8 * 5)
    check_source(store, tables, slow, negatives[0])


@pytest.mark.parametrize("row", [-1, 10**30])
def test_rows_out_of_range_are_refused(demo_store: Path, row: int) -> None:
    """At both ends; a negative number does not count from the end."""
    store, tables = opened(demo_store)
    sizes = store.manifest.sizes
    with pytest.raises(IndexRangeError, match=rf"^pair {row} out of range: there are 500 pairs"):
        pair_of(store, tables, row, MARGIN)
    with pytest.raises(IndexRangeError, match=rf"numbered 0 to {sizes['N_q'] - 1}\.$"):
        question_of(store, tables, row)
    with pytest.raises(IndexRangeError, match=rf"^source {row} out of range"):
        source_of(store, tables, row, Progress(None))
    for kind, letter in (("pair", "N_p"), ("question", "N_q"), ("source", "N_s")):
        with pytest.raises(IndexRangeError, match=f"^{kind} {sizes[letter]} out of range"):
            {
                "pair": lambda n: pair_of(store, tables, n, MARGIN),
                "question": lambda n: question_of(store, tables, n),
                "source": lambda n: source_of(store, tables, n, Progress(None)),
            }[kind](sizes[letter])


def test_values_that_are_not_finite_have_no_similarity(tmp_path: Path) -> None:
    """None, not NaN, which JSON does not have; the others keep theirs."""
    folder = make_builder_folder(tmp_path / "folder", **SMALL)
    slow = Slow(folder)
    question, own = slow.pairs[5]
    put(folder, "source_embs", slow.oracle.hard_negatives[5][1], float("nan"))
    put(folder, "steering_centroid", 5, float("inf"))
    convert(folder, allow_nonfinite=True)
    shown = pair_of(*opened(folder), 5, MARGIN)
    similarities = [n.similarity for n in shown.negatives]
    assert similarities[1] is None
    assert None not in similarities[:1] + similarities[2:]
    assert [n.flags for n in shown.negatives][1] == ()
    assert shown.similarity == pytest.approx(slow.similarity(question, own), abs=CLOSE)
    assert [d.norm is None for d in shown.steering] == [False, True, False, False]
    assert {d.rank for d in shown.steering} == {None}
    change(folder, "source_embs", lambda t: t[own].fill_(float("nan")))
    convert(folder, allow_nonfinite=True)
    shown = pair_of(*opened(folder), 5, MARGIN)
    assert shown.similarity is None
    rights = [s for s in slow.rights(question) if s != own]
    lowest = min((slow.similarity(question, s) for s in rights), default=None)
    assert shown.lowest_right == (None if lowest is None else pytest.approx(lowest, abs=CLOSE))


def test_real_folder_has_two_right_sources_among_the_negatives(real_store: Path) -> None:
    """Pair 1577: its own right source is at 0.138, two others of its question are negatives."""
    store, tables = opened(real_store)
    pair = pair_of(store, tables, 1577, MARGIN)
    assert (pair.question, pair.splits) == (1291, ("train",))
    assert round(pair.similarity or 0, 3) == 0.138
    right = [n for n in pair.negatives if "right_source" in n.flags]
    assert sorted(round(n.similarity or 0, 3) for n in right) == [0.769, 0.776]
    assert {n.tier for n in right} == {3}
    question = question_of(store, tables, 1291)
    standing = {p.source: {s.tier for s in p.negative_in} for p in question.pairs}
    assert {n.source for n in right} <= {s for s, tiers in standing.items() if tiers == {3}}
