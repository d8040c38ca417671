"""Batches that cross as the number of a slot are those of the oracle, however they are used."""

import copy
import gc
import os
import pickle
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from jasper_mmap import JASPERSteeringDataset
from tests.oracle import Oracle, assert_batches_equal
from tests.serving import CONTEXTS, NamedOracle, variants_of


class RandomBatches:
    """A batch sampler: positions in any order and number, the same in every pass."""

    def __init__(self, n: int, batches: int, most: int, seed: int = 0) -> None:
        dice = random.Random(seed)
        self.batches = [
            [dice.randrange(n) for _ in range(dice.randint(1, most))] for _ in range(batches)
        ]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Rows:
    """The whole train split as the oracle has it; a batch is rows of it."""

    def __init__(self, oracle: Oracle, variants: Sequence[int]) -> None:
        self._whole = oracle.batch("train", range(len(variants)), variants)

    def assert_equal(self, batch: dict[str, Tensor], positions: list[int]) -> None:
        """Require the batch of these positions."""
        assert_batches_equal(batch, {key: rows[positions] for key, rows in self._whole.items()})


@pytest.fixture
def dataset(demo_store: Path) -> Iterator[JASPERSteeringDataset]:
    """Return the train split of the tidy synthetic store."""
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        yield dataset


@pytest.fixture
def rows(dataset: JASPERSteeringDataset, oracle_named: NamedOracle) -> Rows:
    """Return its rows in epoch 0."""
    return Rows(oracle_named("demo"), variants_of(dataset))


def stock(dataset: Any, sampler: Any, workers: int, context: str = "fork", **options: Any) -> Any:
    """Return torch's own loader."""
    if workers:
        options["multiprocessing_context"] = context
    return DataLoader(dataset, batch_sampler=sampler, num_workers=workers, **options)


def crossed_as_numbers(batch: dict[str, Tensor]) -> bool:
    """Whether a batch came in a slot: torch's own transport puts tensors into shared memory that
    it knows as such."""
    return not any(column.is_shared() for column in batch.values())


@pytest.mark.parametrize("context", ["", *CONTEXTS])
def test_batches_kept_and_dropped_at_random_are_never_overwritten(
    dataset: JASPERSteeringDataset, rows: Rows, context: str
) -> None:
    """Of any size, whole or a column or a view of one, over passes of persistent workers."""
    dice = random.Random(1)
    workers = 2 if context else 0
    sampler = RandomBatches(len(dataset), 80, 40)
    loader = stock(dataset, sampler, workers, context, persistent_workers=workers > 0)
    held: list[tuple[dict[str, Tensor], list[int]]] = []
    for _ in range(3):
        for batch, positions in zip(loader, sampler.batches, strict=True):
            assert type(batch) is dict
            assert not workers or crossed_as_numbers(batch)
            name = dice.choice([*batch])
            held.append((batch if dice.random() < 0.7 else {name: batch[name]}, positions))
            while len(held) > 24 or (held and dice.random() < 0.45):
                kept, where = held.pop(dice.randrange(len(held)))
                rows.assert_equal({**_batch_of(rows, where), **kept}, where)
    for kept, where in held:
        rows.assert_equal({**_batch_of(rows, where), **kept}, where)


def _batch_of(rows: Rows, positions: list[int]) -> dict[str, Tensor]:
    return {key: column[positions] for key, column in rows._whole.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_tensors_of_a_batch_are_independent(dataset: JASPERSteeringDataset, workers: int) -> None:
    """Each has a storage of its own, of its own size, and may be changed in place."""
    sampler = RandomBatches(len(dataset), 6, 9)
    for batch in stock(dataset, sampler, workers):
        storages = {column.untyped_storage().data_ptr() for column in batch.values()}
        assert len(storages) == len(batch)
        for column in batch.values():
            assert column.untyped_storage().nbytes() == column.nbytes
            column.zero_()
        batch["question_emb"].requires_grad_()
        batch["steering"].unsqueeze_(0)
        del batch["relevance"]


def changed(samples: list[Any]) -> dict[Any, Any]:
    """A user's collate on top of the default one: changes, adds, renames and deletes entries."""
    batch = default_collate(samples)
    size = len(samples)
    batch["negative_embs"].mul_(2.0)
    batch["steering"] = batch["steering"] + 1
    batch["relevance"] = batch["relevance"].view(torch.int32)
    batch["target_source_emb"] = batch["target_source_emb"].t()
    batch["centroid_distance"].unsqueeze_(1)
    batch["labels"] = batch.pop("cluster_id")
    batch["the same"] = batch["labels"]
    batch["a part"] = batch["question_emb"][size // 2 :]
    batch[7] = {"size": size, "list": [batch["steering"], "text"]}
    if size % 2:
        del batch["negative_tiers"]
        batch["question_emb"].requires_grad_()
    return batch  # type: ignore[no-any-return]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all that is in a nested batch, with its path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inner:
        where = f"{path}/{key!r}"
        if isinstance(item, dict | list | tuple):
            yield from flat(item, where)
        else:
            yield where, item


def assert_alike(got: Any, want: Any) -> None:
    """Require the same keys in the same order and the same values, whatever they are."""
    for (where, one), (expected_where, other) in zip(flat(got), flat(want), strict=True):
        assert where == expected_where
        if isinstance(other, Tensor):
            assert torch.equal(one, other), where
            assert (one.dtype, one.requires_grad) == (other.dtype, other.requires_grad), where
        else:
            assert one == other, where


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_collate_does_to_a_batch_crosses(
    dataset: JASPERSteeringDataset, context: str
) -> None:
    """With workers a batch has the keys, values, dtypes and gradients that it has without."""
    sampler = RandomBatches(len(dataset), 12, 9)
    want = list(stock(dataset, sampler, 0, collate_fn=changed))
    got = list(stock(dataset, sampler, 2, context, collate_fn=changed))
    assert_alike(got, want)
    assert all(type(batch) is dict and batch["the same"] is batch["labels"] for batch in got)


class Pickled:
    """A collate that adds the batch in every form but that of a number."""

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        batch = default_collate(samples)
        return {
            "batch": batch,
            "pickle": pickle.dumps(batch),
            "deep": copy.deepcopy(batch),
            "shallow": copy.copy(batch),
            "again": batch.copy(),
            "spread": {**batch},
            "rebuilt": type(batch)(dict(batch)),
        }


def test_a_slot_crosses_once_and_other_forms_are_data(
    dataset: JASPERSteeringDataset, rows: Rows
) -> None:
    """Pickles, copies and further dicts of one batch are all equal, and stay so."""
    sampler = RandomBatches(len(dataset), 30, 9)
    kept = []
    for number, forms in enumerate(stock(dataset, sampler, 2, collate_fn=Pickled())):
        forms["pickle"] = pickle.loads(forms["pickle"])
        for batch in forms.values():
            assert type(batch) is dict
            rows.assert_equal(batch, sampler.batches[number])
        kept.append([*forms.values()][number % len(forms)])  # the others' end frees nothing of it
    for batch, positions in zip(kept, sampler.batches, strict=True):
        rows.assert_equal(batch, positions)


class Cached(Dataset[Any]):
    """A wrapper that returns the same batch `times` times, and keeps `keep` of them in all."""

    def __init__(self, inner: JASPERSteeringDataset, keep: int) -> None:
        self.inner = inner
        self.keep = keep
        self.kept: dict[tuple[int, ...], Any] = {}

    def __len__(self) -> int:
        return len(self.inner)

    def __getitems__(self, positions: list[int]) -> Any:
        key = tuple(positions)
        if key not in self.kept:
            while len(self.kept) >= self.keep:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = self.inner.__getitems__(positions)
        return self.kept[key]


@pytest.mark.parametrize("keep", [3, 100])
def test_a_wrapper_may_cache_batches(dataset: JASPERSteeringDataset, rows: Rows, keep: int) -> None:
    """What a worker keeps is not overwritten when the trainer has dropped its copy, and comes
    again as it was."""
    sampler = RandomBatches(len(dataset), 20, 9)
    # Again at once in the other worker, and long after the trainer has dropped the first.
    sampler.batches = [batch for batch in sampler.batches for _ in range(2)] * 2
    loader = stock(Cached(dataset, keep), sampler, 2, persistent_workers=True)
    for _ in range(3):
        for batch, positions in zip(loader, sampler.batches, strict=True):
            rows.assert_equal(batch, positions)


def test_a_fork_frees_nothing_of_its_parent(dataset: JASPERSteeringDataset, rows: Rows) -> None:
    """A child that drops its copies of batches gives no slot back to the worker."""
    sampler = RandomBatches(len(dataset), 40, 9)
    batches = iter(stock(dataset, sampler, 2))
    kept = [next(batches) for _ in range(12)]
    child = os.fork()
    if child == 0:
        kept.clear()
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    kept += batches
    for batch, positions in zip(kept, sampler.batches, strict=True):
        rows.assert_equal(batch, positions)


def test_batches_may_die_in_other_threads(dataset: JASPERSteeringDataset, rows: Rows) -> None:
    """As torch's pinning thread drops those that it has copied."""
    sampler = RandomBatches(len(dataset), 60, 9)
    for batch, positions in zip(stock(dataset, sampler, 2), sampler.batches, strict=True):
        box = [batch]
        del batch
        thread = threading.Thread(
            target=lambda box=box, p=positions: rows.assert_equal(box.pop(), p)
        )
        thread.start()
        thread.join()


def test_batches_out_of_order_are_whole(dataset: JASPERSteeringDataset, rows: Rows) -> None:
    """With `in_order=False` each batch comes once."""
    sampler = RandomBatches(len(dataset), 40, 9)
    tagged = stock(Tagged(dataset), sampler, 2, in_order=False, collate_fn=Tagged.collate)
    served = {tag: batch for batch, tag in tagged}
    assert sorted(served) == sorted({tuple(positions) for positions in sampler.batches})
    for positions, batch in served.items():
        rows.assert_equal(batch, list(positions))


class Tagged(Dataset[Any]):
    """A wrapper that gives a batch together with its positions."""

    def __init__(self, inner: JASPERSteeringDataset) -> None:
        self.inner = inner

    def __getitems__(self, positions: list[int]) -> Any:
        return self.inner.__getitems__(positions), tuple(positions)

    @staticmethod
    def collate(pair: Any) -> Any:
        """Collate the samples of such a pair."""
        return default_collate(pair[0]), pair[1]
