"""What a disk may hold after a power cut at any point of what was recorded.

The model: what was written to a file and not synced is there, or not, or the whole pages of a part
of it are. Each creation, renaming and removal in a folder that was not synced since is there or
not, in any combination; a renaming is one step, and lasts when the folder it leads to is synced.
"""

import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from jasper_mmap.files import atomic
from jasper_mmap.files.failures import TEMPORARY
from tests.injecting import Fault

PAGE = 4096
CHANGING = {
    *("open", "close", "mkdir", "rmdir", "unlink", "rename", "replace", "fsync"),
    *("file.open", "file.write", "file.close"),
}
_PASSED = ("injecting.py", "power_cut.py", "pathlib.py", "contextlib.py")


@dataclass(frozen=True)
class Step:
    """One change of the disk, or one sync; paths are relative to the disk's root."""

    kind: str
    path: str
    at: int
    """The number of the call of the layer (`Recorder.calls`), or of the one before."""
    target: str = ""
    """Where a renaming leads to."""
    data: bytes = field(default=b"", repr=False)
    mtime_ns: int = 0


class Recorder(Fault):
    """Records what happens below `root`. Only those calls count, and may fail, by which
    `files.atomic` changes or syncs anything."""

    def __init__(self, root: Path, at: int = -1, number: int = 0) -> None:
        super().__init__(at, number)
        self._root = root
        self._busy = False
        self.steps: list[Step] = []

    def __call__(self, name: str, first: Any, *more: Any) -> None:
        """Note a call that is about to be made."""
        if self._busy or name not in CHANGING:
            return
        if _caller() == atomic.__file__:
            super().__call__(name, first)
        self._busy = True
        try:
            self._note(name, first, *more)
        finally:
            self._busy = False

    def _note(self, name: str, first: Any, *more: Any) -> None:
        if name == "file.write":
            self._step("write", _path_of(first.fileno()), data=bytes(more[0]))
        elif name == "fsync":
            path = _path_of(first)
            kind = "sync folder" if path.is_dir() else "sync"
            self._step(kind, path, mtime_ns=path.stat().st_mtime_ns)
        elif name in ("rename", "replace"):
            path = Path(first)
            self._step("rename", path, Path(more[0]), mtime_ns=path.stat().st_mtime_ns)
        elif name in ("mkdir", "open"):
            creates = name == "mkdir" or more[0] & os.O_CREAT
            if creates and not os.path.lexists(first):
                self._step("mkdir" if name == "mkdir" else "create", Path(first))
        elif (name == "unlink" and os.path.lexists(first)) or (
            name == "rmdir" and Path(first).is_dir() and not any(Path(first).iterdir())
        ):
            self._step(name, Path(first))

    def _step(self, kind: str, path: Path, target: Path | None = None, **more: Any) -> None:
        if path.is_relative_to(self._root):
            there = str(target.relative_to(self._root)) if target else ""
            name = str(path.relative_to(self._root))
            self.steps.append(Step(kind, name, len(self.calls) - 1, there, **more))


def _path_of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def _caller() -> str:
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename.endswith(_PASSED):
        frame = frame.f_back
    return frame.f_code.co_filename


@dataclass(eq=False)
class File:
    """The content of a file, of which the first `synced` bytes are on the disk."""

    data: bytes = b""
    synced: int = 0
    mtime_ns: int = 0

    def lengths(self) -> list[int]:
        """Return what may be left of it, in bytes."""
        pages = range(self.synced // PAGE + 1, -(-len(self.data) // PAGE))
        return sorted({self.synced, *(page * PAGE for page in pages), len(self.data)})


State = dict[str, tuple[File, int] | None]
"""Path -> file and the bytes of it that are there; None for a folder."""


@dataclass
class Disk:
    """A disk during the recorded steps: what is on it for sure, and what may be."""

    sure: dict[str, File | None]
    seen: dict[str, File | None]
    """What the running system sees."""
    pending: list[tuple[Step, File | None]] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> "Disk":
        """Return a disk on which all that is below `root` is for sure."""
        files: dict[str, File | None] = {}
        for path in sorted(root.rglob("*")):
            data = None if path.is_dir() else path.read_bytes()
            files[str(path.relative_to(root))] = (
                None if data is None else File(data, len(data), path.stat().st_mtime_ns)
            )
        return cls(files, dict(files))

    def again(self) -> "Disk":
        """Return the disk as it was before the first step."""
        return Disk(dict(self.sure), dict(self.seen))

    def take(self, step: Step) -> None:
        """Let the step happen."""
        file = self.seen.get(step.path)
        if step.kind == "sync folder":
            now = [(s, f) for s, f in self.pending if _folder(s) == step.path]
            for done, its_file in now:
                _apply(self.sure, done, its_file)
            self.pending = [p for p in self.pending if p not in now]
            return
        if step.kind in ("write", "sync"):
            if file is not None:
                file.data += step.data
                file.synced = len(file.data) if step.kind == "sync" else file.synced
                file.mtime_ns = step.mtime_ns or file.mtime_ns
            return
        if step.kind == "create":
            file = File()
        if file is not None:
            file.mtime_ns = step.mtime_ns or file.mtime_ns
        _apply(self.seen, step, file)
        self.pending.append((step, file))

    def _choices(self) -> list[list[int]]:
        files = {id(f): f for _, f in self.pending if f} | {
            id(f): f for f in self.sure.values() if f
        }
        self._torn = [f for f in files.values() if f.synced < len(f.data)]
        return [[0, 1]] * len(self.pending) + [f.lengths() for f in self._torn]

    def count(self) -> int:
        """Return how many states it may be left in, equal ones counted apart."""
        return prod(map(len, self._choices()))

    def states(self, most: int, dice: random.Random) -> Iterator[State]:
        """Yield these states; of more than `most` the two extremes and others by chance."""
        choices = self._choices()
        chosen: Iterator[tuple[int, ...]] = product(*choices)
        if prod(map(len, choices)) > most:
            extremes = [tuple(c[0] for c in choices), tuple(c[-1] for c in choices)]
            others = (tuple(map(dice.choice, choices)) for _ in range(most - 2))
            chosen = iter([*extremes, *others])
        for choice in chosen:
            entries = dict(self.sure)
            for (step, file), there in zip(self.pending, choice, strict=False):
                if there:
                    _apply(entries, step, file)
            lengths = {
                id(f): n for f, n in zip(self._torn, choice[len(self.pending) :], strict=True)
            }
            yield {
                path: None if file is None else (file, lengths.get(id(file), len(file.data)))
                for path, file in entries.items()
                if all(str(folder) in entries for folder in list(Path(path).parents)[:-1])
            }


def _folder(step: Step) -> str:
    return str(Path(step.target or step.path).parent)


def _apply(entries: dict[str, File | None], step: Step, file: File | None) -> None:
    if step.kind in ("create", "mkdir"):
        entries[step.path] = file
    elif step.kind == "rename":
        if entries.get(step.path) is file:
            del entries[step.path]
        entries[step.target] = file
    else:
        entries.pop(step.path, None)


def counted(disk: Disk, steps: list[Step]) -> list[int]:
    """Return the number of states before each step and after the last, equal ones counted apart."""
    disk = disk.again()
    counts = [disk.count()]
    for step in steps:
        disk.take(step)
        counts.append(disk.count())
    return counts


def cut(disk: Disk, steps: list[Step], most: int, seed: int = 0) -> Iterator[tuple[int, State]]:
    """Yield (steps done, state) for each different state that a power cut may leave.

    Of more than `most` in all some are drawn at each step. Those are equal that differ in locks and
    temporary files only, which nobody reads.
    """
    counts = counted(disk, steps)
    share = next((n for n in range(2, most) if sum(min(c, n + 1) for c in counts) > most), most)
    dice, disk = random.Random(seed), disk.again()
    known: set[frozenset[object]] = set()
    for done, step in enumerate([*steps, None]):
        last = step is None
        for state in disk.states(share, dice):
            key = frozenset(
                [
                    (path, held and (id(held[0]), held[1]))
                    for path, held in state.items()
                    if not path.endswith((TEMPORARY, ".lock", "-holder.json"))
                ]
                + [last]
            )
            if key not in known:
                known.add(key)
                yield done, state
        if step is not None:
            disk.take(step)
