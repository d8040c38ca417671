"""Which generation a batch is read from: borrowed from an owner, opened by a copy, or gone.

The store is a stand-in, which hands out generations without tables.
"""

import copy
import errno
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data._utils import worker

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
from jasper_mmap.store.pointer import FOLDER, Pointer, file_name
from tests.dataset.generation.stand_in import StandIn, generation, owner_of, spawned
from tests.publishing import pointer_chain

# A generation of a checkpoint


def test_known_generation_is_served_again_as_it_is(standing: Any) -> None:
    """The number and the checksum must be those of the one in service."""
    pointer = pointer_chain("a", "b", "c")
    owner = Adoption(standing, Control(1), generation(3, pointer))
    assert owner.identity == (3, "sha3")
    assert owner.again(3, "sha3") is owner.current(3)
    (standing.path / FOLDER / file_name(2)).write_bytes(b"12345")
    owner.again(2, "sha2")
    ((asked, validate),) = standing.asked
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


def test_generation_that_is_another_one_or_gone_is_not_served_again(standing: Any) -> None:
    """The file is named, and what is wrong; a number that the history lost may still be right."""
    owner = owner_of(standing, 3)
    path = standing.path / FOLDER / file_name(2)
    with pytest.raises(FormatError) as caught:
        owner.again(2, "sha1")
    assert str(caught.value) == f"{path}: has another content than that generation (SHA-256)."
    with pytest.raises(MissingFileError) as gone:
        owner.again(2, "sha2")
    assert str(gone.value) == f"{path} not found: it was removed, or not copied."
    (standing.path / FOLDER / file_name(7)).touch()
    assert owner.again(7, "sha7").number == 7
    served = Adoption(standing, Control(1), generation(3, pointer_chain("a", "b", "c")))
    with pytest.raises(FormatError, match="has another content"):
        served.again(3, "sha2")


def test_disk_that_fails_at_the_look_names_the_file(
    standing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not called missing."""
    owner = owner_of(standing, 3)
    path = standing.path / FOLDER / file_name(2)
    look = Path.stat

    def fail(at: Path, **options: Any) -> Any:
        if at == path:
            raise OSError(errno.EREMOTEIO, "remote")
        return look(at, **options)

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(StorageError) as caught:
        owner.again(2, "sha2")
    assert str(caught.value) == f"{path}: cannot read it: remote. Run it again."


def test_identity_is_that_of_the_served_generation(standing: Any) -> None:
    """By the pointer it was opened with, else by the history; unknown where neither says it."""
    owner = owner_of(standing, 2)
    assert owner.identity == (2, "sha2")
    other = Adoption(
        standing, Control(1), generation(2, replace(pointer_chain("a", "b"), sha256="x"))
    )
    assert other.identity == (2, "x")
    other._control.set_generation(1)  # as another thread does that is just switching
    assert other.identity == (1, "sha1")
    assert owner_of(standing, 9).identity == (9, "")
    (standing.path / FOLDER / "CURRENT.json").unlink()
    assert owner.identity == (2, "")


# Workers


def test_worker_opens_what_its_owner_has_open(standing: Any, as_worker: None) -> None:
    """Once for each number; by the owner's descriptor while that is named."""
    owner = owner_of(standing, 2)
    other = spawned(owner)
    served = other.current(other.number)
    assert served.number == 2
    assert other.current(2) is served
    owner._announce(generation(3))  # its descriptor is closed again, as if it was replaced
    assert other.current(3).number == 3
    assert [number for number, _ in standing.asked] == [2, 3]
    assert standing.asked[0][1] is not None
    for forbidden in (other.adopt, lambda newer: other.pin(newer, "train", 0)):
        with pytest.raises(UsageError, match="a worker cannot adopt negatives"):
            forbidden(generation(5))
    assert other.pinned is None


def test_worker_tries_again_where_its_owner_switched_meanwhile(
    standing: Any, as_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it opened may be another file, or none: the number was reused or closed."""
    owner = owner_of(standing, 2)
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
    assert [number for number, _ in standing.asked] == [2, 3, 4]


def test_worker_says_what_is_gone(standing: Any, as_worker: None) -> None:
    """With what to do; other errors are as they are."""
    other = spawned(owner_of(standing, 2))
    standing.failures = [MissingFileError("x: not found."), ContentError("y: damaged.")]
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
def test_copy_opens_what_its_original_served(standing: Any, remake: Any) -> None:
    """By the pointer, once; it owns its words and tells its workers."""
    original = owner_of(standing, 2)
    twin = Adoption(standing, pickle.loads(pickle.dumps(original._control)))
    assert twin.number == 2
    served = twin.current(2)
    ((pointer, validate),) = standing.asked
    assert (pointer.generation, pointer.sha256, validate) == (2, "sha2", "auto")
    assert twin.current(2) is served
    assert twin._control.generation == (2, served.file.fd)
    assert remake(twin).served is standing


def test_copy_keeps_what_another_thread_adopted_meanwhile(
    standing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go back."""
    twin = spawned(owner_of(standing, 2))
    opened = StandIn.generation

    def slow(one: StandIn, pointer: Pointer, validate: str) -> PlacedGeneration:
        twin.adopt(generation(3))
        return opened(one, pointer, validate)

    monkeypatch.setattr(StandIn, "generation", slow)
    assert twin.current(twin.number).number == 3
    assert twin.number == 3


def test_copy_in_a_started_process_is_lent_what_was_removed(standing: Any) -> None:
    """By its parent's descriptor, as long as that is named; else it says what to do."""
    owner = owner_of(standing, 2)
    twin = spawned(owner)
    lender = owner._control.generation[1]
    standing.failures = [MissingFileError("x: not found.")]
    assert twin.current(2).number == 2
    assert standing.asked[-1] == (2, Path(f"/proc/{os.getpid()}/fd/{lender}"))
    assert twin._control.generation[0] == 2
    owner._control.set_generation(3)
    standing.failures = [MissingFileError("x: not found.")]
    with pytest.raises(MissingFileError, match=r"^x: not found\. Generation 2, .* larger keep\.$"):
        spawned_of(owner, 2).current(2)


def spawned_of(owner: Adoption, number: int) -> Adoption:
    """Return a started process's, which does not have its own page yet, that serves a number."""
    twin = spawned(owner)
    twin._control.set_generation(number)
    return twin


def test_copy_refuses_a_descriptor_that_was_reused_meanwhile(
    standing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file behind it may be any."""
    owner = owner_of(standing, 2)
    twin = spawned(owner)
    lent = StandIn.lent

    def closing(one: StandIn, number: int, at: Path | None) -> PlacedGeneration:
        owner._control.set_generation(2)
        return lent(one, number, at)

    monkeypatch.setattr(StandIn, "lent", closing)
    standing.failures = [MissingFileError("x: not found.")]
    with pytest.raises(MissingFileError, match="Generation 2, which this copy"):
        twin.current(2)


# Ends


def test_end_of_an_owner_takes_its_descriptor_out_of_the_word(standing: Any) -> None:
    """Its number may be reused for another file; the end of a worker changes nothing."""
    owner = owner_of(standing, 2)
    control = owner._control
    assert control.generation[1] >= 0
    with pytest.MonkeyPatch.context() as patch:
        other = spawned(owner)
        patch.setattr(worker, "_worker_info", SimpleNamespace(id=0))
        del other
        assert control.generation[1] >= 0
    del owner
    assert control.generation == (2, -1)
