"""The control words by themselves: what each holds, who shares them, and who has a copy."""

import copy
import itertools
import os
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data._utils import worker

from jasper_mmap.dataset import control as control_module
from jasper_mmap.dataset.control import NO_VARIANT, Control, SplitWords, in_worker
from jasper_mmap.store.pointer import MAX_GENERATION
from tests.converting import in_child


@contextmanager
def as_worker() -> Iterator[None]:
    """Make this process look like a worker of torch's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_worker_info", SimpleNamespace(id=0))
        yield


def all_words(control: Control, splits: int) -> list[int]:
    """Return generation and descriptor, then epoch and forced variant of each split."""
    each = [control.split(number).read() for number in range(splits)]
    for words in each:
        assert (words.generation, words.descriptor) == control.generation
    return [*control.generation, *itertools.chain(*(words[:2] for words in each))]


def test_every_word_has_its_own_place() -> None:
    """Setting one changes no other, of whatever split."""
    control = Control(3)
    assert all_words(control, 3) == [0, -1] + [0] * 6
    setters: list[Callable[[int], None]] = []
    for number in range(3):
        split = control.split(number)
        assert (split.control, split.number) == (control, number)
        setters += [split.set_epoch, split.set_forced]
    for value, setter in enumerate(setters, 1):
        setter(value)
    control.set_generation(9, 8)
    assert all_words(control, 3) == [9, 8, 1, 2, 3, 4, 5, 6]
    control.split(1).set_forced(NO_VARIANT)
    control.set_generation(10)
    assert all_words(control, 3) == [10, -1, 1, 2, 3, NO_VARIANT, 5, 6]
    assert [control.split(number).generation for number in range(3)] == [10] * 3


def test_one_word_holds_any_generation_with_any_descriptor() -> None:
    """The largest of both, and that there is no descriptor."""
    control = Control(1)
    for number in (0, 1, 2**31, 2**32 + 1, MAX_GENERATION):
        for descriptor in (-1, 0, 1, 4096, 2**20 - 1):
            control.set_generation(number, descriptor)
            assert control.generation == (number, descriptor)
            assert control.split(0).generation == number
            assert control.split(0).read() == (0, 0, number, descriptor)


@pytest.mark.parametrize("remake", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copy_starts_as_the_words_stand_and_goes_its_own_way(
    remake: Callable[[Any], Any],
) -> None:
    """Without the descriptor, which means nothing elsewhere; even if it looks like a worker."""
    control = Control(2)
    control.set_generation(3, 5)
    control.split(1).set_epoch(7)
    assert control.__reduce__() == (Control, (2, (3, 0, 0, 7, 0)))
    split: SplitWords = remake(remake(control.split(1)))
    assert split.number == 1
    twin = split.control
    control.split(0).set_epoch(4)
    with as_worker():
        assert all_words(twin, 2) == [3, -1, 0, 0, 7, 0]
        twin.split(0).set_forced(2)
        assert twin.is_owner()
    assert twin.lender(3) is None
    assert all_words(control, 2) == [3, 5, 4, 0, 7, 0]
    assert all_words(twin, 2) == [3, -1, 0, 2, 7, 0]


def spawned(control: Control) -> Control:
    """Return what a process that spawn or forkserver starts receives, in this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_module, "being_spawned", lambda: True)
        receive, arguments = control.__reduce__()
    return receive(*arguments)


def test_process_that_is_started_follows_only_as_a_worker() -> None:
    """Until then, and otherwise, it has the words as they stood at its start."""
    control = Control(2)
    control.set_generation(3, 5)
    control.split(0).set_epoch(1)
    other = spawned(control)
    control.set_generation(4, 6)
    control.split(0).set_epoch(2)
    assert other.is_owner()
    assert all_words(other, 2) == [3, -1, 1, 0, 0, 0]
    with as_worker():
        assert not other.is_owner()
        assert all_words(other, 2) == [4, 6, 2, 0, 0, 0]
        control.split(1).set_forced(3)
        assert other.split(1).read().forced == 3
    other.split(1).set_epoch(8)
    assert control.split(1).read().epoch == 0


def test_lender_names_a_descriptor_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the parent, for the generation that is asked for; the process's own control has none."""
    control = Control(1)
    opened = os.open(os.devnull, os.O_RDONLY)
    control.set_generation(3, opened)
    assert control.lender(3) is None
    other = spawned(control)
    path = Path(f"/proc/{os.getpid()}/fd/{opened}")
    assert other.lender(3) == path
    assert path.samefile(os.devnull)
    assert other.lender(2) is None
    control.set_generation(3, 0)  # a number like any other
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    assert other.lender(3) == Path(f"/proc/{os.getpid()}/fd/0")
    control.set_generation(3)
    assert other.lender(3) is None
    monkeypatch.undo()
    control.set_generation(3, opened)
    os.close(opened)
    assert other.lender(3) is None


def test_forked_process_has_words_of_its_own_and_its_workers_those() -> None:
    """It begins with the words at the fork, whatever its parent sets later; a forked worker
    follows its parent, and what a worker forks follows the same page as the worker."""
    control = Control(1)
    control.set_generation(2, 7)
    control.split(0).set_epoch(1)
    later = Control(1)  # each of them has its own words after a fork

    def other() -> None:
        assert all_words(control, 1) == [2, 7, 1, 0]
        assert control.is_owner()
        assert control.lender(2) is None or os.path.exists(f"/proc/{parent}/fd/7")  # noqa: PTH110
        control.split(0).set_epoch(5)
        control.set_generation(3)
        assert all_words(control, 1) == [3, -1, 5, 0]

    def as_forked_worker() -> None:
        with as_worker():
            assert in_worker()
            assert not control.is_owner()
            assert control.page.owner == parent
            control.split(0).set_forced(3)  # seen by the parent: it is its page

            def below() -> None:
                assert not in_worker()  # its info is that of the worker that forked it
                assert all_words(control, 1) == [2, 7, 1, 3]
                control.split(0).set_epoch(9)

            assert in_child(below) == 0
            assert all_words(control, 1) == [2, 7, 1, 3]

    parent = os.getpid()
    assert in_child(other) == 0
    assert all_words(control, 1) == [2, 7, 1, 0]
    assert in_child(as_forked_worker) == 0
    assert all_words(control, 1) == [2, 7, 1, 3]
    assert all_words(later, 1) == [0, -1, 0, 0]


def test_words_of_a_forked_process_are_those_at_the_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent may set them before it runs. Here both are one process, which hooks itself."""
    control = Control(1)
    control.set_generation(2, 7)
    control.split(0).set_epoch(1)
    living: weakref.WeakValueDictionary[int, Control] = weakref.WeakValueDictionary()
    living[0] = control
    monkeypatch.setattr(control_module, "_living", living)
    monkeypatch.setattr(control_module, "_inherited_info", None)
    control_module._before_fork()
    control.split(0).set_epoch(9)
    control_module._after_fork_in_child()
    assert all_words(control, 1) == [2, 7, 1, 0]
    with as_worker():
        assert all_words(control, 1) == [2, 7, 9, 0]
        control_module._before_fork()
        control_module._after_fork_in_child()
        assert not in_worker()  # the info is that of the worker that forked it
        assert all_words(control, 1) == [2, 7, 9, 0]
    assert not in_worker()
