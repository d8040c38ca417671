"""Running loaders adopt what is published: whole, in order, and nothing that is spoilt."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jasper_mmap import JASPERSteeringDataset, rollback_negatives, set_epoch, watch_negatives
from jasper_mmap.dataset.device.placement import Placement
from jasper_mmap.errors import JasperError
from jasper_mmap.files import jsonfile
from jasper_mmap.files.regular_files import open_regular
from jasper_mmap.loader import generation_look
from jasper_mmap.store.pointer import FOLDER, POINTER, Pointer, read_pointer
from tests.oracle import Oracle
from tests.publishing import file_of, generation_served, own_copy, publish_numbered, until
from tests.serving import loader_of

QUICK_S = 0.02


@pytest.fixture
def dataset(store: Path) -> Iterator[JASPERSteeringDataset]:
    """Return the train split of that store."""
    with JASPERSteeringDataset(store, "train") as opened:
        yield opened


# When a switch is made


def test_watcher_adopts_what_is_published_and_tells(store: Path, oracle: Oracle) -> None:
    """Each newer generation is served soon, a rollback too; on_reload gets its number."""
    told: list[int] = []
    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, QUICK_S, on_reload=told.append),
    ):
        for _ in range(3):
            number = publish_numbered(store, oracle)
            until(lambda number=number: dataset.generation == number)
            assert generation_served(dataset, oracle) == number
        number = rollback_negatives(store, 2)
        until(lambda: dataset.generation == number)
        assert generation_served(dataset, oracle) == 2
    assert told == [2, 3, 4, 5]


def test_switch_waits_for_the_next_epoch_where_asked(store: Path, oracle: Oracle) -> None:
    """With adopt="epoch" both ways of setting an epoch switch, and nothing else does."""
    loader = loader_of(store, "train", 8)
    dataset = loader.dataset_obj
    told: list[int] = []
    setters: list[Callable[[int], None]] = [
        dataset.set_epoch,
        lambda epoch: set_epoch(loader, epoch),
    ]
    with watch_negatives(loader, QUICK_S, adopt="epoch", on_reload=told.append):
        for epoch, setter in enumerate(setters, 1):
            before = dataset.generation
            number = publish_numbered(store, oracle)
            until(lambda number=number: dataset.adoption.nominee.number == number)
            assert dataset.generation == generation_served(dataset, oracle) == before
            setter(epoch)
            assert dataset.generation == generation_served(dataset, oracle) == number
        publish_numbered(store, oracle)
        until(lambda: dataset.adoption.nominee.number == 4)
    dataset.set_epoch(9)
    assert told == [2, 3]
    assert dataset.generation == 3


def test_watch_catches_up_again_after_ranks_went_back(store: Path, oracle: Oracle) -> None:
    """An older generation that ranks agreed on lasts until the next look."""
    with JASPERSteeringDataset(store, "train") as dataset:
        first = dataset.adoption.nominee
        number = publish_numbered(store, oracle)
        dataset.reload_negatives()
        with watch_negatives(dataset, QUICK_S):
            time.sleep(5 * QUICK_S)
            dataset.adoption.adopt(first, older=True)
            until(lambda: dataset.generation == number)


def test_later_generation_is_placed_like_the_first(store: Path, oracle: Oracle) -> None:
    """Datasets that serve copies adopt a copy; splits that share tables switch together."""
    placement = Placement(torch.device("cpu"), copied=True)
    splits = JASPERSteeringDataset.create_combined_splits(store, placement=placement)
    number = publish_numbered(store, oracle)
    with watch_negatives(splits["val"], QUICK_S):
        until(lambda: splits["val"].generation == number)
    file_of(store, number).unlink()
    for opened in splits.values():
        assert generation_served(opened, oracle) == number
    for opened in splits.values():
        opened.close()


# What is not adopted


def spoil_by_truncation(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def spoil_by_one_bit(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as file:  # not shortened for a moment, for it may be mapped
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk leaves it


def spoil_by_another_store(path: Path) -> None:
    pointer = path.parent / POINTER
    pointer.write_text(pointer.read_text().replace('"store_id": "', '"store_id": "f'))


@pytest.mark.parametrize("spoil", [spoil_by_truncation, spoil_by_one_bit, spoil_by_another_store])
def test_spoilt_generation_is_reported_once_and_never_adopted(
    store: Path, oracle: Oracle, spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    """Training goes on with the old one; the next good one is adopted; reload raises."""
    aside = own_copy(store, tmp_path / "aside")
    spoilt = publish_numbered(aside, oracle)
    spoil(file_of(aside, spoilt))
    errors: list[Exception] = []
    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, QUICK_S, on_error=errors.append),
    ):
        shutil.copy2(file_of(aside, spoilt), file_of(store, spoilt))
        shutil.copy2(aside / FOLDER / POINTER, store / FOLDER / "new")
        (store / FOLDER / "new").replace(store / FOLDER / POINTER)
        until(lambda: errors)
        with pytest.raises(JasperError):
            dataset.reload_negatives()
        time.sleep(10 * QUICK_S)
        assert len(errors) == 1
        assert isinstance(errors[0], JasperError)
        assert dataset.generation == generation_served(dataset, oracle) == 1
        number = publish_numbered(store, oracle)
        until(lambda: dataset.generation == number)


def test_pointer_replaced_in_the_midst_of_a_look_is_reported_once(
    store: Path, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is told for the pointer that it was found in, not for the one before it too."""
    aside = own_copy(store, tmp_path / "aside")
    spoil_by_another_store(file_of(aside, publish_numbered(aside, oracle)))
    pointer = aside / FOLDER / POINTER
    errors: list[Exception] = []

    def read_late(path: Path) -> Pointer:
        if pointer.exists():
            pointer.replace(store / FOLDER / POINTER)
        return read_pointer(path)

    monkeypatch.setattr(generation_look, "read_pointer", read_late)
    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, QUICK_S, on_error=errors.append),
    ):
        until(lambda: errors)
        time.sleep(10 * QUICK_S)
    assert len(errors) == 1


def test_repaired_generation_is_adopted(store: Path, oracle: Oracle) -> None:
    """A spoilt file is looked at again when it changes, for it may have been copied anew."""
    errors: list[Exception] = []
    with JASPERSteeringDataset(store, "train") as dataset:
        number = publish_numbered(store, oracle)
        sound = file_of(store, number).read_bytes()
        spoil_by_one_bit(file_of(store, number))
        with watch_negatives(dataset, QUICK_S, on_error=errors.append):
            until(lambda: errors)
            file_of(store, number).write_bytes(sound)
            until(lambda: dataset.generation == number)


# What a watch survives


def test_watch_survives_what_is_missing_for_a_moment(store: Path, oracle: Oracle) -> None:
    """A pointer or file that is away for less than a few looks is no error."""
    errors: list[Exception] = []
    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, 0.4, on_error=errors.append),
    ):
        pointer = store / FOLDER / POINTER
        pointer.rename(pointer.with_suffix(".away"))
        time.sleep(0.5)
        pointer.with_suffix(".away").rename(pointer)
        number = publish_numbered(store, oracle)
        file_of(store, number).rename(store / "away")
        time.sleep(0.5)
        (store / "away").rename(file_of(store, number))
        until(lambda: dataset.generation == number)
        assert errors == []


def test_what_stays_missing_is_reported_once(store: Path, oracle: Oracle) -> None:
    """After a few looks it is told, and adopted all the same when it comes back."""
    errors: list[Exception] = []
    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, QUICK_S, on_error=errors.append),
    ):
        pointer = store / FOLDER / POINTER
        pointer.rename(pointer.with_suffix(".away"))
        until(lambda: errors)
        time.sleep(10 * QUICK_S)
        assert len(errors) == 1
        pointer.with_suffix(".away").rename(pointer)
        number = publish_numbered(store, oracle)
        until(lambda: dataset.generation == number)


def test_watch_survives_a_stale_handle(
    store: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network file system gives for a file that was replaced on another machine."""
    failures = [errno.ESTALE, errno.EIO]

    def fails_twice(path: Path) -> Any:
        if path.name == POINTER and threading.current_thread() is not threading.main_thread():
            while failures:
                raise OSError(failures.pop(), "as if on NFS", str(path))
        return open_regular(path)

    errors: list[Exception] = []
    monkeypatch.setattr(jsonfile, "open_regular", fails_twice)
    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, QUICK_S, on_error=errors.append),
    ):
        number = publish_numbered(store, oracle)
        until(lambda: dataset.generation == number)
    assert (failures, errors) == ([], [])


def test_watch_survives_a_clock_that_goes_back(store: Path, oracle: Oracle) -> None:
    """A pointer that is older than the one before is a new one all the same."""
    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, QUICK_S),
    ):
        for day in (3, 2, 1):
            number = publish_numbered(store, oracle)
            os.utime(store / FOLDER / POINTER, (day * 86400, day * 86400))
            until(lambda number=number: dataset.generation == number)


def test_callbacks_that_fail_stop_nothing(store: Path, oracle: Oracle) -> None:
    """Neither a failing on_reload nor a failing on_error ends the watch."""

    def fail(_: object) -> None:
        raise RuntimeError("a user's mistake")

    with (
        JASPERSteeringDataset(store, "train") as dataset,
        watch_negatives(dataset, QUICK_S, on_reload=fail, on_error=fail) as watcher,
    ):
        publish_numbered(store, oracle)
        until(lambda: dataset.generation == 2)
        spoil_by_one_bit(file_of(store, publish_numbered(store, oracle)))
        number = publish_numbered(store, oracle)
        until(lambda: dataset.generation == number)
        assert watcher.running
