"""Which generations stay on disk, against the rule written down once more."""

import itertools
import os
import random
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jasper_mmap.negatives.retention import remove_old
from jasper_mmap.store.pointer import FOLDER, Pointer, file_name

AGES_S = (5, 50, 500, 5000)


def pointer_of(began: dict[int, float]) -> Pointer:
    """Return a pointer with a history of these generations and the times when each began."""
    history = tuple(
        {"generation": n, "when": datetime.fromtimestamp(s, UTC).isoformat()}
        for n, s in began.items()
    )
    last = max(began)
    return Pointer(
        generation=last,
        file=file_name(last),
        bytes=0,
        mtime_ns=0,
        sha256="",
        store_id="",
        source={},
        when=str(history[-1]["when"]),
        by="",
        lint={},
        history=history,
    )


@pytest.mark.parametrize("seed", range(40))
def test_what_stays_is_what_the_rule_says(tmp_path: Path, seed: int) -> None:
    """In force, of the last `keep` that are still there, or replaced no longer than the grace."""
    draw = random.Random(seed)
    now = time.time()
    folder = tmp_path / FOLDER
    folder.mkdir()
    ages = sorted((draw.uniform(1, 2 * max(AGES_S)) for _ in range(8)), reverse=True)
    began = {number: now - age for number, age in enumerate(ages, 1) if draw.random() < 0.8}
    began = began or {1: now}
    on_disk = {n for n in began if draw.random() < 0.8} | {max(began)}
    orphans = {n: draw.choice(AGES_S) for n in range(20, 23)}  # a publisher died before its commit
    for number in on_disk | orphans.keys():
        path = folder / file_name(number)
        path.touch()
        if number in orphans:
            os.utime(path, (now - orphans[number],) * 2)
    keep, grace_s = draw.randint(1, 4), draw.choice([10.0, 100.0, 1000.0])
    remove_old(tmp_path, pointer_of(began), keep, grace_s)

    numbers = sorted(began)
    stay = set(sorted(on_disk)[-keep:]) | {max(began)}
    for number, following in itertools.pairwise(numbers):
        if number in on_disk and now - began[following] <= grace_s:
            stay.add(number)
    stay |= {number for number, age in orphans.items() if age <= grace_s}
    assert {int(path.stem) for path in folder.iterdir()} == stay
