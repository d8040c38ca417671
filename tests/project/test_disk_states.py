"""A power cut, or a write that fails, leaves the old state, the new one, or says what to do.

`tests.power_cut` tells what a power cut may leave; of more than 4,096 states of an operation as
many are drawn with a seed. By default some of those that differ are opened and some writes fail;
with JASPER_SOAK_S=30 (and `--timeout=0`) all of them do.
"""

import errno
import os
import random
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert, export_pt
from jasper_mmap import JASPERSteeringDataset, publish_negatives, rollback_negatives
from jasper_mmap.errors import (
    DurabilityError,
    ExistsError,
    JasperError,
    MissingFileError,
    StoreChangedError,
)
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.folder import Store
from jasper_mmap.store.manifest import STAGING
from tests.converting import SMALL, edit
from tests.injecting import injected
from tests.power_cut import Disk, File, Recorder, State, Step, counted, cut
from tests.publishing import LONG, NAMES
from tools.demo.folder import make_builder_folder

STATES = 4096
OPENED = STATES if LONG else 120
"""States of each operation that are opened."""
AGAIN = 1 if LONG else 4
"""Of so many one is also completed by running the operation again."""
REASONS = ("ENOSPC", "EIO", "EDQUOT")
UNDER_WAY = "running or was interrupted"
NOTHING = "no store"
LAST = list(ARTIFACTS.values())[-1].source


@dataclass(frozen=True)
class Operation:
    """Something that changes a store, given the inputs and the disk where it lies."""

    act: Callable[[Path, Path], object]
    place: str = "s"
    """The store or folder that it changes."""
    commit: str = "negatives/CURRENT.json"
    """What makes it current, in `place`."""
    withdraws: bool = False
    """Whether there is no store between two steps."""


def _publish(inputs: Path, disk: Path, **options: Any) -> None:
    negatives, tiers = (inputs / "two" / f"{name}.pt" for name in NAMES)
    publish_negatives(disk / "s", negatives, tiers, **options)


OPERATIONS = {
    "convert": Operation(
        lambda inputs, disk: convert(inputs / "one", disk / "new"), "new", "manifest.json", True
    ),
    "convert again": Operation(
        lambda inputs, disk: convert(inputs / "three", disk / "s"), "s", "manifest.json", True
    ),
    "publish": Operation(_publish),
    "rollback": Operation(lambda _, disk: rollback_negatives(disk / "s")),
    "retention": Operation(lambda inputs, disk: _publish(inputs, disk, keep=1, grace_s=0)),
    "export": Operation(lambda _, disk: export_pt(disk / "s", disk / "out"), "out", LAST),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the place of three builder's folders, and of a disk with a store of two generations.

    The third has the first one's tables, but for a few.
    """
    root = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(("one", "two")):
        make_builder_folder(root / name, seed=seed, **SMALL)
    shutil.copytree(root / "one", root / "three")
    for name in ("question_embs", "source_embs", "steering_residual", *NAMES):
        edit(root / "three", name, lambda table: table.flip(0))
    (root / "disk").mkdir()
    convert(root / "one", root / "disk" / "s")
    publish_negatives(root / "disk" / "s", *(torch.load(root / "two" / f"{n}.pt") for n in NAMES))
    rollback_negatives(root / "disk" / "s")
    return root


def store_at(place: Path) -> str:
    """Return what identifies the store there that is sound in full, or what the opener is told."""
    try:
        opened = Store(place, validate="full")
        pointer, _ = opened.current_generation(full=True)
    except StoreChangedError as error:
        if UNDER_WAY in str(error):
            return UNDER_WAY
        raise
    except MissingFileError:
        if not (place / "manifest.json").exists():
            return NOTHING
        raise
    return f"{opened.store_id} {pointer.generation} {pointer.sha256}"


def exported_at(place: Path) -> str:
    """Return the digest of an export that is whole."""
    files = [place / name for name in ("config.json", *(a.source for a in ARTIFACTS.values()))]
    if not all(path.exists() for path in files):
        return NOTHING
    return ",".join(str(zlib.crc32(path.read_bytes())) for path in files)


def seen(operation: Operation, disk: Path) -> str:
    """Return what a user finds after a power cut."""
    look = exported_at if operation is OPERATIONS["export"] else store_at
    return look(disk / operation.place)


def litter(place: Path) -> list[Path]:
    """Return what only a writer at work needs."""
    return [
        p
        for p in place.rglob("*")
        if p.name == STAGING or p.name.endswith((".tmp", "-holder.json"))
    ]


def same(one: str, other: str) -> bool:
    """Whether both are the same tables and negatives, of whichever generation."""
    return one.split()[::2] == other.split()[::2]


@dataclass(frozen=True)
class Run:
    """An operation that went well: what it did, and what is found before and after."""

    disk: Disk
    recorder: Recorder
    old: str
    new: str

    @property
    def steps(self) -> list[Step]:
        return self.recorder.steps

    def call_of(self, kind: str, target: str) -> int:
        """Return the number of the last call of that kind for this path."""
        return max(s.at for s in self.steps if s.kind == kind and target in (s.path, s.target))


def recorded(operation: Operation, inputs: Path, root: Path) -> Run:
    """Do it once, on a copy of the disk at `root`."""
    shutil.copytree(inputs / "disk", root)
    disk, old = Disk.of(root), seen(operation, root)
    recorder = Recorder(root)
    with injected(recorder):
        operation.act(inputs, root)
    return Run(disk, recorder, old, seen(operation, root))


class Bench:
    """Puts states of a disk into a folder; equal contents are written once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._kept: dict[tuple[File, int], Path] = {}

    def lay(self, state: State) -> Path:
        """Return a folder that holds just this state."""
        shutil.rmtree(self._root / "disk", ignore_errors=True)
        (self._root / "disk").mkdir(parents=True)
        for name in sorted(state):
            held, path = state[name], self._root / "disk" / name
            if held is None:
                path.mkdir()
            elif path.parent.is_dir():
                path.hardlink_to(self._content(*held))
        return self._root / "disk"

    def _content(self, file: File, length: int) -> Path:
        if (file, length) not in self._kept:
            path = self._kept[file, length] = self._root / str(len(self._kept))
            path.write_bytes(file.data[:length])
            os.utime(path, ns=(0, file.mtime_ns))
        return self._kept[file, length]


def finish(operation: Operation, inputs: Path, disk: Path, what: str) -> str:
    """Do it once more: it completes what is not complete, and leaves nothing lying about."""
    holders = list(disk.rglob("negatives/*-holder.json"))  # stays until somebody publishes
    try:
        operation.act(inputs, disk)
    except ExistsError:
        assert operation.place == "out", what
    assert not [p for p in litter(disk / operation.place) if p not in holders], what
    return seen(operation, disk)


def left(run: Run, steps: list[Step]) -> list[tuple[int, State]]:
    """Return (steps done, state) of the different states to be opened, those at the end too."""
    states = list(cut(run.disk, steps, STATES))
    dice = random.Random(len(states))
    opened = set(dice.sample(range(len(states)), min(OPENED, len(states))))
    return [s for i, s in enumerate(states) if i in opened or s[0] == len(steps)]


def wrong(operation: Operation, run: Run, found: str, whole: bool) -> bool:
    """Whether that may not be found, when the operation has ended or before."""
    between = [UNDER_WAY] if operation.withdraws else []
    return found not in ((run.new,) if whole else (run.old, run.new, *between))


@pytest.mark.parametrize("name", OPERATIONS)
def test_power_cut_leaves_the_old_state_or_the_new_one(
    name: str, inputs: Path, tmp_path: Path
) -> None:
    """Or a conversion that has to be run again, which completes it; what has ended is durable."""
    operation, bench, outcomes = OPERATIONS[name], Bench(tmp_path / "states"), Counter[str]()
    run = recorded(operation, inputs, tmp_path / "disk")
    names = {run.old: "old", run.new: "new", UNDER_WAY: "to be completed"}
    states = left(run, run.steps)
    for number, (done, state) in enumerate(states):
        what = f"after {done} of {len(run.steps)} steps ({run.steps[done - 1]})"
        disk = bench.lay(state)
        found = seen(operation, disk)
        assert not wrong(operation, run, found, done == len(run.steps)), f"{what}: {found}"
        outcomes[names[found]] += 1
        if number % AGAIN == 0:
            again = finish(operation, inputs, disk, what)
            assert name == "rollback" or same(again, run.new), what
    counts = (
        f"{sum(counted(run.disk, run.steps))} states, {len(states)} of the different ones opened"
    )
    print(f"{name}: {len(run.steps)} steps, {counts}: {dict(outcomes)}")


def found_bad(operation: Operation, run: Run, steps: list[Step], bench: Bench) -> bool:
    """Whether a state that these steps may leave is none that is allowed."""
    for done, state in left(run, steps):
        try:
            found = seen(operation, bench.lay(state))
        except (JasperError, AssertionError):
            return True
        if wrong(operation, run, found, done == len(steps)):
            return True
    return False


PLANTED = {
    "the generation's file": ("publish", "sync", r".*000004\.safetensors.*", 0),
    "the pointer's file": ("publish", "sync", r".*CURRENT\.json.*", 0),
    "a table's file": ("convert again", "sync", r".*question_embs\.safetensors.*", 0),
    "the generation's name": ("publish", "sync folder", "s/negatives", -2),
    "the pointer's name": ("publish", "sync folder", "s/negatives", -1),
    "the staging folder": ("convert again", "sync folder", "s", 0),
    "the manifest's removal": ("convert again", "sync folder", "s", 1),
    "the tables' names": ("convert again", "sync folder", "s", 2),
    "the manifest's name": ("convert again", "sync folder", "s", 3),
    "the new store": ("convert", "sync folder", r"\.", 0),
    "the exported files": ("export", "sync folder", "out", -1),
}
"""What is not synced -> operation, kind and path of that step, and which one of those it is."""


@pytest.mark.parametrize("what", PLANTED)
def test_sync_that_is_left_out_is_found(what: str, inputs: Path, tmp_path: Path) -> None:
    """By a state that is neither the old one nor the new one: the states tried are hard enough."""
    name, kind, path, which = PLANTED[what]
    operation, bench = OPERATIONS[name], Bench(tmp_path / "states")
    run = recorded(operation, inputs, tmp_path / "disk")
    steps = list(run.steps)
    at = [i for i, s in enumerate(steps) if s.kind == kind and re.fullmatch(path, s.path)][which]
    steps[at] = replace(steps[at], kind="write")  # of nothing
    assert not found_bad(operation, run, run.steps, bench)
    assert found_bad(operation, run, steps, bench)


FAILED = None if LONG else 40
"""Calls of each operation that fail, each for one reason; None: all, for each reason."""


def drawn(recorder: Recorder, name: str) -> list[tuple[int, str]]:
    """Return (number of a call of the layer that writes, why it is to fail); half of those drawn
    are among the last ones, which put in place what was prepared."""
    calls = [(at, reason) for at in range(len(recorder.calls)) for reason in REASONS]
    if FAILED is None:
        return calls
    dice = random.Random(zlib.crc32(name.encode()))
    return dice.sample(calls, FAILED // 2) + dice.sample(calls[-150:], FAILED // 2)


def contents(disk: Path) -> dict[str, bytes]:
    """Return all files, but for the lock that publishers keep."""
    files = [path for path in disk.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(disk)): path.read_bytes() for path in files}


def inodes(place: Path) -> set[int]:
    """Return what names the files of a store's tables; a file written anew has another."""
    return {path.stat().st_ino for path in place.glob("*.safetensors")}


def failing(operation: Operation, inputs: Path, disk: Path, fault: Recorder) -> JasperError | None:
    """Do it while one call fails; what it says."""
    try:
        with injected(fault):
            operation.act(inputs, disk)
    except JasperError as error:
        return error
    finally:
        assert fault.failed
    return None


@pytest.mark.parametrize("name", OPERATIONS)
def test_write_that_fails_leaves_the_old_state_or_the_new_one(
    name: str, inputs: Path, tmp_path: Path
) -> None:
    """Until the first step that shows, nothing is changed; after the last the new state serves, and
    it is said where that may not last. Between them a conversion says what to do."""
    operation, outcomes = OPERATIONS[name], Counter[str]()
    run = recorded(operation, inputs, tmp_path / "disk")
    before = contents(inputs / "disk")
    place = operation.place
    last = run.call_of("rename", f"{place}/{operation.commit}")
    shows = min(s.at for s in run.steps if s.at == last or str(Path(s.target).parent) == place)
    if (
        operation.withdraws
    ):  # the journal is complete, its folder synced (three calls): what follows
        shows = run.call_of("rename", f"{place}/{STAGING}/journal.json") + 4
    synced = min(s.at for s in run.steps if s.kind == "sync folder" and s.at > last)
    for number, (at, reason) in enumerate(drawn(run.recorder, name)):
        what = f"call {at} ({run.recorder.calls[at]}) of {name}: {reason}"
        disk = Path(shutil.copytree(inputs / "disk", tmp_path / str(number)))
        with JASPERSteeringDataset(disk / "s", "train") as reading:
            batch: Any = reading[0]
            fault = Recorder(disk, at, getattr(errno, reason))
            error = failing(operation, inputs, disk, fault)
            assert fault.calls[at] == run.recorder.calls[at]
            now: Any = reading[0]
            assert all(torch.equal(now[name], value) for name, value in batch.items()), what
        found = seen(operation, disk)
        lasts = not isinstance(error, DurabilityError)
        if error is None or at > last:
            assert found == run.new, f"{what}: {error}"
            assert lasts or "is current, but may not survive a power cut" in str(error), what
            assert error is None or not lasts, f"{what}: {error}"
            assert not lasts or at != synced, what
        elif at < shows:
            assert (found, contents(disk)) == (run.old, before), f"{what}: {error}"
        elif operation.withdraws:
            assert found == UNDER_WAY or (at, found) == (shows, run.old), what
        else:
            assert found == run.old, what
        outcomes["tolerated" if error is None else type(error).__name__] += 1
        doubtful = inodes(disk / place) if error and shows < at else set()
        again = finish(operation, inputs, disk, what)
        assert name == "rollback" or same(again, run.new), what
        assert not operation.withdraws or not doubtful & inodes(disk / place), what
        shutil.rmtree(disk)
    print(f"{name}: {len(run.recorder.calls)} calls, {outcomes.total()} failed: {dict(outcomes)}")
