"""`validate_first_batch` names key, row and value of whatever is wrong, and moves nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, default_collate

from converters import convert
from jasper_mmap import JASPERSteeringDataset, create_loader, validate_first_batch
from jasper_mmap.errors import BatchError, ContentError, ContentTypeError, JasperError, UsageError
from jasper_mmap.rules.schema import COLUMNS
from tests.converting import SMALL, edit
from tests.damage import edit_manifest
from tests.serving import SPLITS, loader_of, next_positions
from tools.demo.folder import make_builder_folder

Batch = dict[str, Any]


def test_loaders_of_every_folder_are_sound(any_store: Path, any_oracle: Any) -> None:
    """In each split that has pairs, in several epochs."""
    for split in filter(any_oracle.splits.get, SPLITS):
        for epoch in (0, 9):
            assert validate_first_batch(loader_of(any_store, split, 4, epoch=epoch)) is True


def test_workers_are_not_started(demo_store: Path) -> None:
    """The batch is made in this process, and no pass is counted."""
    loader = loader_of(demo_store, "train", 16, 2)
    before = next_positions(loader)
    assert validate_first_batch(loader) is True
    assert validate_first_batch(loader) is True
    assert next_positions(loader) == before
    assert loader.state_dict()["pass"] == 0
    assert loader._pool is None


@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: Subset(d, [3, 1]), lambda d: ConcatDataset([d, d])]
)
def test_stock_loaders_are_checked_too(demo_store: Path, wrap: Callable[[Any], Any]) -> None:
    """Over the dataset, a part of it, or several."""
    with JASPERSteeringDataset(demo_store, "val") as dataset:
        assert validate_first_batch(DataLoader(wrap(dataset), batch_size=4)) is True


def spoilt(demo_store: Path, spoil: Callable[[Batch], Any]) -> "DataLoader[Any]":
    """Return a loader whose batches of 8 were spoilt; row 2 is of the zero variant."""
    dataset = JASPERSteeringDataset(demo_store, "val")

    def collate(rows: Any) -> Any:
        batch: Batch = default_collate(rows)
        batch["steering_variant"][2] = 0
        batch["steering"][2] = 0.0
        changed = spoil(batch)
        return batch if changed is None else changed

    return DataLoader(dataset, batch_size=8, collate_fn=collate)


def put(key: str, place: Any, value: float) -> Callable[[Batch], None]:
    """Return a change of one value."""

    def change(batch: Batch) -> None:
        batch[key][place] = value

    return change


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "place", "value", "words"),
    [
        ("question_emb", (3, 5), NAN, r"row 3, index \[5\] holds nan"),
        ("target_source_emb", (0, 0), INF, "row 0.*inf"),
        ("negative_embs", (7, 11, 31), -INF, r"row 7, index \[11, 31\] holds -inf"),
        ("steering", (2, 9), 0.25, r"row 2, index \[9\] holds 0.25, must be 0"),
        ("cluster_id", 4, -1, "row 4 holds -1"),
        ("cluster_id", 4, 16, "row 4 holds 16, must be 0 to 15"),
        ("relevance", 1, 1.5, "row 1 holds 1.5, must be 0 to 1"),
        ("centroid_distance", 6, 2.25, "row 6 holds 2.25, must be 0 to 2"),
        ("steering_variant", 5, 4, "row 5 holds 4, must be 0 to 3"),
        ("negative_tiers", (1, 2), 0, r"row 1, index \[2\] holds 0, must be 1 to 4"),
        ("negative_tiers", (1, 2), 5, "holds 5"),
    ],
)
def test_wrong_value_is_named(
    demo_store: Path, key: str, place: Any, value: float, words: str
) -> None:
    """Key, row, place in the row, the value, and what it must be."""
    loader = spoilt(demo_store, put(key, place, value))
    with pytest.raises(ContentError, match=f"^{key}: .*{words}"):
        validate_first_batch(loader)


@pytest.mark.parametrize("key", COLUMNS)
def test_wrong_form_of_any_key_is_named(demo_store: Path, key: str) -> None:
    """Missing, of another dtype, of another shape, or no tensor at all."""
    other = {torch.float32: torch.float64, torch.int64: torch.int32}

    def drop(batch: Batch) -> Batch:
        return {name: column for name, column in batch.items() if name != key}

    changes: list[tuple[Callable[[Batch], Batch], str]] = [
        (drop, rf"lacks \['{key}'\]"),
        (lambda b: {**b, key: b[key].to(other[b[key].dtype])}, f"{key}: is torch"),
        (lambda b: {**b, key: b[key][:, None]}, f"{key}: has the shape"),
        (lambda b: {**b, key: b[key].tolist()}, f"{key}: is"),
    ]
    for change, words in changes:
        with pytest.raises(JasperError, match=words):
            validate_first_batch(spoilt(demo_store, change))


def test_column_with_fewer_rows_is_named(demo_store: Path) -> None:
    """All columns have the same B."""
    loader = spoilt(demo_store, lambda b: {**b, "relevance": b["relevance"][:-1]})
    with pytest.raises(ContentError, match=r"relevance: .* \[7\], must be \[B\] = \[8\]"):
        validate_first_batch(loader)


@pytest.mark.parametrize("made", [lambda b: list(b.values()), lambda b: 5, lambda b: "x"])
def test_batch_that_is_no_dict_is_refused(demo_store: Path, made: Callable[[Batch], Any]) -> None:
    """What a collate of the user's own may return."""
    with pytest.raises(ContentTypeError, match="not a dict"):
        validate_first_batch(spoilt(demo_store, made))


def test_unknown_key_is_named(demo_store: Path) -> None:
    """The keys of a batch are exactly those of the schema."""
    with pytest.raises(ContentError, match="'extra'"):
        validate_first_batch(spoilt(demo_store, lambda b: {**b, "extra": b["relevance"]}))


def test_loader_without_batches_is_an_error(store_named: Callable[[str], Path]) -> None:
    """An empty split, and one that is smaller than a batch that must be full."""
    empty = create_loader(store_named("no_curriculum_empty_val"), "val", 8)
    with pytest.raises(ContentError, match="'val' has no batches: its dataset has 0 pairs"):
        validate_first_batch(empty)
    with pytest.raises(ContentError, match="no batches"):
        validate_first_batch(DataLoader(empty.dataset_obj, batch_size=8))
    short = create_loader(store_named("seven_pairs"), "train", 64)
    with pytest.raises(ContentError, match="drop_last is True"):
        validate_first_batch(short)


def test_loader_of_something_else_is_refused() -> None:
    """There is no telling what its batches should be."""
    with pytest.raises(UsageError, match="TensorDataset"):
        validate_first_batch(DataLoader(TensorDataset(torch.ones(3))))


def test_nonfinite_values_pass_where_they_were_allowed(tmp_path: Path) -> None:
    """A store that was converted with NaN serves NaN; bounds hold for the rest."""
    folder = make_builder_folder(tmp_path / "b", n_pairs=30, dim=4)
    for name in ("source_embs", "pair_relevance"):
        table = torch.load(folder / f"{name}.pt", weights_only=True)
        torch.save(torch.full_like(table, NAN), folder / f"{name}.pt")
    convert(folder, tmp_path / "s", allow_nonfinite=True)
    assert validate_first_batch(create_loader(tmp_path / "s", "train", 4)) is True


def test_values_beyond_float32_pass_where_they_were_allowed(tmp_path: Path) -> None:
    """As NaN and infinity do; not in a store that 0.1.0 converted without a word."""
    folder = make_builder_folder(tmp_path / "f", seed=4, float_dtype=torch.float64, **SMALL)
    edit(folder, "question_embs", lambda t: torch.full_like(t, 1e300))
    store = tmp_path / "s"
    convert(folder, store, allow_nonfinite=True)
    assert validate_first_batch(create_loader(store, "train", 8))
    edit_manifest(store, lambda manifest: manifest.pop("beyond_float32"))
    with pytest.raises(BatchError, match=r"question_emb: row 0, index .* holds inf"):
        validate_first_batch(create_loader(store, "train", 8))
