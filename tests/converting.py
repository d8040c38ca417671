"""Builder's folders to change and break, and looks at what a conversion left on the disk."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from jasper_mmap.errors import MissingFileError, StoreChangedError
from jasper_mmap.store.folder import Store
from jasper_mmap.store.generations import sound_generation
from jasper_mmap.store.manifest import MANIFEST_FILE
from jasper_mmap.store.pointer import read_pointer

SMALL: dict[str, Any] = {"n_pairs": 60, "dim": 8, "n_neg": 4, "n_clusters": 3}
FORK = multiprocessing.get_context("fork")
KILLED = 9


def load(folder: Path, name: str) -> Any:
    """Read a builder's file with torch alone."""
    return torch.load(folder / f"{name}.pt", weights_only=True)


def edit(folder: Path, name: str, to: Callable[[Any], Any]) -> None:
    """Save another value, computed from the one there, as an artifact of a builder's folder."""
    torch.save(to(load(folder, name)), folder / f"{name}.pt")


def change(folder: Path, name: str, in_place: Callable[[torch.Tensor], Any]) -> None:
    """Save a table of a builder's folder anew, edited in place."""

    def to(table: torch.Tensor) -> torch.Tensor:
        table = table.clone()
        in_place(table)
        return table

    edit(folder, name, to)


def put(folder: Path, name: str, row: int, value: float) -> None:
    """Change one value of a builder's table, in the first column of a row."""
    change(folder, name, lambda t: t.view(len(t), -1)[row, 0].fill_(value))


def stored(path: Path) -> dict[str, torch.Tensor]:
    """Read a store's file with the safetensors library alone."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compare dtype, shape and bits."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a.numel() == 0 or torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


def touch(path: Path) -> None:
    """Give a file another time and no other content."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, size and time of everything in a folder."""
    found = {str(p.relative_to(folder)): p.stat() for p in folder.rglob("*")}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found.items()}


def inodes(store: Path) -> dict[str, int]:
    """Return the inode of each artifact's file, and the manifest's."""
    return {p.name: p.stat().st_ino for p in [*store.glob("*.safetensors"), store / MANIFEST_FILE]}


def contents(folder: Path) -> dict[str, Any]:
    """Return bytes and times of all files in a folder, but for the lock that publishers keep."""
    files = [p for p in folder.rglob("*") if p.name != ".lock"]
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) if p.is_file() else ()
        for p in files
    }


def started(work: Callable[[], object]) -> ForkProcess:
    """Return a forked process that runs `work`; its exit status is 1 if that raises."""

    def run() -> None:
        torch.set_num_threads(1)  # the threads of the parent's pool are not there after a fork
        work()

    child = FORK.Process(target=run)
    child.start()
    return child


def in_child(work: Callable[[], object], kill_after_s: float | None = None) -> int:
    """Run `work` in a forked process, killed after a while if asked; its exit status."""
    child = started(work)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode


def state(store: Path) -> str | None:
    """Return what identifies a store that opens and is sound in full.

    None where the opener is told that there is no store, or that a conversion is under way.
    """
    try:
        opened = Store(store, validate="full")
    except (StoreChangedError, MissingFileError):
        return None
    pointer = read_pointer(store)
    sound_generation(store, pointer, opened.store_id, opened.negatives_sizes, full=True)
    return f"{opened.store_id} {pointer.sha256}"
