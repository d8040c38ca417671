"""Which generation is in service, step by step against a model of a few lines."""

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jasper_mmap.dataset.adoption import Adoption, Watching
from jasper_mmap.dataset.control import Control
from jasper_mmap.dataset.device.placed_store import PlacedGeneration
from jasper_mmap.errors import UsageError
from jasper_mmap.files.shared_memory import Descriptor
from tests.serving import SPLITS

STORE: Any = SimpleNamespace(path=Path("store"))


def generation(number: int) -> PlacedGeneration:
    """Return one without tables."""
    return PlacedGeneration(number, Descriptor(os.open(os.devnull, os.O_RDONLY)), {})


@pytest.mark.parametrize("seed", range(5))
def test_epochs_serve_the_newest_that_their_watches_hold(seed: int) -> None:
    """Whatever is held, adopted, released and left in whatever order; each switch is told once."""
    dice = random.Random(seed)
    adoption = Adoption(STORE, Control(len(SPLITS)), generation(1))
    told: list[int] = []
    adoption.listeners.append(told.append)
    served, newest, switches = 1, 1, []
    held: dict[Watching, int] = {}
    watches = [adoption.join("epoch", frozenset(dice.sample(SPLITS, k))) for k in (1, 1, 2, 3)]
    for _ in range(500):
        step = dice.choice(["hold", "adopt", "older", "epoch", "drop", "leave"])
        watch, split = dice.choice(watches), dice.choice(SPLITS)
        offered: list[int] = []
        if step == "hold":
            newest += 1
            watch.held, held[watch] = generation(newest), newest
        elif step == "leave":
            adoption.leave(watch)
            held.pop(watch, None)
            watches.remove(watch)
            watches.append(adoption.join("epoch", watch.splits))
        elif step in ("adopt", "older"):
            offered = [dice.randint(1, newest)]
            adoption.adopt(generation(offered[0]), older=step == "older")
        else:
            adoption.release(split, adopting=step == "epoch")
            ended = [held.pop(w) for w in watches if split in w.splits and w in held]
            offered = ended if step == "epoch" else []
        for number in offered:
            if number > served or (step == "older" and number != served):
                served = number
                switches.append(number)
        assert adoption.number == served
        assert adoption.nominee.number == max([served, *held.values()])
    assert told == switches
    assert len(set(told)) > 20


def test_watches_of_one_set_adopt_at_one_time() -> None:
    """Another time is refused while one runs, and taken when it has been left."""
    adoption = Adoption(STORE, Control(1), generation(1))
    watch = adoption.join("now", frozenset(SPLITS[:1]))
    with pytest.raises(UsageError, match=r"adopt='epoch'.*adopt='now'"):
        adoption.join("epoch", frozenset(SPLITS[:1]))
    adoption.leave(watch)
    assert adoption.join("epoch", frozenset(SPLITS[:1])).adopt == "epoch"
