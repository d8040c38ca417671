"""What could not be synced is synced when it is asked for again, though nothing is written then."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converters import convert
from jasper_mmap import JASPERSteeringDataset, publish_negatives, rollback_negatives
from jasper_mmap.errors import DurabilityError
from jasper_mmap.store.pointer import read_pointer
from tests.converting import SMALL, edit
from tests.injecting import injected
from tests.power_cut import Recorder
from tests.publishing import NAMES
from tools.demo.folder import make_builder_folder

SYNC = ("sync folder", "negatives")
POINTER = "negatives/CURRENT.json"


def publish(store: Path, *, dry_run: bool = False) -> int:
    """Publish the builder's files, wherever they are."""
    files = (store.parent / "new" / f"{name}.pt" for name in NAMES)
    return publish_negatives(store, *files, dry_run=dry_run)


def reload(store: Path) -> int:
    """Publish the builder's files beside the store, once they are the new ones."""
    for name in NAMES:
        shutil.copy2(store.parent / "new" / f"{name}.pt", store)
    with JASPERSteeringDataset(store, "train") as dataset:
        return dataset.reload_negatives()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store beside the builder's files, and other negatives in the folder `new`."""
    store = make_builder_folder(tmp_path / "store", seed=1, **SMALL)
    convert(store)
    shutil.copytree(store, tmp_path / "new", ignore=lambda *_: {"negatives"})
    for name in NAMES:
        edit(tmp_path / "new", name, lambda table: table.flip(0))
    return store


def steps_of(store: Path, act: Callable[[Path], int], fails: int = -1) -> Recorder:
    """Do it, while the call numbered `fails` fails; return what became of the disk."""
    recorder = Recorder(store, fails, errno.EIO)
    with injected(recorder):
        act(store)
    return recorder


def not_synced(store: Path, act: Callable[[Path], int]) -> str:
    """Do it, while the disk does not take the pointer's new name; return the error."""
    copy = Path(shutil.copytree(store, store.with_name("copy") / "store"))
    shutil.copytree(store.with_name("new"), copy.with_name("new"))
    steps = steps_of(copy, act).steps
    commit = next(i for i, s in enumerate(steps) if (s.kind, s.target) == ("rename", POINTER))
    sync = next(s for s in steps[commit:] if (s.kind, s.path) == SYNC)
    with pytest.raises(DurabilityError, match="may not survive a power cut") as raised:
        steps_of(store, act, sync.at)
    return str(raised.value)


@pytest.mark.parametrize("act", [publish, reload])
def test_what_is_current_already_is_made_to_last(store: Path, act: Callable[[Path], int]) -> None:
    """By a repeated call, which may fail as the first one did."""
    not_synced(store, act)
    assert read_pointer(store).generation == 2
    again = steps_of(store, act)
    assert SYNC in [(step.kind, step.path) for step in again.steps]
    sync = next(s for s in again.steps if (s.kind, s.path) == SYNC)
    with pytest.raises(DurabilityError):
        steps_of(store, act, sync.at)
    assert act(store) == 2


def test_dry_run_syncs_nothing(store: Path) -> None:
    """It does not write, so there is nothing to make last."""
    publish(store)
    steps = steps_of(store, lambda store: publish(store, dry_run=True)).steps
    assert [step for step in steps if step.kind.startswith("sync")] == []


def test_reader_that_may_not_write_syncs_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has published nothing, and may not even list the folder that it would sync."""
    assert reload(store) == 2
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may always
    steps = steps_of(store, reload).steps
    assert [step for step in steps if step.kind.startswith("sync")] == []


def test_rollback_that_may_not_last_names_its_generation(store: Path) -> None:
    """Without a number, running it again would go back to what it left."""
    publish(store)
    error = not_synced(store, rollback_negatives)
    (number,) = re.findall(r"--to (\d+)", error)
    pointer = read_pointer(store)
    assert (pointer.generation, rollback_negatives(store, int(number))) == (3, 4)
    assert read_pointer(store).sha256 == pointer.sha256
