"""Publishers that die, meet each other or a full disk: the current generation stays current."""

import multiprocessing
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jasper_mmap import JASPERSteeringDataset, publish_negatives, rollback_negatives
from jasper_mmap.errors import AccessError, BusyError, StorageError, UnsafeFileError
from jasper_mmap.files import atomic
from jasper_mmap.negatives.publish import _take_back
from jasper_mmap.negatives.write import publisher_lock, write_pointer
from jasper_mmap.store.folder import Store
from jasper_mmap.store.generations import sound_generation
from jasper_mmap.store.pointer import FOLDER, POINTER, file_name, read_pointer
from tests.oracle import Oracle
from tests.publishing import (
    DATA,
    NAMES,
    SOAK_S,
    contents,
    current_pointer,
    generations_left,
    mounted,
    numbered,
    own_copy,
    pointer_chain,
    publish_numbered,
    publishing,
    until,
)
from tests.serving import Named, NamedOracle

PROCESSES = multiprocessing.get_context("forkserver")
PAGE = 4096
KILLED = int(SOAK_S * 10 / 3)
"""Publishers that are killed; 100 in the long form."""


@pytest.fixture
def store(store_named: Named, tmp_path: Path) -> Path:
    """Return a store that the test may change."""
    return own_copy(store_named(DATA), tmp_path / "store")


@pytest.fixture
def oracle(oracle_named: NamedOracle) -> Oracle:
    """Return the oracle of that store."""
    return oracle_named(DATA)


def assert_sound(store: Path, oracle: Oracle, first: int = 1) -> int:
    """Require that the current generation is complete and matches its pointer."""
    with JASPERSteeringDataset(store, "train", validate="full") as dataset:
        pointer = read_pointer(store)
        opened = Store(store)
        sound_generation(store, pointer, opened.store_id, opened.negatives_sizes, full=True)
        assert dataset.generation == pointer.generation
    if pointer.generation > first:
        served = load_file(store / FOLDER / pointer.file)
        for name, table in zip(NAMES, numbered(oracle, pointer.generation), strict=True):
            assert torch.equal(served[name], table)
    return pointer.generation


@pytest.mark.xdist_group("soak")
def test_killed_publishers_leave_a_complete_generation_current(
    store: Path, folder_named: Named, oracle: Oracle
) -> None:
    """At whatever instant one dies; the next one works and sweeps what was left."""
    dice, before, died_busy = random.Random(3), 1, 0
    for _ in range(KILLED):
        publisher = publishing(store, folder_named(DATA), 0)
        until(lambda before=before: read_pointer(store).generation > before, 30)
        time.sleep(dice.uniform(0, 0.05))
        publisher.kill()
        publisher.join()
        leftovers = list((store / FOLDER).glob(".*.tmp"))
        unnamed = max(generations_left(store)) > read_pointer(store).generation
        died_busy += bool(leftovers) or unnamed
        after = assert_sound(store, oracle)
        assert after > before
        # A dead publisher's number is not used again, so its content tells another one.
        before = max(generations_left(store)) + 1
        assert publish_negatives(store, *numbered(oracle, before), grace_s=0) == before
        assert_sound(store, oracle)
        assert not list((store / FOLDER).glob(".*.tmp"))
        assert len(generations_left(store)) <= 3
    print(f"{KILLED} killed, {died_busy} of them left something")


def _publish_some(store: Path, folder: Path, count: int, answers: Any) -> None:
    torch.set_num_threads(1)
    tables = numbered(Oracle(folder), 5)
    options: dict[str, Any] = {"keep": 100, "republish": True}
    answers.put([publish_negatives(store, *tables, **options) for _ in range(count)])


def test_publishers_at_once_lose_no_generation(store: Path, folder_named: Named) -> None:
    """No number twice, none lost, and the history in order."""
    answers = PROCESSES.Queue()
    publishers = [
        PROCESSES.Process(target=_publish_some, args=(store, folder_named(DATA), 5, answers))
        for _ in range(8)
    ]
    for publisher in publishers:
        publisher.start()
    published = [number for _ in publishers for number in answers.get(timeout=60)]
    for publisher in publishers:
        publisher.join()
    assert sorted(published) == list(range(2, 42))
    assert [entry["generation"] for entry in current_pointer(store)["history"]] == list(
        range(1, 42)
    )
    assert generations_left(store) == list(range(1, 42))


def _hold_lock(store: Path, held: Any) -> None:
    with publisher_lock(store, 5):
        held.set()
        time.sleep(60)


def test_lock_held_by_another_is_an_error_that_says_by_whom(store: Path, oracle: Oracle) -> None:
    """After the timeout, with pid and host; the lock of a dead process is free."""
    held = PROCESSES.Event()
    holder = PROCESSES.Process(target=_hold_lock, args=(store, held))
    holder.start()
    assert held.wait(60)
    started = time.monotonic()
    with pytest.raises(BusyError, match=f"{holder.pid}@{socket.gethostname()}") as caught:
        publish_numbered(store, oracle, lock_timeout_s=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert 0.2 <= time.monotonic() - started < 5
    assert current_pointer(store)["generation"] == 1
    holder.kill()
    holder.join()
    assert publish_numbered(store, oracle) == 2


def test_rollback_waits_for_the_lock_too(store: Path, oracle: Oracle) -> None:
    """Beside a publisher it would take the number that is just being written."""
    assert publish_numbered(store, oracle) == 2
    held = PROCESSES.Event()
    holder = PROCESSES.Process(target=_hold_lock, args=(store, held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(BusyError, match=f"{holder.pid}@{socket.gethostname()}"):
        rollback_negatives(store, lock_timeout_s=0.2)
    assert current_pointer(store)["generation"] == 2
    holder.kill()
    holder.join()
    assert rollback_negatives(store) == 3


PUBLISH = """
import shutil, sys
from pathlib import Path
from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.errors import JasperError
if len(sys.argv) > 2:
    shutil.copytree(sys.argv[2], sys.argv[1], dirs_exist_ok=True)
dataset = JASPERSteeringDataset(sys.argv[1], "train")
before = {p.name: p.read_bytes() for p in Path(sys.argv[1], "negatives").iterdir()}
for _ in range(2):
    try:
        tables = dataset.hard_negatives, dataset.negative_tiers
        publish_negatives(sys.argv[1], *tables, republish=True)
    except JasperError as error:
        print(type(error).__name__, error)
after = {p.name: p.read_bytes() for p in Path(sys.argv[1], "negatives").iterdir()}
assert before == after or set(after) - set(before) == {".lock"}, sorted(after)
"""


def test_full_disk_leaves_the_current_generation(store: Path, tmp_path: Path) -> None:
    """An error that says so; nothing is left lying about, so that trying again costs no room."""
    pages = sum(-(-path.stat().st_size // PAGE) for path in store.rglob("*") if path.is_file())
    small = tmp_path / "small"
    small.mkdir()
    pages += 2 + 12  # two folders' own; a generation needs 25 or more
    options = f"-t tmpfs -o size={pages * PAGE} none {small}"
    told = mounted(small, options, PUBLISH, str(store)).splitlines()
    assert len(told) == 2
    assert all(line.startswith(StorageError.__name__) and "disk is full" in line for line in told)


def test_full_disk_at_the_pointer_leaves_no_file(
    store: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generation's file goes again when its pointer cannot be written."""
    before = contents(store)

    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_json", full)
        with pytest.raises(StorageError):
            publish_numbered(store, oracle)
    assert contents(store).keys() - before.keys() <= {".lock"}
    assert publish_numbered(store, oracle) == 2


def test_folder_that_may_not_be_written_is_an_error(store: Path) -> None:
    """A read-only mount; root may write anywhere else."""
    options = f"--bind {store} {store} && mount -o remount,bind,ro {store}"
    told = mounted(store, options, PUBLISH).splitlines()
    assert len(told) == 2
    assert all(line.startswith(AccessError.__name__) and str(store) in line for line in told)


def test_interrupt_leaves_the_current_generation(
    store: Path, folder_named: Named, oracle: Oracle
) -> None:
    """SIGTERM in the middle is like a kill."""
    publisher = publishing(store, folder_named(DATA), 0)
    until(lambda: read_pointer(store).generation > 3, 30)
    assert publisher.pid is not None
    os.kill(publisher.pid, signal.SIGTERM)
    publisher.join()
    assert_sound(store, oracle)


def test_what_a_killed_publisher_left_half_written_is_swept(store: Path, oracle: Oracle) -> None:
    """The next publisher removes temporary files."""
    left = store / FOLDER / ".000002.safetensors.0123456789ab.tmp"
    shutil.copy(store / FOLDER / "000001.safetensors", left)
    publish_numbered(store, oracle)
    assert not left.exists()


@pytest.mark.parametrize("pointer", ["other", "same", "none", "damaged"])
@pytest.mark.parametrize("made", [True, False])
def test_file_is_taken_back_unless_the_pointer_names_it(
    tmp_path: Path, pointer: str, made: bool
) -> None:
    """It names it where only the last sync failed: then the file is what readers open."""
    (tmp_path / FOLDER).mkdir()
    path = tmp_path / FOLDER / file_name(3)
    left = atomic.sibling_of(path)
    for there in (path, left) if made else (left,):
        there.touch()
    if pointer == "damaged":
        (tmp_path / FOLDER / POINTER).write_text("{")
    elif pointer != "none":
        notes = ("a", "b", "c") if pointer == "same" else ("a", "b")
        write_pointer(tmp_path, pointer_chain(*notes))
    _take_back(tmp_path, 3)
    assert not left.exists()
    assert path.exists() == (made and pointer == "same")


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), UnsafeFileError("a FIFO")])
def test_what_cannot_be_taken_back_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The cause is on its way to the caller."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(atomic, "sweep", fail)
    _take_back(tmp_path, 3)
