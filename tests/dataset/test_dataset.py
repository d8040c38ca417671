"""The dataset's own promises: its attributes, its pickle, its end, and what it refuses."""

import copy
import gc
import json
import logging
import math
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import convert
from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.errors import (
    ClosedError,
    IndexRangeError,
    JasperError,
    MissingFileError,
    StoreChangedError,
    UsageError,
)
from jasper_mmap.rules.names import VARIANTS
from jasper_mmap.rules.schema import ARTIFACTS, COLUMNS
from tests.oracle import Oracle, assert_batches_equal
from tests.serving import SPLITS, NamedOracle

PUBLIC = (
    "embedding_dim",
    "n_neg",
    "config",
    "device",
    "memory_usage_mb",
    "steering_probs",
    "generation",
    "split_indices",
    *ARTIFACTS,
)


@pytest.fixture
def dataset(demo_store: Path) -> JASPERSteeringDataset:
    """Return train of the tidy synthetic store."""
    return JASPERSteeringDataset(demo_store, "train", epoch=3)


def mapped_files(store: Path) -> set[str]:
    """Return the names of the store's files that this process has mapped."""
    gc.collect()
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split(None, 5)[5]).name for line in lines if str(store) in line}


def bits(table: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a table's values."""
    # Not contiguous(), which leaves the stride of a dimension of 1 as it is.
    return torch.empty(table.shape, dtype=table.dtype).copy_(table).view(torch.uint8)


def test_attributes_are_the_builders_tables(any_store: Path, any_oracle: Oracle) -> None:
    """Each artifact is there under its own name, in its own dtype."""
    for split in SPLITS:
        with JASPERSteeringDataset(any_store, split) as dataset:
            for name, want in any_oracle.tables.items():
                found = getattr(dataset, name)
                if ARTIFACTS[name].kind == "ragged":
                    assert [row.tolist() for row in found] == want
                    assert {row.dtype for row in found} == {torch.int64}
                else:
                    assert found.dtype == want.dtype
                    assert torch.equal(bits(found), bits(want))
            assert dataset.split_indices.tolist() == any_oracle.splits[split]
            assert dataset.config == any_oracle.config
            assert (dataset.embedding_dim, dataset.n_neg) == (
                any_oracle.config["embedding_dim"],
                any_oracle.config["n_neg"],
            )


def test_plain_attributes_say_what_is_served(dataset: JASPERSteeringDataset) -> None:
    """Split, epoch, device, generation and probabilities."""
    assert (dataset.split, dataset.current_epoch, dataset.generation) == ("train", 3, 1)
    assert dataset.device == torch.device("cpu")
    assert tuple(dataset.steering_probs) == VARIANTS
    assert math.isclose(sum(dataset.steering_probs.values()), 1.0)
    assert set(PUBLIC) <= set(dir(dataset))


def test_default_curriculum_is_said_at_open(
    demo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once an opening, with the values that apply; the probabilities are those."""
    folder = Path(shutil.copytree(demo_folder, tmp_path / "built"))
    config = json.loads((folder / "config.json").read_text())
    config["curriculum"] = {"mode": "linear", "start_distance": 0.3, "warmup_epochs": 10}
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder)
    with caplog.at_level(logging.INFO, "jasper_mmap"):
        splits = JASPERSteeringDataset.create_combined_splits(folder)
    told = [r.getMessage() for r in caplog.records if "'curriculum'" in r.getMessage()]
    assert len(told) == 1
    for value in ("zero_prob_start 0.5", "zero_prob_end 0.1", "epochs_total 100", str(folder)):
        assert value in told[0]
    splits["train"].set_epoch(50)
    assert math.isclose(splits["train"].steering_probs["zero"], 0.3)


def test_memory_usage_counts_every_table(any_store: Path, any_oracle: Oracle) -> None:
    """Bytes of all tables, the keyword lists' offsets too, over 2**20; at most a row more for
    what is made at open."""
    ids = any_oracle.tables["pair_keyword_ids"]
    with JASPERSteeringDataset(any_store, "train") as dataset:
        want = 8 * (len(ids) + 1) + sum(map(len, ids)) * dataset.pair_keyword_ids.values.itemsize
        for name in ARTIFACTS.keys() - {"pair_keyword_ids"}:
            want += getattr(dataset, name).nbytes
        assert dataset.memory_usage_mb == pytest.approx(want / 2**20, abs=0.001)


def test_combined_splits_share_their_mappings(demo_store: Path) -> None:
    """One mapping of each file serves all three; each split is what it is alone."""
    splits = JASPERSteeringDataset.create_combined_splits(demo_store, epoch=5)
    assert tuple(splits) == SPLITS
    for name in ARTIFACTS.keys() - {"pair_keyword_ids"}:
        assert len({getattr(d, name).data_ptr() for d in splits.values()}) == 1
    for split, dataset in splits.items():
        with JASPERSteeringDataset(demo_store, split, epoch=5) as alone:
            positions = list(range(len(alone)))
            want = alone.__getitems__(positions).columns
            assert_batches_equal(dataset.__getitems__(positions).columns, want)


def test_closing_one_split_leaves_the_others(demo_store: Path) -> None:
    """The shared mappings end with the last."""
    splits = JASPERSteeringDataset.create_combined_splits(demo_store)
    splits["train"].close()
    assert splits["val"][0]["question_emb"].shape == (32,)
    with pytest.raises(ClosedError):
        splits["train"][0]


# Pickle


def test_pickle_is_a_small_recipe_that_works_from_another_folder(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Less than 4 kB, also after use and where it was opened by a relative path."""
    monkeypatch.chdir(demo_store.parent)
    dataset = JASPERSteeringDataset(demo_store.name, "val", epoch=2, seed=7)
    dataset.force_steering("keyword")
    want = dataset.__getitems__([0, 3]).columns
    data = pickle.dumps(dataset)
    assert len(data) < 4096
    monkeypatch.chdir(tmp_path)
    for twin in (pickle.loads(data), copy.deepcopy(dataset)):
        assert (twin.split, twin.seed, twin.current_epoch) == ("val", 7, 2)
        assert_batches_equal(twin.__getitems__([0, 3]).columns, want)


def test_pickle_of_a_store_that_was_converted_again_is_refused(
    store: Path, tmp_path: Path, demo_folder: Path
) -> None:
    """The recipe names the content that it belongs to."""
    from converters import convert

    data = pickle.dumps(JASPERSteeringDataset(store, "train"))
    convert(demo_folder, store, embeddings_dtype="float16")
    with pytest.raises(StoreChangedError, match="converted again"):
        pickle.loads(data)[0]


def test_pickle_of_a_closed_dataset_is_refused(dataset: JASPERSteeringDataset) -> None:
    """There is nothing left that could be opened again."""
    dataset.close()
    with pytest.raises(ClosedError):
        pickle.dumps(dataset)


# The end


def test_close_releases_the_mappings(store: Path) -> None:
    """While it is open every artifact's file is mapped; afterwards none is."""
    dataset = JASPERSteeringDataset(store, "train")
    _ = dataset[0]
    filled = {a.file for a in ARTIFACTS.values() if not a.generation}
    assert mapped_files(store) == filled | {"000001.safetensors"}
    dataset.close()
    assert mapped_files(store) == set()
    # The folder's own descriptor is gone by the time its entry is read.
    held = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [path for path in held if str(store) in str(path)]


def test_context_manager_closes_and_logs_what_was_used(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line at open and one at close, with the memory served; an error inside closes too."""
    with caplog.at_level(logging.INFO, "jasper_mmap"):
        with JASPERSteeringDataset(store, "val"):
            assert [r.getMessage().split()[0] for r in caplog.records] == ["opened"]
        with pytest.raises(RuntimeError), JASPERSteeringDataset(store, "val"):
            raise RuntimeError
    messages = [record.getMessage() for record in caplog.records]
    assert [m.split()[0] for m in messages] == ["opened", "closed", "opened", "closed"]
    assert all("memory=" in m and str(store) in m for m in messages)
    assert mapped_files(store) == set()


def test_tensor_taken_before_close_stays_valid(store: Path) -> None:
    """A mapping lives as long as a tensor that views it."""
    dataset = JASPERSteeringDataset(store, "train")
    table = dataset.source_embs
    want = table.clone()
    dataset.close()
    assert "source_embs.safetensors" in mapped_files(store)
    assert torch.equal(table, want)
    del table
    assert mapped_files(store) == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_attribute_is_gone_after_close(dataset: JASPERSteeringDataset, name: str) -> None:
    """It raises the error that says so, which is an AttributeError; closing twice is no error."""
    getattr(dataset, name)
    dataset.close()
    dataset.close()
    if name == "generation":
        return  # a control word, which needs no store
    with pytest.raises(ClosedError, match="closed") as caught:
        getattr(dataset, name)
    assert isinstance(caught.value, AttributeError)
    assert not hasattr(dataset, name)


def test_reading_after_close_is_refused(dataset: JASPERSteeringDataset) -> None:
    """Samples, batches and reloading."""
    dataset.close()
    for read in (lambda: dataset[0], lambda: dataset.__getitems__([0]), dataset.reload_negatives):
        with pytest.raises(ClosedError):
            read()


def test_unknown_attribute_is_an_ordinary_error(dataset: JASPERSteeringDataset) -> None:
    """Names that are none of its own are told as Python tells them."""
    with pytest.raises(AttributeError, match="no attribute 'question_embeddings'"):
        _ = dataset.question_embeddings  # type: ignore[attr-defined]


# What is refused


@pytest.mark.parametrize("index", [-1, 10**6, -(10**6)])
def test_position_outside_is_refused(dataset: JASPERSteeringDataset, index: int) -> None:
    """Both ends: a negative number does not wrap around, alone or in a batch."""
    with pytest.raises(IndexRangeError, match=f"Index {index} out of range") as caught:
        dataset[index]
    assert isinstance(caught.value, IndexError)
    with pytest.raises(IndexRangeError, match=f"Index {index} out of range"):
        dataset.__getitems__([0, index])


def test_iterating_the_dataset_ends(demo_store: Path) -> None:
    """The end of a split is an IndexError, so a plain loop over it stops there."""
    with JASPERSteeringDataset(demo_store, "val") as dataset:
        assert len(list(dataset)) == len(dataset)  # type: ignore[call-overload]


@pytest.mark.parametrize("index", ["0", 1.0, None, [[1]], slice(0, 2)])
def test_position_of_another_kind_is_refused(dataset: JASPERSteeringDataset, index: Any) -> None:
    """A position is a whole number."""
    with pytest.raises(UsageError):
        dataset[index]


@pytest.mark.parametrize("positions", [[0.5], [[0, 1]], ["a"], [True, False]])
def test_positions_of_another_kind_are_refused(
    dataset: JASPERSteeringDataset, positions: Any
) -> None:
    """A batch is a flat list of whole numbers."""
    with pytest.raises(UsageError):
        dataset.__getitems__(positions)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda p: np.uint8(p)])
def test_positions_come_in_any_sequence(
    dataset: JASPERSteeringDataset, oracle_named: NamedOracle, kind: Any
) -> None:
    """Lists, tuples, arrays and tensors give the same batch."""
    batch = dataset.__getitems__(kind([5, 2, 2])).columns
    variants = batch["steering_variant"].tolist()
    assert_batches_equal(batch, oracle_named("demo").batch("train", [5, 2, 2], variants))
    assert dataset[np.int64(5)].keys() == dataset[torch.tensor(5)].keys() == COLUMNS.keys()


def test_empty_batch_has_its_columns(dataset: JASPERSteeringDataset) -> None:
    """No position gives no row, in the shapes of a batch."""
    rows = dataset.__getitems__([])
    assert len(rows) == 0
    assert rows.columns["negative_embs"].shape == (0, 12, 32)


def test_wrong_arguments_are_refused(demo_store: Path, dataset: JASPERSteeringDataset) -> None:
    """Splits, epochs and variants that there are not."""
    for open_wrongly in (
        lambda: JASPERSteeringDataset(demo_store, "training"),  # type: ignore[arg-type]
        lambda: JASPERSteeringDataset(demo_store, "train", epoch=-1),
        lambda: dataset.set_epoch(-1),
        lambda: dataset.force_steering("none"),  # type: ignore[arg-type]
    ):
        with pytest.raises(JasperError):
            open_wrongly()
    with pytest.raises(TypeError):
        dataset.set_epoch(1.5)  # type: ignore[arg-type]
    assert dataset.current_epoch == 3


def test_missing_folder_is_told_in_the_known_words(tmp_path: Path) -> None:
    """Scripts look for these words."""
    with pytest.raises(MissingFileError, match="Dataset directory not found") as caught:
        JASPERSteeringDataset(tmp_path / "x", "train")
    assert isinstance(caught.value, FileNotFoundError)


def test_reading_leaves_global_generators_alone(demo_store: Path) -> None:
    """Neither opening nor reading draws from them, nor depends on them."""

    def states() -> list[Any]:
        numpy = np.random.get_state(legacy=False)["state"]
        return [random.getstate(), str(numpy), torch.get_rng_state().tolist()]

    batches = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = states()
        with JASPERSteeringDataset(demo_store, "train", epoch=4) as dataset:
            batches.append(dataset.__getitems__(list(range(50))).columns)
            dataset.set_epoch(5)
            _ = dataset[3]
        assert states() == before
    assert_batches_equal(*batches)
