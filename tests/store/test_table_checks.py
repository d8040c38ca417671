"""What a table may hold is checked at both ends, and every error says where."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from jasper_mmap.errors import ContentError, ContentTypeError, FormatError, IndexRangeError
from jasper_mmap.files import safetensors
from jasper_mmap.rules.names import SPLITS
from jasper_mmap.rules.schema import ARTIFACTS, FLOAT_DTYPES, INT_DTYPES
from jasper_mmap.store import lint
from jasper_mmap.store.lint import count_unsuitable, lint_splits
from jasper_mmap.store.table_checks import TableCheck, check_form, check_offsets, check_ranges

SIZES = {"N_q": 20, "N_s": 30, "N_k": 7, "N_c": 5, "N_p": 40, "D": 4, "N": 3}


def fed(name: str, table: torch.Tensor, step: int = 3, **options: Any) -> TableCheck:
    """Feed a whole table in pieces of `step` rows."""
    check = TableCheck(ARTIFACTS[name], SIZES, "the/file.pt", **options)
    for begin in range(0, len(table), step):
        check.feed(table[begin : begin + step])
    return check


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pair_index", "pair_index references question {v} in row 12, column 0, but question_embs"),
        ("hard_negatives", "hard_negatives references source {v} in row 12, column 0, but source"),
        ("pair_cluster_id", "pair_cluster_id references centroid {v} in row 12, but centroid_embs"),
        ("train_idx", "Split indices reference pair {v} in row 12, but pair_index has 40 rows"),
    ],
)
@pytest.mark.parametrize("value", [-1, 9999])
def test_an_index_outside_its_table_is_named(name: str, words: str, value: int) -> None:
    """Both ends, in the first row and piece where it happens."""
    width = {1: (), 2: (2 if name == "pair_index" else 3,)}[len(ARTIFACTS[name].shape)]
    table = torch.zeros((15, *width), dtype=torch.int64)
    table.view(15, -1)[12, 0] = value
    table.view(15, -1)[14, -1] = value
    with pytest.raises(IndexRangeError) as caught:
        fed(name, table)
    assert "the/file.pt" in str(caught.value)
    assert words.format(v=value) in str(caught.value)


def test_each_column_has_the_bounds_of_its_own_table() -> None:
    """Question 19 and source 29 are the last ones."""
    check = fed("pair_index", torch.tensor([[19, 29], [3, 1]]))
    assert check.ranges == ((3, 19), (1, 29))
    with pytest.raises(IndexRangeError, match="references question 20 in row 1, column 0"):
        fed("pair_index", torch.tensor([[19, 29], [20, 29]]))
    with pytest.raises(IndexRangeError, match="references source 30 in row 1, column 1"):
        fed("pair_index", torch.tensor([[19, 29], [19, 30]]))


@pytest.mark.parametrize("dtype", INT_DTYPES)
def test_every_integer_width_is_checked(dtype: torch.dtype) -> None:
    """The largest value of the type is refused, and no value is misread."""
    table = torch.from_numpy(np.array([[1, 4, 2]]).astype(str(dtype).removeprefix("torch.")))
    assert fed("negative_tiers", table).ranges == ((1, 4),)
    most = torch.iinfo(dtype).max
    table.numpy()[0, 1] = most
    with pytest.raises(ContentError, match=f"holds {most} in row 0, column 1; it must be 1"):
        fed("negative_tiers", table)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_are_refused_or_counted(dtype: torch.dtype, value: float) -> None:
    """The first is named; allowed ones are counted exactly and excused from bounds."""
    table = torch.full((10, 4), 0.5, dtype=dtype)
    table[7, 2] = table[8, 0] = table[8, 1] = value
    with pytest.raises(ContentError, match=r"question_embs holds -?(nan|inf) in row 7, column 2"):
        fed("question_embs", table)
    assert fed("question_embs", table, allow_nonfinite=True).nonfinite == 3
    relevance = fed("pair_relevance", table[:, 2], allow_nonfinite=True)
    assert (relevance.nonfinite, relevance.ranges) == (1, ((0.5, 0.5),))


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("value", [-0.001, 1.001])
def test_bounded_floats_are_checked_at_both_ends(value: float, allowed: bool) -> None:
    """Also beside NaN, where that is allowed."""
    table = torch.tensor([0.0, 1.0, 0.5, math.nan if allowed else 0.2, value])
    with pytest.raises(ContentError, match=r"pair_relevance holds \S+ in row 4; it must"):
        fed("pair_relevance", table, 5, allow_nonfinite=allowed)


def test_a_ragged_list_names_row_and_element() -> None:
    """Whatever piece the value comes in, and past empty rows."""
    offsets = torch.tensor([0, 2, 2, 5, 6])
    with pytest.raises(IndexRangeError, match="references keyword 7 in row 2, element 1"):
        fed("pair_keyword_ids", torch.tensor([0, 6, 1, 7, 2, 3]), 2, offsets=offsets)
    with pytest.raises(IndexRangeError, match="references keyword -1 in row 2, element 0"):
        fed("pair_keyword_ids", torch.tensor([0, 6, -1, 1, 2, 3]), 2, offsets=offsets)


def test_an_empty_table_has_no_ranges() -> None:
    """Nothing was seen, so nothing is claimed."""
    assert fed("val_idx", torch.zeros(0, dtype=torch.int64)).ranges == ()


def test_stored_ranges_tell_that_a_table_shrank() -> None:
    """An unchanged table needs no reading to be refused."""
    check_ranges(ARTIFACTS["pair_index"], [(0, 19), (0, 29)], SIZES, "f")
    check_ranges(ARTIFACTS["val_idx"], [], SIZES, "f")
    with pytest.raises(IndexRangeError, match="pair_index references source 30 in column 1"):
        check_ranges(ARTIFACTS["pair_index"], [(0, 19), (0, 30)], SIZES, "f")


@pytest.mark.parametrize(
    ("name", "table", "error", "words"),
    [
        ("question_embs", torch.zeros(20, 5), ContentError, "5 columns, but 'embedding_dim'"),
        ("question_embs", torch.zeros(3), ContentError, r"1 dimensions, \[3\]"),
        ("question_embs", torch.zeros(3, 4).int(), ContentTypeError, "holds int32"),
        ("pair_index", torch.zeros(40, 3).int(), ContentError, "3 columns, but it must have 2"),
        ("pair_index", torch.zeros(40, 2), ContentTypeError, "must hold integers"),
        ("pair_index", torch.zeros(40, 2).bool(), ContentTypeError, "holds bool"),
        ("pair_cluster_id", torch.zeros(39).int(), ContentError, "39 rows, but pair_index has 40"),
        ("hard_negatives", torch.zeros(40, 2).int(), ContentError, "2 columns, but 'n_neg'"),
        ("train_idx", torch.zeros(0).int(), ContentError, "at least one pair"),
        ("source_embs", torch.tensor(1.0), ContentError, "0 dimensions"),
    ],
)
def test_a_wrong_form_is_named(
    name: str, table: torch.Tensor, error: type[Exception], words: str
) -> None:
    """Rank, size against the table or config key that says otherwise, and dtype."""
    with pytest.raises(error, match=words):
        check_form(ARTIFACTS[name], table.dtype, tuple(table.shape), dict(SIZES), "f.pt")


def test_the_first_table_with_a_letter_defines_it() -> None:
    """A split's length is its own and defines none."""
    sizes = {"D": 4, "N": 3}
    check_form(ARTIFACTS["question_embs"], torch.float16, (9, 4), sizes, "f")
    check_form(ARTIFACTS["val_idx"], torch.int64, (0,), sizes, "f")
    assert sizes == {"D": 4, "N": 3, "N_q": 9}


def test_offsets_must_rise_from_0_to_the_number_of_values() -> None:
    """Each way in which they do not is refused."""
    check_offsets(torch.tensor([0, 0, 3, 3]), 3, "f")
    check_offsets(torch.tensor([0]), 0, "f")
    for wrong in ([1, 3], [0, 2], [0, 2, 1, 3], [0, -1, 3], []):
        with pytest.raises(FormatError, match="must rise from 0 to 3"):
            check_offsets(torch.tensor(wrong, dtype=torch.int64), 3, "f")


def slow_lint(pairs: list[list[int]], negatives: list[list[int]]) -> dict[str, int]:
    """Count row by row."""
    counts = dict.fromkeys(("own_source_rows", "false_negative_rows", "repeat_rows"), 0)
    for (question, source), row in zip(pairs, negatives, strict=True):
        true = {s for q, s in pairs if q == question} - {source}
        counts["own_source_rows"] += source in row
        counts["false_negative_rows"] += bool(true & set(row))
        counts["repeat_rows"] += any(a == b for a, b in pairwise(sorted(row)))
    return counts


@pytest.mark.parametrize("block", [None, 16])
def test_negatives_are_linted_as_a_slow_count_does(
    block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block and in many; with unsigned numbers too."""
    if block is not None:
        monkeypatch.setattr(lint, "_KNOWN_PAIRS", block)
        monkeypatch.setattr(lint, "_CELLS", 7)
    generator = torch.Generator().manual_seed(3)
    pairs = torch.randint(25, (200, 2), generator=generator)
    negatives = torch.randint(25, (200, 4), generator=generator)
    counts = count_unsuitable(pairs.to(torch.uint16), negatives.to(torch.uint64), 25)
    assert counts == slow_lint(pairs.tolist(), negatives.tolist())
    assert all(counts.values())


def test_real_negatives_hold_false_ones_in_a_third_of_the_rows(real_folder: Any) -> None:
    """As the builder's README says."""
    pairs, negatives = (
        torch.load(real_folder / f"{n}.pt") for n in ("pair_index", "hard_negatives")
    )
    counts = count_unsuitable(pairs, negatives, 4166)
    assert counts["own_source_rows"] == 0
    assert round(counts["false_negative_rows"] / 4806, 2) == 0.32


def test_splits_are_linted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair is counted once however often it stands there, across pieces too."""
    monkeypatch.setattr(safetensors, "CHUNK_BYTES", 16)
    rows = ([0, 1, 2, 2, 9, 0], [3, 1, 2], [4, 4, 4, 1])
    splits = dict(zip(map(str, SPLITS), map(torch.tensor, rows), strict=True))
    assert lint_splits(splits, 10) == {"pairs_in_two_splits": 2, "pairs_twice_in_a_split": 3}
