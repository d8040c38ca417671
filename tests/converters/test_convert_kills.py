"""A killed conversion is completed by a rerun; two at once exclude each other."""

import bisect
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert
from converters.staging import staging
from jasper_mmap.errors import BusyError, IndexRangeError, StoreChangedError
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.folder import Store
from jasper_mmap.store.manifest import STAGING, read_manifest
from jasper_mmap.store.pointer import FOLDER
from jasper_mmap.store.tables import table_tensor
from tests.converting import KILLED, SMALL, change, edit, in_child, started, state
from tools.demo.folder import make_builder_folder, remine_negatives


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


class Versions:
    """One builder's folder, whose content is switched between an old and a new one."""

    def __init__(self, root: Path) -> None:
        self.folder = make_builder_folder(root / "built", with_distances=False, **SMALL)
        self.store = root / "store"
        convert(self.folder, self.store)
        self.old = state(self.store)
        edit(self.folder, "question_embs", lambda t: t * 2)
        edit(self.folder, "train_idx", lambda t: t.flip(0))
        for name, table in zip(
            ("hard_negatives", "negative_tiers"), remine_negatives(self.folder, seed=5), strict=True
        ):
            torch.save(table, self.folder / f"{name}.pt")
        shutil.copytree(self.store, root / "kept", symlinks=True)
        self._kept = root / "kept"
        convert(self.folder, root / "other")
        self.new = state(root / "other")
        assert None not in (self.old, self.new)
        assert self.old != self.new

    def restore(self) -> None:
        """Put the old store back."""
        shutil.rmtree(self.store)
        shutil.copytree(self._kept, self.store)


def die_at(step: int) -> None:
    """End this process at the n-th rename, removal or sync from now."""
    left = step
    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync")):
        original = getattr(owner, name)

        def counted(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(KILLED)
            return _original(*args, **kwargs)

        setattr(owner, name, counted)


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "over an old store"])
def test_a_conversion_killed_at_any_step_is_completed(fresh: bool, tmp_path: Path) -> None:
    """Before each rename, removal and sync: the old store, the new one, or a clear error.

    While files are only being staged every seventh step will do.
    """
    versions = Versions(tmp_path)

    def converted(kill_at: int) -> int:
        versions.restore()
        if fresh:
            shutil.rmtree(versions.store)

        def work() -> None:
            die_at(kill_at)
            convert(versions.folder, versions.store)

        return in_child(work)

    last = bisect.bisect_left(range(1000), True, key=lambda n: converted(n) != KILLED) - 1
    steps = [*range(0, last - 40, 7), *range(max(0, last - 40), last + 1)]
    assert len(steps) > 40
    for step in steps:
        assert converted(step) == KILLED
        assert state(versions.store) in (None, versions.old, versions.new)
        report = convert(versions.folder, versions.store)
        assert state(versions.store) == versions.new, f"step {step}"
        assert report.generation == (1 if fresh else 2), f"step {step}"
        assert not (versions.store / STAGING).exists()


def test_a_killed_conversion_goes_on_where_it_was(tmp_path: Path) -> None:
    """What was written whole is not written again."""
    versions = Versions(tmp_path)

    def work() -> None:
        convert(
            versions.folder,
            tmp_path / "fresh",
            progress=lambda name, *_: os._exit(KILLED) if name == "steering_centroid" else None,
        )

    assert in_child(work) == KILLED
    assert state(tmp_path / "fresh") is None
    with pytest.raises(StoreChangedError, match="running or was interrupted"):
        read_manifest(tmp_path / "fresh")
    report = convert(versions.folder, tmp_path / "fresh")
    assert report.left_alone[:3] == ("question_embs", "source_embs", "keyword_embs")
    assert "steering_centroid" in report.written
    assert state(tmp_path / "fresh") == versions.new


def test_a_failure_after_a_kill_keeps_what_is_needed(folder: Path, tmp_path: Path) -> None:
    """Bad input between a kill and its rerun neither loses nor adds anything."""
    store = tmp_path / "store"

    def work() -> None:
        convert(
            folder,
            store,
            progress=lambda name, *_: os._exit(KILLED) if name == "steering_centroid" else None,
        )

    assert in_child(work) == KILLED
    good = (folder / "train_idx.pt").read_bytes()
    status = (folder / "train_idx.pt").stat()
    staged = {p.name for p in (store / STAGING).glob("*.safetensors")}
    change(folder, "train_idx", lambda t: t[0].fill_(60))
    with pytest.raises(IndexRangeError, match="Split indices"):
        convert(folder, store)
    assert {p.name for p in (store / STAGING).glob("*.safetensors")} == staged
    (folder / "train_idx.pt").write_bytes(good)
    os.utime(folder / "train_idx.pt", ns=(0, status.st_mtime_ns))
    assert "question_embs" in convert(folder, store).left_alone


def test_sigkill_at_25_random_instants(real_folder: Path, tmp_path: Path) -> None:
    """The real folder: never a visible half store, and the rerun completes it."""
    started = time.perf_counter()
    assert in_child(lambda: convert(real_folder, tmp_path / "reference")) == 0
    took_s = time.perf_counter() - started
    reference = state(tmp_path / "reference")
    pauses = torch.rand(25, generator=torch.Generator().manual_seed(8)) * took_s * 1.05
    store = tmp_path / "store"
    for pause_s in pauses.tolist():
        in_child(lambda: convert(real_folder, store, force=True), pause_s)
        assert state(store) in (None, reference)
        convert(real_folder, store)
        assert state(store) == reference
        if pause_s < took_s / 2:  # half of them begin with no store
            shutil.rmtree(store)


def test_two_conversions_of_one_folder_exclude_each_other(folder: Path, tmp_path: Path) -> None:
    """The second is told who is at it; afterwards the way is free."""
    store = tmp_path / "store"
    with staging(store):
        with pytest.raises(BusyError, match=f"held by {os.getpid()}@.*another conversion"):
            convert(folder, store)
        assert (store / STAGING / ".lock").exists()
    assert not store.exists()
    convert(folder, store)


def test_many_conversions_at_once(folder: Path, tmp_path: Path) -> None:
    """Each ends well or says that another is at work; the store is whole in the end."""
    store = tmp_path / "store"

    def work() -> None:
        for _ in range(8):
            try:
                convert(folder, store, force=True)
            except BusyError:
                time.sleep(0.01)

    children = [started(work) for _ in range(3)]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert state(store) is not None
    assert not (store / STAGING).exists()


def test_a_reader_gets_one_whole_version_or_a_clear_error(folder: Path, tmp_path: Path) -> None:
    """While the store is converted over and over: every table it opens is of the same version."""
    store = tmp_path / "store"
    marked = ("question_embs", "source_embs", "steering_residual", "pair_relevance")

    def build(version: int) -> None:
        for name in marked:
            edit(folder, name, lambda t: torch.full_like(t, version / 16))
        convert(folder, store)

    build(0)

    def build_many() -> None:
        for number in range(40):
            build(number % 16)

    writer = started(build_many)
    seen, refused = set(), 0
    while writer.is_alive():
        try:
            opened = Store(store)
        except StoreChangedError:
            refused += 1
            continue
        flat = [table_tensor(opened.tables[name]).reshape(-1) for name in marked]
        values = {float(table[at]) for table in flat for at in (0, -1)}
        assert len(values) == 1
        seen |= values
    writer.join(60)
    assert writer.exitcode == 0
    assert len(seen) > 5
    assert (store / FOLDER / "000001.safetensors").exists()
    assert set(ARTIFACTS) == set(convert(folder, store).left_alone)
