"""A pinned generation stays in service while the pass lasts that was resumed with it."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from jasper_mmap.rules.names import Adopt
from tests.dataset.generation.stand_in import generation, owner_of
from tests.serving import SPLITS

TRAIN, VAL, _ = SPLITS


def test_pinned_generation_stays_whatever_is_adopted(standing: Any) -> None:
    """Older ones too; nothing is switched, held or nominated until the pin ends."""
    owner = owner_of(standing, 3)
    watch = owner.join("epoch", frozenset([TRAIN]))
    switches: list[int] = []
    owner.listeners.append(switches.append)
    owner.pin(generation(2), TRAIN, 5)
    pin = owner.pinned
    assert pin is not None
    assert (pin.split, pin.epoch, pin.newer and pin.newer.number) == (TRAIN, 5, 3)
    watch.held = generation(4)
    owner.adopt(generation(6))
    owner.release(TRAIN)
    assert watch.held is not None
    assert (owner.number, owner.nominee.number, switches) == (2, 2, [2])
    owner.begin_epoch(VAL, 6, collective=False)
    owner.begin_epoch(TRAIN, 5, collective=False)
    assert owner.pinned is pin
    owner.begin_epoch(TRAIN, 6, collective=False)
    assert owner.pinned is None
    assert (owner.number, switches) == (4, [2, 4])


def test_pin_of_the_newest_remembers_nothing(standing: Any) -> None:
    """There is nothing to go back to."""
    owner = owner_of(standing, 3)
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
    standing: Any, adopt: Adopt, held: int | None, then: int | None
) -> None:
    """With the watches that adopt by epochs, unless they hold a newer one already."""
    owner = owner_of(standing, 3)
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


def test_end_of_a_pin_can_adopt_at_once(standing: Any) -> None:
    """What was served before, if it is newer."""
    owner = owner_of(standing, 3)
    owner.pin(generation(1), TRAIN, 0)
    owner.unpin(owner.pinned, adopting=True)
    assert (owner.pinned, owner.number) == (None, 3)


def test_collective_epoch_leaves_it_to_the_ranks(standing: Any) -> None:
    """What the watches hold stays with them until all ranks have agreed."""
    owner = owner_of(standing, 3)
    watch = owner.join("epoch", frozenset([TRAIN]))
    waiting = watch.held = generation(4)
    owner.begin_epoch(TRAIN, 1, collective=True)
    assert owner.number == 3
    assert owner.nominee is waiting
    owner.release(TRAIN, adopting=False)
    assert owner.nominee.number == owner.number == 3


def test_reload_ends_a_pin_and_serves_the_newest(standing: Any) -> None:
    """Or goes on with what is served, if nothing is newer; the newest is checked in full."""
    owner = owner_of(standing, 2)
    owner.pin(generation(1), TRAIN, 0)
    assert owner.reload() == 3
    assert owner.pinned is None
    ((pointer, validate),) = standing.asked
    assert (pointer.generation, validate) == (3, "full")
    assert owner.newest() is None
    owner.pin(generation(3), TRAIN, 0)
    assert owner.reload() == 3
    assert owner.pinned is None
    assert len(standing.asked) == 1


def test_switches_are_logged(standing: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Once each, with the number and the folder."""
    owner = owner_of(standing, 2)
    with caplog.at_level(logging.INFO, "jasper_mmap"):
        for number in (3, 3, 2):
            owner.adopt(generation(number))
    (record,) = caplog.records
    assert record.getMessage() == f"adopted generation 3 of {standing.path}"
