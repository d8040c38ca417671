"""Torch's own DataLoader, Subset, ConcatDataset and collate work over the dataset."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.dataset.samples import Sample
from tests.oracle import VARIANTS, Oracle, assert_batches_equal
from tests.serving import CONTEXTS, NamedOracle, variants_in_epoch, variants_of

QUEUED = 4  # batches of two workers with torch's default prefetch_factor of 2


def in_batches(variants: Sequence[int]) -> list[list[int]]:
    """Return the variants of the batches of 8 of an unshuffled pass."""
    return [list(variants[start : start + 8]) for start in range(0, len(variants), 8)]


def served_variants(
    loader: "DataLoader[Any]", oracle: Oracle, after_first: Callable[[], None] | None = None
) -> list[list[int]]:
    """Serve one pass of train, every batch the oracle's; return the variants of each."""
    served: list[list[int]] = []
    for positions, batch in zip(
        in_batches(range(len(oracle.splits["train"]))), loader, strict=True
    ):
        served.append(batch["steering_variant"].tolist())
        assert_batches_equal(batch, oracle.batch("train", positions, served[-1]))
        if after_first and len(served) == 1:
            after_first()
    return served


@pytest.mark.parametrize("context", CONTEXTS)
def test_control_reaches_workers_of_a_stock_dataloader(
    demo_store: Path, oracle_named: NamedOracle, context: str
) -> None:
    """With torch's own loader and collate only the batches already queued may be older."""
    oracle = oracle_named("demo")
    old, new = (in_batches(variants_in_epoch(demo_store, "train", epoch)) for epoch in (0, 7))
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=8,
            num_workers=2,
            persistent_workers=True,
            multiprocessing_context=context,
        )
        assert served_variants(loader, oracle) == old
        during = served_variants(loader, oracle, after_first=lambda: dataset.set_epoch(7))
        assert during[0] == old[0]
        assert during[1 + QUEUED :] == new[1 + QUEUED :]
        assert all(batch in either for batch, *either in zip(during, old, new, strict=True))
        assert served_variants(loader, oracle) == new
        dataset.force_steering("keyword")
        keyword = [VARIANTS.index("keyword")] * len(dataset)
        assert served_variants(loader, oracle) == in_batches(keyword)
        dataset.force_steering(None)
        dataset.set_epoch(0)
        assert served_variants(loader, oracle) == old
        del loader


@pytest.mark.parametrize("workers", [0, 2])
def test_subset_with_default_collate_equals_the_oracle(
    demo_store: Path, oracle_named: NamedOracle, workers: int
) -> None:
    """A Subset serves whole batches of the positions it was given."""
    positions = [*range(40, 0, -3), 7, 7]
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        drawn = variants_of(dataset)
        loader: DataLoader[Any] = DataLoader(
            Subset(dataset, positions), batch_size=5, num_workers=workers
        )
        for number, batch in enumerate(loader):
            part = positions[5 * number : 5 * number + 5]
            want = oracle_named("demo").batch("train", part, [drawn[i] for i in part])
            assert_batches_equal(batch, want)
        assert number == (len(positions) - 1) // 5
        del loader


@pytest.mark.parametrize("workers", [0, 2])
def test_concatenated_splits_with_default_collate_equal_the_oracle(
    demo_store: Path, oracle_named: NamedOracle, workers: int
) -> None:
    """A ConcatDataset serves one split after the other, also in a batch that spans both."""
    oracle = oracle_named("demo")
    parts = [JASPERSteeringDataset(demo_store, split) for split in ("val", "test")]
    rows = [
        oracle.sample(part.split, position, variant)
        for part in parts
        for position, variant in enumerate(variants_of(part))
    ]
    loader: DataLoader[Any] = DataLoader(ConcatDataset(parts), batch_size=13, num_workers=workers)
    served = list(loader)
    assert sum(len(batch["relevance"]) for batch in served) == len(rows)
    for number, batch in enumerate(served):
        part_rows = rows[13 * number : 13 * number + 13]
        want = {key: torch.stack([row[key] for row in part_rows]) for key in rows[0]}
        assert_batches_equal(batch, want)
    del loader
    for part in parts:
        part.close()


def keep_samples(samples: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Collate nothing: return copies of the samples as they came."""
    assert all(isinstance(sample, dict) for sample in samples)
    assert len(samples) == len(list(samples))
    assert set(samples[0]) == set(samples[len(samples) - 1])
    return [{key: value.clone() for key, value in sample.items()} for sample in samples]


@pytest.mark.parametrize("workers", [0, 2])
def test_custom_collate_sees_a_sequence_of_samples(
    demo_store: Path, oracle_named: NamedOracle, workers: int
) -> None:
    """A `collate_fn` of the user's own gets B dicts, each a row of the batch."""
    with JASPERSteeringDataset(demo_store, "val") as dataset:
        drawn, position = variants_of(dataset), 0
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=6, num_workers=workers, collate_fn=keep_samples
        )
        for samples in loader:
            assert len(samples) == min(6, len(dataset) - position)
            for sample in samples:
                want = oracle_named("demo").sample("val", position, drawn[position])
                assert_batches_equal(sample, want)
                position += 1
        assert position == len(dataset)
        del loader


def test_first_sample_of_a_batch_is_a_sample(demo_store: Path) -> None:
    """Looked at by index or in turn; nothing of it is made before."""
    rows: Any = JASPERSteeringDataset(demo_store, "train").__getitems__([3, 5])
    first, (again, _) = rows[0], rows
    collated: Any = default_collate(rows)
    assert isinstance(first, Sample)
    for sample in (first, again, rows[0], copy.copy(rows[0])):
        assert [*sample] == [*collated]
        for name, value in sample.items():
            assert torch.equal(value, collated[name][0])
        assert type(sample) is Sample
        assert not vars(sample)


def in_json(samples: Any) -> str:
    """A collate in C that asks a dict for its size, and calls a method only where it is not 0."""
    try:
        return json.dumps(default_collate(samples))
    except TypeError as error:
        return str(error)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_code_in_c_sees_an_empty_batch(demo_store: Path, workers: int) -> None:
    """Neither of the first sample, nor of a batch that nobody used before."""
    dataset: Any = JASPERSteeringDataset(demo_store, "train")
    with pytest.raises(TypeError, match="Tensor is not JSON"):
        json.dumps(dataset.__getitems__([3, 5])[0])
    loader: Any = DataLoader(dataset, 4, num_workers=workers, collate_fn=in_json)
    assert "Tensor is not JSON" in next(iter(loader))


def test_first_samples_of_batches_are_collated(demo_store: Path) -> None:
    """Where a wrapper puts them together."""
    dataset: Any = JASPERSteeringDataset(demo_store, "train")
    apart = default_collate([dataset.__getitems__([position])[0] for position in (3, 5)])
    assert_batches_equal(apart, default_collate(dataset.__getitems__([3, 5])))


def changed_elsewhere(samples: Any) -> Any:
    """A collate whose batch nobody used, but whose tensors another dict of it has changed."""
    batch, other = default_collate(samples), default_collate(samples)
    other["negative_tiers"].unsqueeze_(0)
    other["relevance"].mul_(2)
    return batch


@pytest.mark.parametrize("workers", [0, 1])
def test_unused_batch_shows_what_was_done_to_its_tensors(demo_store: Path, workers: int) -> None:
    """Their shape and values cross."""
    dataset: Any = JASPERSteeringDataset(demo_store, "train")
    right = default_collate(dataset.__getitems__(range(4)))
    loader: Any = DataLoader(dataset, 4, num_workers=workers, collate_fn=changed_elsewhere)
    batch = next(iter(loader))
    assert torch.equal(batch["negative_tiers"], right["negative_tiers"].unsqueeze(0))
    assert torch.equal(batch["relevance"], 2 * right["relevance"])
    assert torch.equal(batch["question_emb"], right["question_emb"])
