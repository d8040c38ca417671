"""Cold stores: read through before the first batch, or fetched ahead of the batches."""

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jasper_mmap import JASPERSteeringDataset, create_loader
from jasper_mmap.dataset.device import placed_store
from jasper_mmap.files import memory_pages
from jasper_mmap.files.mapping import map_private, tensor_at
from jasper_mmap.files.memory_pages import fits, read_ahead, read_through
from jasper_mmap.loader import create
from jasper_mmap.loader.passes import local_pass
from jasper_mmap.rules.schema import WIDE
from jasper_mmap.store import folder
from tests.files.planting import written
from tests.oracle import Oracle
from tests.serving import NamedOracle, assert_pass_equals_oracle
from tools.bench.inputs import drop_from_memory

_LIBC = ctypes.CDLL(None, use_errno=True)


def resident(path: Path) -> float:
    """Return the share of a file's pages that lie in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as mapping:
        address = ctypes.c_char.from_buffer(mapping)
        begin = ctypes.c_void_p(ctypes.addressof(address))
        assert _LIBC.mincore(begin, ctypes.c_size_t(size), found) == 0
        del address
    return sum(byte & 1 for byte in found) / pages


@pytest.fixture
def cold_store(real_store: Path, tmp_path: Path) -> Path:
    """Return a copy of the real store of which nothing lies in memory."""
    store = tmp_path / "store"
    shutil.copytree(real_store, store)
    drop_from_memory(store)
    if resident(store / "source_embs.safetensors") > 0.1:
        pytest.skip("this file system keeps its files in memory")
    return store


@pytest.fixture
def oracle(oracle_named: NamedOracle) -> Oracle:
    """Return the oracle of the real folder."""
    return oracle_named("real")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_warm_store_lies_in_memory_before_the_first_batch(
    cold_store: Path,
    workers: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All of its files do; the log says so, and nothing is shown."""
    with caplog.at_level(logging.INFO, "jasper_mmap"):
        made = create_loader(cold_store, "train", 32, num_workers=workers, warm=True)
    assert min(resident(path) for path in made.dataset_obj.files) > 0.9
    assert capfd.readouterr().err == ""
    told = [record.getMessage() for record in caplog.records]
    assert told.count(f"reading {cold_store} into memory") == 1


def test_a_function_is_told_how_far_reading_is(
    real_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In place of the log: each file, and bytes that rise to the whole; its errors pass as they
    are."""
    calls: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.INFO, "jasper_mmap"):
        made = create_loader(real_store, "train", 32, warm=lambda *call: calls.append(call))
    assert not [record for record in caplog.records if "reading" in record.getMessage()]
    files = made.dataset_obj.files
    total = sum(path.stat().st_size for path in files)
    assert list(dict.fromkeys(name for name, _, _ in calls)) == [path.name for path in files]
    done = [bytes_done for _, bytes_done, _ in calls]
    assert done == sorted(set(done))
    assert (done[-1], {bytes_in_all for _, _, bytes_in_all in calls}) == (total, {total})

    def fail(*_: object) -> None:
        raise BrokenPipeError("the caller's own")

    with pytest.raises(BrokenPipeError, match="the caller's own"):
        create_loader(real_store, "train", 32, warm=fail)


def test_a_kernel_that_cannot_populate_reads_instead(
    cold_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read through with read(2), as far as memory knows the same."""
    monkeypatch.setattr(memory_pages, "_MADV_POPULATE_READ", 9999)
    made = create_loader(cold_store, "train", 32, warm=True)
    assert min(resident(path) for path in made.dataset_obj.files) > 0.9


def test_processes_of_a_node_take_turns(
    cold_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that comes later waits for the first; nothing is written for that, anywhere."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    paths = sorted(cold_store.rglob("*.safetensors"))
    with paths[0].open("rb") as held, ThreadPoolExecutor() as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        later = pool.submit(read_through, paths)
        time.sleep(0.3)
        assert not later.done()
        assert resident(paths[-1]) < 1
        fcntl.flock(held, fcntl.LOCK_UN)
        later.result(60)
    assert sorted(tmp_path.rglob("*")) == before
    assert min(resident(path) for path in paths) > 0.9


def test_a_file_that_cannot_be_locked_is_read_nevertheless(
    cold_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which locks only what is open for writing."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "")

    monkeypatch.setattr(fcntl, "flock", refuse)
    paths = sorted(cold_store.rglob("*.safetensors"))
    read_through(paths)
    assert min(resident(path) for path in paths) > 0.9


def test_what_fits_is_what_memory_has_free(real_store: Path, tmp_path: Path) -> None:
    """With a tenth left over."""
    with JASPERSteeringDataset(real_store, "train") as dataset:
        need = sum(path.stat().st_size for path in dataset.files)
        for free, want in ((need / 0.8, True), (need, False)):
            written(tmp_path, {"proc/meminfo": f"MemAvailable: {free / 1024:.0f} kB\n"})
            assert fits(dataset.files, tmp_path / "proc", tmp_path / "sys") == want


def test_rows_are_fetched_ahead(tmp_path: Path) -> None:
    """The pages of the rows named come into memory, and not much else."""
    path = tmp_path / "table"
    with path.open("w+b") as file:
        os.truncate(file.fileno(), 64 << 20)
        table = tensor_at(map_private(file.fileno(), 64 << 20), torch.float32, (16384, 1024), 0)
        drop_from_memory(tmp_path)
        if resident(path):
            pytest.skip("this file system keeps its files in memory")
        read_ahead(table, np.arange(0, 16384, 64))
        patience_s = time.monotonic() + 10
        while resident(path) < 1 / 64:
            assert time.monotonic() < patience_s
        assert resident(path) < 1 / 2


@pytest.mark.parametrize(("fitting", "flag"), [(True, "hg"), (False, "rr")])
def test_the_kernel_is_told_how_rows_are_read(
    real_store: Path, monkeypatch: pytest.MonkeyPatch, fitting: bool, flag: str
) -> None:
    """In large pages where memory holds the store, else row by row with nothing around them."""
    if fitting and not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no large pages")
    monkeypatch.setattr(placed_store, "worth_huge_pages", lambda n_bytes: fitting)
    monkeypatch.setattr(folder, "worth_huge_pages", lambda n_bytes: False)
    with JASPERSteeringDataset(real_store, "train") as dataset:
        begin = dataset.source_embs.data_ptr()
        _, _, mapping = Path("/proc/self/smaps").read_text().partition(f"\n{begin:x}-")
    flags = mapping.partition("VmFlags: ")[2].partition("\n")[0].split()
    assert {"hg", "rr"} & set(flags) == {flag}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_larger_than_memory_is_served_right(
    cold_store: Path, oracle: Oracle, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are fetched ahead."""
    monkeypatch.setattr(create, "fits", lambda files: False)
    made = create_loader(cold_store, "train", 64, num_workers=workers, warm=True, pin_memory=False)
    assert_pass_equals_oracle(made, oracle, "train")


def test_what_is_fetched_ahead_is_what_a_later_batch_reads(
    cold_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches before it, without workers."""
    monkeypatch.setattr(create, "fits", lambda files: False)
    fetched: list[torch.Tensor] = []

    def note(table: torch.Tensor, rows: NDArray[np.int64]) -> None:
        fetched.append(table[torch.from_numpy(rows)])

    monkeypatch.setattr(local_pass, "read_ahead", note)
    batches: list[Any] = [*create_loader(cold_store, "train", 64, warm=True, pin_memory=False)]
    want = [batch[column.name].flatten(0, -2) for batch in batches[2:] for column in WIDE]
    assert len(want) > len(WIDE)
    assert all(torch.equal(one, other) for one, other in zip(fetched, want, strict=True))
