"""What ranks agree on, seen by a rank that is alone in its group."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.errors import UsageError
from jasper_mmap.loader.ranks import agree, rank_and_world
from jasper_mmap.store.pointer import FOLDER, file_name, read_pointer
from tests.oracle import Oracle
from tests.publishing import publish_numbered


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """Be a group of one."""
    dist.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def dataset(store: Path) -> Iterator[JASPERSteeringDataset]:
    """Return the train split of that store, watched for the sake of the next epoch."""
    with JASPERSteeringDataset(store, "train") as opened:
        yield opened


def hold_newer(dataset: JASPERSteeringDataset, oracle: Oracle) -> int:
    """Have a watch hold a newer generation, and return its number."""
    adoption = dataset.adoption
    watch = adoption.join("epoch", frozenset({dataset.split}))
    number = publish_numbered(dataset.dataset_dir, oracle)
    watch.held = adoption.examined(read_pointer(dataset.dataset_dir))
    return number


def test_rank_needs_a_group() -> None:
    """Before there is one, who this rank is cannot be said."""
    with pytest.raises(UsageError, match="init_process_group"):
        rank_and_world()


@pytest.mark.usefixtures("group")
def test_rank_and_world_are_the_groups() -> None:
    """Numbered from 0."""
    assert rank_and_world() == (0, 1)


def test_without_a_group_the_epoch_begins_alone(
    dataset: JASPERSteeringDataset, oracle: Oracle
) -> None:
    """What the watch holds is served."""
    number = hold_newer(dataset, oracle)
    agree(dataset.adoption, dataset.split)
    assert dataset.generation == number


@pytest.mark.usefixtures("group")
def test_ranks_take_what_rank_0_would_serve(dataset: JASPERSteeringDataset, oracle: Oracle) -> None:
    """The newest that a watch of it holds, and an epoch later nothing more."""
    number = hold_newer(dataset, oracle)
    agree(dataset.adoption, dataset.split)
    assert dataset.generation == number
    agree(dataset.adoption, dataset.split)
    assert dataset.generation == number


@pytest.mark.usefixtures("group")
def test_ranks_stay_where_one_cannot_follow(
    dataset: JASPERSteeringDataset,
    store: Path,
    oracle: Oracle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reason is logged, with the rank."""
    number = hold_newer(dataset, oracle)
    (watch,) = dataset.adoption._running()
    pointer = watch.held.pointer if watch.held is not None else None
    assert pointer is not None
    held, watch.held = watch.held, None
    del held  # or it would be known as sound
    (store / FOLDER / file_name(number)).write_bytes(b"spoilt")
    nominee = dataset.adoption.nominee
    nominee.pointer = pointer
    agree(dataset.adoption, dataset.split)
    assert dataset.generation == 1
    assert f"generation {number} was not adopted by any rank: rank 0: " in caplog.text
