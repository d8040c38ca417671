"""Rows of tables go to their places in a batch: every dtype and target, against plain indexing."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jasper_mmap.dataset import gather
from jasper_mmap.dataset.batch_layout import Layout, Target, empty_batch
from jasper_mmap.dataset.device.stack import Stack, steering_begins
from jasper_mmap.dataset.gather import Lookup, SingleLookup, rows_of
from jasper_mmap.rules.schema import COLUMNS, GATHERED, PLAIN, STEERING
from tests.oracle import assert_batches_equal

PAIRS, QUESTIONS, SOURCES = 40, 11, 17
CPU = torch.device("cpu")
INT64, FLOAT32 = torch.int64, torch.float32
FORMS: dict[str, dict[str, torch.dtype]] = {
    "as served": {},
    "narrow": {"embeddings": torch.float16, "relevance": torch.float64},
    "odd integers": {"integers": torch.uint16, "tiers": torch.uint8, "clusters": torch.int32},
    "mixed": {"sources": torch.float64, "steering": torch.bfloat16},
}
JOINED = [name for name in FORMS if name != "mixed"]


def made(form: str, dim: int, n_neg: int) -> dict[str, Tensor]:
    """Return the tables of a store and a generation, of the dtypes of a form."""
    torch_dice = torch.Generator().manual_seed(dim + n_neg)
    dtypes = FORMS[form]
    embeddings = dtypes.get("embeddings", FLOAT32)

    def numbers(below: int, *shape: int, kind: str = "integers") -> Tensor:
        drawn = torch.randint(below, shape, generator=torch_dice)
        return drawn.to(dtypes.get(kind, dtypes.get("integers", INT64)))

    def vectors(rows: int, kind: str) -> Tensor:
        return torch.randn(rows, dim, generator=torch_dice).to(dtypes.get(kind, embeddings))

    ends = (numbers(QUESTIONS, PAIRS).to(INT64), numbers(SOURCES, PAIRS).to(INT64))
    return {
        "question_embs": vectors(QUESTIONS, "questions"),
        "source_embs": vectors(SOURCES, "sources"),
        **{name: vectors(PAIRS, "steering") for name in STEERING if name},
        "pair_index": torch.stack(ends, 1).to(dtypes.get("integers", INT64)),
        "hard_negatives": numbers(SOURCES, PAIRS, n_neg),
        "negative_tiers": numbers(4, PAIRS, n_neg, kind="tiers"),
        "pair_cluster_id": numbers(200, PAIRS, kind="clusters"),
        "pair_relevance": torch.rand(PAIRS).to(dtypes.get("relevance", FLOAT32)),
        "centroid_distances": torch.rand(PAIRS),
    }


def joined(tables: Mapping[str, Tensor]) -> Stack:
    """Return the embeddings as one table, rows apart, as a store's are mapped."""
    dim, dtype = tables["question_embs"].shape[1], tables["question_embs"].dtype
    parts, first, begin = [torch.zeros(1, dim, dtype=dtype)], {}, 1
    for name in GATHERED:
        gap = torch.full((2, dim), torch.nan, dtype=dtype)
        first[name] = begin + 2
        begin += 2 + len(tables[name])
        parts += [gap, tables[name]]
    return Stack(torch.cat(parts), first, {}, steering_begins(first))


def expected(tables: Mapping[str, Tensor], pairs: list[int], variants: list[int]) -> dict[str, Any]:
    """Return the batch, row by row."""
    rows = []
    for pair, variant in zip(pairs, variants, strict=True):
        question, source = tables["pair_index"][pair].tolist()
        steering, sources = STEERING[variant], tables["source_embs"]
        wide = {
            "question_emb": tables["question_embs"][question],
            "target_source_emb": sources[source],
            "steering": torch.zeros_like(sources[0])
            if steering is None
            else tables[steering][pair],
            "negative_embs": torch.stack(
                [sources[n] for n in tables["hard_negatives"][pair].tolist()]
            ),
        }
        plain = {
            "cluster_id": tables["pair_cluster_id"][pair].item(),
            "relevance": tables["pair_relevance"][pair].item(),
            "centroid_distance": tables["centroid_distances"][pair].item(),
            "steering_variant": variant,
            "negative_tiers": tables["negative_tiers"][pair].tolist(),
        }
        rows.append({**wide, **plain})
    return {
        name: torch.stack([torch.as_tensor(row[name]).to(column.dtype) for row in rows])
        for name, column in COLUMNS.items()
    }


def targets(size: int, dim: int, n_neg: int) -> list[Target]:
    """Return places of their own, and those in a buffer; what is in them before is no batch."""
    layout = Layout(size, dim, n_neg)
    fresh = empty_batch(size, dim, n_neg, CPU)
    buffer = np.full(layout.nbytes, 77, np.uint8)
    for column in fresh.values():
        column.fill_(77)
    return [Target(fresh), layout.target(buffer.data, size)]


def drawn(dice: random.Random, count: int) -> tuple[list[int], list[int]]:
    """Return pairs, which repeat, and their variants: all of them, and one only."""
    pairs = [dice.randrange(PAIRS) for _ in range(count)]
    return pairs, [dice.choice([0, 1, 2, 3, 0]) for _ in pairs]


def generation_of(tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tables of the generation."""
    return {name: tables[name] for name in ("hard_negatives", "negative_tiers")}


def lookup_of(
    form: str, dim: int, n_neg: int, batches: int, size: int, queued: bool
) -> tuple[dict[str, Tensor], Lookup]:
    """Return tables and a look-up; its own generation is another one."""
    tables = made(form, dim, n_neg)
    stack = joined(tables) if form in JOINED else None
    other = {name: torch.zeros_like(table) for name, table in generation_of(tables).items()}
    lookup = Lookup(
        {**tables, **other}, stack, batches=batches, batch_size=size, n_neg=n_neg, queued=queued
    )
    return tables, lookup


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_batches_of_a_look_up_are_the_rows_of_their_pairs(form: str, queued: bool) -> None:
    """In any order, in places of any kind, and again in what an earlier look-up has left."""
    dice = random.Random(1)
    for dim, n_neg, batches, size in ((16, 1, 1, 1), (5, 3, 3, 4), (16, 4, 2, 6)):
        tables, lookup = lookup_of(form, dim, n_neg, batches, size, queued)
        assert lookup.shape == (batches, size)
        for _ in range(2):
            pairs, variants = drawn(dice, batches * size)
            lookup.load(generation_of(tables), torch.tensor(pairs), torch.tensor(variants))
            for number in dice.sample(range(batches), batches):
                part = slice(number * size, (number + 1) * size)
                want = expected(tables, pairs[part], variants[part])
                for target in targets(size, dim, n_neg):
                    lookup.fill(number, target)
                    assert_batches_equal(target.columns, want, where=f"{dim} {n_neg} {number}")


@pytest.mark.parametrize("form", FORMS)
def test_plain_columns_can_go_to_their_places_at_once(form: str) -> None:
    """Then only the embeddings remain; whoever asks for both again is refused."""
    tables, lookup = lookup_of(form, 16, 3, 1, 6, False)
    pairs, variants = drawn(random.Random(2), 6)
    want = expected(tables, pairs, variants)
    for target in targets(6, 16, 3):
        plain = {column.name: target.columns[column.name] for column in PLAIN}
        lookup.load(generation_of(tables), torch.tensor(pairs), torch.tensor(variants), plain)
        lookup.fill_wide(0, target)
        assert_batches_equal(target.columns, want)
        with pytest.raises(AssertionError, match=r"use fill_wide\(\)"):
            lookup.fill(0, target)
    lookup.load(generation_of(tables), torch.tensor(pairs), torch.tensor(variants))
    lookup.fill(0, target)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_will_be_read_are_those_of_the_batch(form: str) -> None:
    """Column after column; the steering of tables that are not joined has none."""
    tables, lookup = lookup_of(form, 16, 3, 2, 6, False)
    pairs, variants = drawn(random.Random(3), 12)
    lookup.load(generation_of(tables), torch.tensor(pairs), torch.tensor(variants))
    for number in range(2):
        want = expected(tables, pairs[number * 6 :][:6], variants[number * 6 :][:6])
        read = [table[rows].to(FLOAT32) for table, rows in lookup.rows_read(number)]
        columns = [want["question_emb"], want["target_source_emb"], want["steering"]]
        columns.append(want["negative_embs"].flatten(0, 1))
        if form not in JOINED:
            del columns[2]
        assert len(read) == len(columns)
        assert all(torch.equal(*both) for both in zip(read, columns, strict=True))


@pytest.mark.parametrize("dim", [5, 16])
@pytest.mark.parametrize("form", FORMS)
def test_single_batches_are_the_rows_of_their_positions(form: str, dim: int) -> None:
    """Of changing sizes; where it cannot write it says so, and then another look-up does."""
    tables, dice = made(form, dim, 3), random.Random(4)
    split = torch.tensor(dice.sample(range(PAIRS), 30))
    stack = joined(tables) if form in JOINED else None
    single = SingleLookup.of(tables, generation_of(tables), stack, split)
    if form in ("mixed", "odd integers"):
        assert single is None
        return
    assert single is not None
    for size in (4, 4, 1, 9, 4, 9):
        positions = np.array([dice.randrange(30) for _ in range(size)])
        variants = np.array([dice.randrange(4) for _ in range(size)])
        own, buffered = targets(size, dim, 3)
        assert not single.read(positions, variants, own)
        assert single.read(positions, variants, buffered) == (dim == 16)
        if dim == 16:
            pairs = split[torch.from_numpy(positions)].tolist()
            assert_batches_equal(buffered.columns, expected(tables, pairs, variants.tolist()))


def test_single_look_up_needs_its_own_forms() -> None:
    """Joined tables, and int64 wherever numpy indexes."""
    tables = made("as served", 16, 3)
    split, stack = torch.arange(PAIRS), joined(tables)
    assert SingleLookup.of(tables, generation_of(tables), stack, split) is not None
    assert SingleLookup.of(tables, generation_of(tables), None, split) is None
    assert SingleLookup.of(tables, generation_of(tables), stack, split.int()) is None
    for name in ("pair_index", "hard_negatives"):
        other = {**tables, name: tables[name].int()}
        assert SingleLookup.of(other, generation_of(other), stack, split) is None


@pytest.mark.parametrize("wrong", [PAIRS, -1])
def test_pair_that_does_not_exist_is_not_read(wrong: int) -> None:
    """A damaged split: the last pair that exists is read, the next one is not."""
    tables = made("as served", 16, 3)
    split = torch.tensor([0, PAIRS - 1, wrong])
    single = SingleLookup.of(tables, generation_of(tables), joined(tables), split)
    assert single is not None
    zeros = np.zeros(2, np.int64)
    _, target = targets(2, 16, 3)
    assert single.read(np.array([0, 1]), zeros, target)
    assert not single.read(np.array([0, 2]), zeros, target)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, INT64])
def test_rows_of_unsigned_tables_keep_their_numbers(dtype: torch.dtype) -> None:
    """Also those that a signed integer of their width cannot hold."""
    largest = torch.iinfo(dtype).max if dtype.itemsize < 8 else 2**62
    table = torch.tensor([[0, 1], [largest, 2]], dtype=dtype)
    rows = rows_of(table, torch.tensor([1, 0, 1]))
    assert rows.tolist() == [[largest, 2], [0, 1], [largest, 2]]
    assert rows.dtype == (INT64 if dtype.itemsize > 1 else dtype)


def test_pieces_of_a_large_read_are_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few bytes here, so that there are many: none is larger than that, if a row is not."""
    table = torch.arange(60, dtype=torch.float64).reshape(10, 6)
    index = torch.tensor([9, 0, 3, 3, 7, 1, 8])
    pieces: list[int] = []

    def noted(table: Tensor, index: Tensor) -> Tensor:
        pieces.append(len(index))
        return rows_of(table, index)

    monkeypatch.setattr(gather, "rows_of", noted)
    for limit, want in ((1, [1] * 7), (96, [2, 2, 2, 1]), (143, [2, 2, 2, 1]), (10**6, [7])):
        monkeypatch.setattr(gather, "_PIECE_BYTES", limit)
        out = torch.full((7, 6), 77.0)
        gather._read(table, index, out)
        assert torch.equal(out, table[index].to(FLOAT32))
        assert pieces == want
        pieces.clear()
