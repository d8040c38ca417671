"""What workers serve while generations come and go: whole ones, in order, also removed ones."""

import gc
import pickle
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from jasper_mmap import JASPERSteeringDataset, watch_negatives
from jasper_mmap.dataset.device.placed_store import PlacedGeneration, PlacedStore
from jasper_mmap.errors import MissingFileError
from jasper_mmap.rules.names import Validation
from jasper_mmap.store.pointer import Pointer
from tests.oracle import Oracle
from tests.publishing import (
    SOAK_S,
    Witness,
    file_of,
    generation_served,
    own_copy,
    publish_numbered,
    publishing,
    until,
)
from tests.serving import CONTEXTS, NamedOracle, loader_of, next_positions

QUICK_S = 0.02


@pytest.fixture
def dataset(store: Path) -> Iterator[JASPERSteeringDataset]:
    """Return the train split of that store."""
    with JASPERSteeringDataset(store, "train") as opened:
        yield opened


# What workers serve while a process publishes


def stock_loader(store: Path) -> Any:
    """Return torch's own loader, with two persistent workers."""
    dataset = JASPERSteeringDataset(store, "train")
    return DataLoader(
        dataset, 64, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
    )


@pytest.mark.xdist_group("soak")
@pytest.mark.parametrize("kind", [*CONTEXTS, "stock"])
def test_every_batch_is_of_one_generation_and_numbers_rise(
    kind: str,
    real_store: Path,
    real_folder: Path,
    oracle_named: NamedOracle,
    tmp_path: Path,
) -> None:
    """No batch is torn, and none is older than one that was there when it was asked for."""
    store = own_copy(real_store, tmp_path / "store")
    oracle = oracle_named("real")
    witness = Witness(oracle, "train")
    loader = stock_loader(store) if kind == "stock" else loader_of(store, "train", 64, 2, kind)
    publisher = publishing(store, real_folder, 0.05)
    with watch_negatives(loader, interval_s=QUICK_S):
        until(lambda: loader.dataset.generation > 1, 30)
        end = time.monotonic() + SOAK_S
        seen: list[int] = []
        while time.monotonic() < end or (seen[-1] == seen[0] and time.monotonic() < end + 30):
            promised = (
                [list(range(i, i + 64)) for i in range(0, len(loader.dataset), 64)]
                if kind == "stock"
                else next_positions(loader)
            )
            for batch, positions in zip(loader, promised, strict=True):
                positions = positions[: len(batch["relevance"])]
                seen.append(witness.generation_of(batch, positions, 1))
    publisher.terminate()
    publisher.join()
    # Two workers take turns, and each of them only goes forward.
    assert all(later >= earlier for earlier, later in zip(seen, seen[2:], strict=False))
    assert seen[-1] > 1
    assert len(set(seen)) >= SOAK_S
    print(f"{kind}: {len(seen)} batches of {len(set(seen))} generations, last {seen[-1]}")


@pytest.mark.parametrize("context", CONTEXTS)
def test_worker_started_late_serves_a_generation_that_was_removed(
    context: str, store: Path, oracle: Oracle
) -> None:
    """What the main process serves, its workers serve, also when the file has lost its name."""
    loader = loader_of(store, "train", 8, 2, context, persistent_workers=False)
    served = publish_numbered(store, oracle)
    assert loader.dataset_obj.reload_negatives() == served
    for _ in range(2):
        publish_numbered(store, oracle, keep=1, grace_s=0)
    assert not file_of(store, served).exists()
    witness = Witness(oracle, "train")
    for batch, positions in zip(loader, next_positions(loader), strict=True):
        assert witness.generation_of(batch, positions, 1) == served
    del loader


def test_persistent_worker_adopts_a_generation_that_was_removed(
    store: Path, oracle: Oracle
) -> None:
    """A worker that was busy elsewhere finds what its owner holds."""
    loader = loader_of(store, "train", 8, 2)
    witness = Witness(oracle, "train")
    for _ in range(2):
        served = publish_numbered(store, oracle, keep=1, grace_s=0)
        loader.dataset_obj.reload_negatives()
        publish_numbered(store, oracle, keep=1, grace_s=0)
        promised = next_positions(loader)
        found = {witness.generation_of(b, p, 1) for b, p in zip(loader, promised, strict=True)}
        assert found == {served}
    del loader


@pytest.mark.parametrize("context", CONTEXTS)
def test_pass_whose_loader_nobody_holds_serves_its_generation(
    context: str, store: Path, oracle: Oracle
) -> None:
    """The iterator keeps open what its workers are told to open, however late they come."""
    served = publish_numbered(store, oracle)
    kept = loader_of(store, "train", 8)
    promised = next_positions(kept)
    batches = iter(loader_of(store, "train", 8, 2, context, persistent_workers=False))
    gc.collect()
    publish_numbered(store, oracle)
    with ExitStack() as opened:
        for _ in range(64):  # of numbers that were just closed, had they been
            opened.enter_context(file_of(store, served + 1).open("rb"))
        witness = Witness(oracle, "train")
        for batch, positions in zip(batches, promised, strict=True):
            assert witness.generation_of(batch, positions, 1) == served
    del batches


def test_word_names_no_descriptor_that_was_closed(store: Path) -> None:
    """A worker that comes after the end of a dataset finds its file by name."""
    dataset = JASPERSteeringDataset(store, "train")
    control = dataset.adoption._control
    assert control.generation[1] >= 0
    dataset.close()
    assert control.generation == (1, -1)
    assert dataset.generation == 1


def test_pickled_copy_does_not_go_back_from_what_it_adopted(
    store: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even when that comes while it maps, for its first batch, what its origin served."""
    with JASPERSteeringDataset(store, "train") as dataset:
        copied = pickle.dumps(dataset)
    told: list[int] = []
    generation = PlacedStore.generation

    def slow(served: PlacedStore, pointer: Pointer, validate: Validation) -> PlacedGeneration:
        found = generation(served, pointer, validate)
        if validate == "auto":  # what the copy asks for; the watch has all of it checked
            publish_numbered(store, oracle)
            until(lambda: told)
        return found

    monkeypatch.setattr(PlacedStore, "generation", slow)
    with (
        pickle.loads(copied) as copy,
        watch_negatives(copy, QUICK_S, on_reload=told.append),
    ):
        assert generation_served(copy, oracle) == 2
        time.sleep(5 * QUICK_S)
    assert told == [2]


def test_pickled_copy_of_a_removed_generation_says_what_to_do(store: Path, oracle: Oracle) -> None:
    """A copy that shares nothing with its origin cannot ask it."""
    with JASPERSteeringDataset(store, "train") as dataset:
        copied = pickle.dumps(dataset)
        for _ in range(2):
            publish_numbered(store, oracle, keep=1, grace_s=0)
        with pytest.raises(MissingFileError, match="open the dataset again"):
            pickle.loads(copied)[0]
        assert generation_served(dataset, oracle) == 1
