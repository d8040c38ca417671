"""Which generation a batch is read from: pinned, borrowed from an owner, opened by a copy, or gone.

The store is a stand-in that hands out generations without tables and notes what it is asked for.
"""

import copy
import errno
import logging
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data._utils import worker

from jasper_mmap.dataset import control as control_module
from jasper_mmap.dataset.adoption import Adoption
from jasper_mmap.dataset.control import Control
from jasper_mmap.dataset.device.placed_store import PlacedGeneration
from jasper_mmap.errors import (
    ContentError,
    FormatError,
    MissingFileError,
    StorageError,
    UsageError,
)
from jasper_mmap.files.shared_memory import Descriptor
from jasper_mmap.negatives.write import write_pointer
from jasper_mmap.rules.names import Adopt
from jasper_mmap.store.pointer import FOLDER, Pointer, file_name
from tests.publishing import pointer_chain
from tests.serving import SPLITS

TRAIN, VAL, _ = SPLITS


def generation(number: int, pointer: Pointer | None = None) -> PlacedGeneration:
    """Return one without tables."""
    opened = Descriptor(os.open(os.devnull, os.O_RDONLY))
    return PlacedGeneration(number, opened, {}, pointer)


class StandIn:
    """A store of one folder; what it was asked for is in `asked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[Any, ...]] = []
        self.failures: list[Exception] = []
        """The errors of the next calls."""

    def generation(self, pointer: Pointer, validate: str) -> PlacedGeneration:
        """Of a pointer."""
        self.asked.append((pointer, validate))
        if self.failures:
            raise self.failures.pop(0)
        return generation(pointer.generation, pointer)

    def lent(self, number: int, at: Path | None) -> PlacedGeneration:
        """Of an owner's descriptor."""
        self.asked.append((number, at))
        if self.failures:
            raise self.failures.pop(0)
        return generation(number)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """Return a stand-in whose pointer names generation 3 of three."""
    (tmp_path / FOLDER).mkdir()
    write_pointer(tmp_path, pointer_chain("a", "b", "c", sources=(3,)))
    return StandIn(tmp_path)


def owner_of(store: Any, number: int) -> Adoption:
    """Return what an opened dataset has."""
    return Adoption(store, Control(len(SPLITS)), generation(number))


@pytest.fixture
def as_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process look like a worker of torch's."""
    monkeypatch.setattr(worker, "_worker_info", SimpleNamespace(id=0))
    yield
    monkeypatch.undo()


def spawned(owner: Adoption) -> Adoption:
    """Return what a process that spawn or forkserver starts receives, in this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_module, "being_spawned", lambda: True)
        remake, (store, control) = owner.__reduce__()
        receive, arguments = control.__reduce__()
    made: Adoption = remake(store, receive(*arguments))
    return made


# Pins


def test_pinned_generation_stays_whatever_is_adopted(store: Any) -> None:
    """Older ones too; nothing is switched, held or nominated until the pin ends."""
    owner = owner_of(store, 3)
    watch = owner.join("epoch", frozenset([TRAIN]))
    told: list[int] = []
    owner.listeners.append(told.append)
    owner.pin(generation(2), TRAIN, 5)
    pin = owner.pinned
    assert pin is not None
    assert (pin.split, pin.epoch, pin.newer and pin.newer.number) == (TRAIN, 5, 3)
    watch.held = generation(4)
    owner.adopt(generation(6))
    owner.release(TRAIN)
    assert watch.held is not None
    assert (owner.number, owner.nominee.number, told) == (2, 2, [2])
    owner.begin_epoch(VAL, 6, collective=False)
    owner.begin_epoch(TRAIN, 5, collective=False)
    assert owner.pinned is pin
    owner.begin_epoch(TRAIN, 6, collective=False)
    assert owner.pinned is None
    assert (owner.number, told) == (4, [2, 4])


def test_pin_of_the_newest_remembers_nothing(store: Any) -> None:
    """There is nothing to go back to."""
    owner = owner_of(store, 3)
    for number in (3, 4):
        owner.pin(generation(number), TRAIN, 0)
        pin = owner.pinned
        assert pin is not None
        assert pin.newer is None
        owner.unpin(pin, adopting=True)
        assert owner.pinned is None
        assert owner.number == number


@pytest.mark.parametrize(
    ("adopt", "held", "then"),
    [("epoch", None, 3), ("epoch", 2, 3), ("epoch", 4, 4), ("now", None, None)],
)
def test_what_was_served_before_waits_for_the_next_epoch(
    store: Any, adopt: Adopt, held: int | None, then: int | None
) -> None:
    """With the watches that adopt by epochs, unless they hold a newer one already."""
    owner = owner_of(store, 3)
    watch = owner.join(adopt, frozenset([TRAIN]))
    other = owner.join(adopt, frozenset([TRAIN]))
    other.process += 1  # of the parent of a forked process
    watch.held = None if held is None else generation(held)
    owner.pin(generation(1), TRAIN, 0)
    pin = owner.pinned
    owner.unpin(None)
    owner.unpin(replace(pin) if pin else None)  # one that was replaced
    assert owner.pinned is pin
    owner.unpin(pin)
    assert owner.pinned is None
    assert owner.number == 1
    assert (watch.held.number if watch.held else None) == then
    assert other.held is None
    assert owner.nominee.number == (then or 1)


def test_end_of_a_pin_can_adopt_at_once(store: Any) -> None:
    """What was served before, if it is newer."""
    owner = owner_of(store, 3)
    owner.pin(generation(1), TRAIN, 0)
    owner.unpin(owner.pinned, adopting=True)
    assert (owner.pinned, owner.number) == (None, 3)


def test_collective_epoch_leaves_it_to_the_ranks(store: Any) -> None:
    """What the watches hold stays with them until all ranks have agreed."""
    owner = owner_of(store, 3)
    watch = owner.join("epoch", frozenset([TRAIN]))
    waiting = watch.held = generation(4)
    owner.begin_epoch(TRAIN, 1, collective=True)
    assert owner.number == 3
    assert owner.nominee is waiting
    owner.release(TRAIN, adopting=False)
    assert owner.nominee.number == owner.number == 3


def test_reload_ends_a_pin_and_serves_the_newest(store: Any) -> None:
    """Or goes on with what is served, if nothing is newer; the newest is checked in full."""
    owner = owner_of(store, 2)
    owner.pin(generation(1), TRAIN, 0)
    assert owner.reload() == 3
    assert owner.pinned is None
    ((pointer, validate),) = store.asked
    assert (pointer.generation, validate) == (3, "full")
    assert owner.newest() is None
    owner.pin(generation(3), TRAIN, 0)
    assert owner.reload() == 3
    assert owner.pinned is None
    assert len(store.asked) == 1


def test_switches_are_logged(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Once each, with the number and the folder."""
    owner = owner_of(store, 2)
    with caplog.at_level(logging.INFO, "jasper_mmap"):
        for number in (3, 3, 2):
            owner.adopt(generation(number))
    (record,) = caplog.records
    assert record.getMessage() == f"adopted generation 3 of {store.path}"


# A generation of a checkpoint


def test_known_generation_is_served_again_as_it_is(store: Any) -> None:
    """The number and the checksum must be those of the one in service."""
    pointer = pointer_chain("a", "b", "c")
    owner = Adoption(store, Control(1), generation(3, pointer))
    assert owner.identity == (3, "sha3")
    assert owner.again(3, "sha3") is owner.current(3)
    (store.path / FOLDER / file_name(2)).write_bytes(b"12345")
    owner.again(2, "sha2")
    ((asked, validate),) = store.asked
    assert validate == "full"
    assert asked == replace(
        pointer_chain("a", "b", "c", sources=(3,)),
        when=asked.when,
        by=asked.by,
        generation=2,
        file=file_name(2),
        bytes=5,
        sha256="sha2",
        mtime_ns=-1,
        source={},
        note="",
        history=(),
    )


def test_generation_that_is_another_one_or_gone_is_not_served_again(store: Any) -> None:
    """The file is named, and what is wrong; a number that the history lost may still be right."""
    owner = owner_of(store, 3)
    path = store.path / FOLDER / file_name(2)
    with pytest.raises(FormatError) as caught:
        owner.again(2, "sha1")
    assert str(caught.value) == f"{path}: has another content than that generation (SHA-256)."
    with pytest.raises(MissingFileError) as gone:
        owner.again(2, "sha2")
    assert str(gone.value) == f"{path} not found: it was removed, or not copied."
    (store.path / FOLDER / file_name(7)).touch()
    assert owner.again(7, "sha7").number == 7
    served = Adoption(store, Control(1), generation(3, pointer_chain("a", "b", "c")))
    with pytest.raises(FormatError, match="has another content"):
        served.again(3, "sha2")


def test_disk_that_fails_at_the_look_names_the_file(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not called missing."""
    owner = owner_of(store, 3)
    path = store.path / FOLDER / file_name(2)
    look = Path.stat

    def fail(at: Path, **options: Any) -> Any:
        if at == path:
            raise OSError(errno.EREMOTEIO, "remote")
        return look(at, **options)

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(StorageError) as caught:
        owner.again(2, "sha2")
    assert str(caught.value) == f"{path}: cannot read it: remote. Run it again."


def test_identity_is_that_of_the_served_generation(store: Any) -> None:
    """By the pointer it was opened with, else by the history; unknown where neither says it."""
    owner = owner_of(store, 2)
    assert owner.identity == (2, "sha2")
    mine = Adoption(store, Control(1), generation(2, replace(pointer_chain("a", "b"), sha256="x")))
    assert mine.identity == (2, "x")
    mine._control.set_generation(1)  # as another thread does that is just switching
    assert mine.identity == (1, "sha1")
    assert owner_of(store, 9).identity == (9, "")
    (store.path / FOLDER / "CURRENT.json").unlink()
    assert owner.identity == (2, "")


# Workers


def test_worker_opens_what_its_owner_has_open(store: Any, as_worker: None) -> None:
    """Once for each number; by the owner's descriptor while that is named."""
    owner = owner_of(store, 2)
    other = spawned(owner)
    served = other.current(other.number)
    assert served.number == 2
    assert other.current(2) is served
    owner._announce(generation(3))  # its descriptor is closed again, as if it was replaced
    assert other.current(3).number == 3
    assert [number for number, _ in store.asked] == [2, 3]
    assert store.asked[0][1] is not None
    for forbidden in (other.adopt, lambda newer: other.pin(newer, TRAIN, 0)):
        with pytest.raises(UsageError, match="a worker cannot adopt negatives"):
            forbidden(generation(5))
    assert other.pinned is None


def test_worker_tries_again_where_its_owner_switched_meanwhile(
    store: Any, as_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it opened may be another file, or none: the number was reused or closed."""
    owner = owner_of(store, 2)
    other = spawned(owner)
    lent = StandIn.lent

    def switching(one: StandIn, number: int, at: Path | None) -> PlacedGeneration:
        if number < 4:
            owner._control.set_generation(number + 1)
        if number == 2:
            one.failures.append(MissingFileError("gone"))
        return lent(one, number, at)

    monkeypatch.setattr(StandIn, "lent", switching)
    assert other.current(other.number).number == 4
    assert [number for number, _ in store.asked] == [2, 3, 4]


def test_worker_says_what_is_gone(store: Any, as_worker: None) -> None:
    """With what to do; other errors are as they are."""
    other = spawned(owner_of(store, 2))
    store.failures = [MissingFileError("x: not found."), ContentError("y: damaged.")]
    with pytest.raises(MissingFileError) as caught:
        other.current(2)
    assert str(caught.value) == (
        "x: not found. Generation 2, which this copy of the dataset serves, was removed from the"
        " disk, and its owner does not have it open: open the dataset again, or publish with a"
        " larger keep."
    )
    with pytest.raises(ContentError, match=r"^y: damaged\.$"):
        other.current(2)


# Copies


@pytest.mark.parametrize("remake", [copy.copy, lambda a: Adoption(*a.__reduce__()[1])])
def test_copy_opens_what_its_original_served(store: Any, remake: Any) -> None:
    """By the pointer, once; it owns its words and tells its workers."""
    original = owner_of(store, 2)
    twin = Adoption(store, pickle.loads(pickle.dumps(original._control)))
    assert twin.number == 2
    served = twin.current(2)
    ((pointer, validate),) = store.asked
    assert (pointer.generation, pointer.sha256, validate) == (2, "sha2", "auto")
    assert twin.current(2) is served
    assert twin._control.generation == (2, served.file.fd)
    assert remake(twin).served is store


def test_copy_keeps_what_another_thread_adopted_meanwhile(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go back."""
    twin = spawned(owner_of(store, 2))
    opened = StandIn.generation

    def slow(one: StandIn, pointer: Pointer, validate: str) -> PlacedGeneration:
        twin.adopt(generation(3))
        return opened(one, pointer, validate)

    monkeypatch.setattr(StandIn, "generation", slow)
    assert twin.current(twin.number).number == 3
    assert twin.number == 3


def test_copy_in_a_started_process_is_lent_what_was_removed(store: Any) -> None:
    """By its parent's descriptor, as long as that is named; else it says what to do."""
    owner = owner_of(store, 2)
    twin = spawned(owner)
    lender = owner._control.generation[1]
    store.failures = [MissingFileError("x: not found.")]
    assert twin.current(2).number == 2
    assert store.asked[-1] == (2, Path(f"/proc/{os.getpid()}/fd/{lender}"))
    assert twin._control.generation[0] == 2
    owner._control.set_generation(3)
    store.failures = [MissingFileError("x: not found.")]
    with pytest.raises(MissingFileError, match=r"^x: not found\. Generation 2, .* larger keep\.$"):
        spawned_of(owner, 2).current(2)


def spawned_of(owner: Adoption, number: int) -> Adoption:
    """Return a started process's, which does not have its own page yet, that serves a number."""
    twin = spawned(owner)
    twin._control.set_generation(number)
    return twin


def test_copy_refuses_a_descriptor_that_was_reused_meanwhile(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file behind it may be any."""
    owner = owner_of(store, 2)
    twin = spawned(owner)
    lent = StandIn.lent

    def closing(one: StandIn, number: int, at: Path | None) -> PlacedGeneration:
        owner._control.set_generation(2)
        return lent(one, number, at)

    monkeypatch.setattr(StandIn, "lent", closing)
    store.failures = [MissingFileError("x: not found.")]
    with pytest.raises(MissingFileError, match="Generation 2, which this copy"):
        twin.current(2)


# Ends


def test_end_of_an_owner_takes_its_descriptor_out_of_the_word(store: Any) -> None:
    """Its number may be reused for another file; the end of a worker changes nothing."""
    owner = owner_of(store, 2)
    control = owner._control
    assert control.generation[1] >= 0
    with pytest.MonkeyPatch.context() as patch:
        other = spawned(owner)
        patch.setattr(worker, "_worker_info", SimpleNamespace(id=0))
        del other
        assert control.generation[1] >= 0
    del owner
    assert control.generation == (2, -1)
