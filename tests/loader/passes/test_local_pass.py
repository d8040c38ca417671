"""The package's own iterators behave as DataLoader's: errors, deaths, early stops, order."""

import gc
import multiprocessing
import os
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate, get_worker_info

from jasper_mmap import JASPERSteeringDataset, create_loader, set_epoch
from jasper_mmap.dataset.batch_layout import Layout
from jasper_mmap.dataset.samples import Sample
from jasper_mmap.loader import create as create_module
from jasper_mmap.loader.passes.worker_pool import WorkerPool
from jasper_mmap.loader.passes.worker_process import REQUEST
from jasper_mmap.rules.names import Split

CONTEXTS = ("fork", "spawn", "forkserver")


def columns_equal(got: Mapping[str, Any], want: Mapping[str, Any]) -> bool:
    """Whether two batches hold the same."""
    return set(got) == set(want) and all(torch.equal(got[name], want[name]) for name in want)


def expected(store: Path, batch_size: int, split: Split = "train") -> list[dict[str, torch.Tensor]]:
    """The batches of the first pass, read one by one through the dataset."""
    loader = create_loader(store, split, batch_size)
    order = list(loader.sampler_obj)
    dataset = JASPERSteeringDataset(store, split)
    return [
        dataset.__getitems__(order[i * batch_size : (i + 1) * batch_size]).columns
        for i in range(len(loader))
    ]


@pytest.mark.parametrize("context", CONTEXTS)
def test_two_iterators_of_one_loader_do_not_disturb_each_other(
    demo_store: Path, context: str
) -> None:
    """Interleaved, each serves its own pass."""
    want = expected(demo_store, 32)
    loader = create_loader(demo_store, "train", 32, num_workers=2, multiprocessing_context=context)
    first = iter(loader)
    set_epoch(loader, 0)
    second = iter(loader)
    for one, other, batch in zip(first, second, want, strict=True):
        assert columns_equal(one, batch)
        assert columns_equal(other, batch)


def test_stopping_early_leaves_the_next_pass_whole(demo_store: Path) -> None:
    """Batches under way for a consumer that left do not turn up in the next pass."""
    want = expected(demo_store, 16)
    loader = create_loader(demo_store, "train", 16, num_workers=2)
    for _ in range(5):
        set_epoch(loader, 0)
        next(iter(loader))
    set_epoch(loader, 0)
    assert all(columns_equal(b, w) for b, w in zip(loader, want, strict=True))


def test_the_passes_of_an_epoch_differ_and_the_first_is_repeatable(demo_store: Path) -> None:
    """Pass 0 comes again after set_epoch; pass 1 has another order of the same samples."""
    loader = create_loader(demo_store, "train", 16, num_workers=1)
    orders = []
    for _ in range(2):
        set_epoch(loader, 3)
        orders.append(list(loader.sampler_obj))
        list(loader)
        orders.append(list(loader.sampler_obj))
    assert orders[0] == orders[2]
    assert orders[1] == orders[3]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_an_exception_in_a_worker_arrives_with_its_traceback(demo_store: Path) -> None:
    """It keeps its type, and the loop may go on behind it."""
    loader = create_loader(demo_store, "val", 8, num_workers=2)

    def fail(worker: int) -> None:
        raise LookupError("said by the test")

    loader.worker_init_fn = fail
    batches = iter(loader)
    for _ in range(2):
        with pytest.raises(LookupError, match=r"(?s)worker process.*in fail.*said by the test"):
            next(batches)


def test_worker_init_and_worker_info_are_as_in_torch(demo_store: Path, tmp_path: Path) -> None:
    """Each worker runs the user's function once, knows its number, and has a seed of its own."""
    loader = create_loader(demo_store, "val", 8, num_workers=2)

    def note(worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        note = tmp_path / f"{info.id}"
        note.with_suffix(".part").write_text(f"{worker} {info.num_workers} {torch.initial_seed()}")
        note.with_suffix(".part").replace(note)

    loader.worker_init_fn = note
    list(loader)
    patience_s = time.monotonic() + 20
    while not all((tmp_path / f"{worker}").exists() for worker in range(2)):
        # One worker may serve the whole split before the other has started.
        assert time.monotonic() < patience_s
        time.sleep(0.02)
    notes = [(tmp_path / str(worker)).read_text().split() for worker in range(2)]
    assert [note[:2] for note in notes] == [["0", "2"], ["1", "2"]]
    assert int(notes[1][2]) - int(notes[0][2]) == 1


def test_a_dead_worker_is_noticed_and_named(demo_store: Path) -> None:
    """Killed from outside, it ends the pass with its process number; a new pass starts anew."""
    loader = create_loader(demo_store, "train", 8, num_workers=1)
    batches = iter(loader)
    next(batches)
    assert loader._pool is not None
    (pid,) = loader._pool.pids
    os.kill(pid, 9)
    with pytest.raises(RuntimeError, match=rf"worker 0 \(pid {pid}\) exited unexpectedly"):
        list(batches)
    set_epoch(loader, 0)
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_a_request_to_a_dead_worker_names_it(demo_store: Path, context: str) -> None:
    """Also where the server that forked it has not told of its death yet."""
    loader = create_loader(demo_store, "train", 8, num_workers=1, multiprocessing_context=context)
    batches = iter(loader)
    next(batches)
    pool = loader._pool
    assert pool is not None

    def send_for_ever(pool: WorkerPool) -> None:
        while True:
            pool._unsent[0] = REQUEST.pack(0, 0, 0, 0, 0, 0)
            pool.send()

    os.kill(pool.pids[0], 9)
    with pytest.raises(RuntimeError, match=rf"worker 0 \(pid {pool.pids[0]}\) exited"):
        send_for_ever(pool)


def test_a_slow_worker_runs_into_the_timeout(demo_store: Path) -> None:
    """`timeout` is in seconds, as DataLoader's."""
    loader = create_loader(demo_store, "val", 8, num_workers=1)

    def dawdle(worker: int) -> None:
        time.sleep(2)

    loader.worker_init_fn = dawdle
    loader.timeout = 0.2
    with pytest.raises(RuntimeError, match=r"timed out after 0\.2 seconds"):
        next(iter(loader))


def test_in_order_false_serves_every_batch_once(demo_store: Path) -> None:
    """In whatever order they were done."""
    want = expected(demo_store, 16)
    loader = create_loader(demo_store, "train", 16, num_workers=2)
    loader.in_order = False
    got = [batch["question_emb"].sum().item() for batch in loader]
    assert sorted(got) == sorted(batch["question_emb"].sum().item() for batch in want)


def test_a_slow_worker_holds_up_only_its_own_batches(demo_store: Path) -> None:
    """With in_order=False the others serve all but what it was asked for at first."""
    go_on = multiprocessing.Event()

    def first_waits(worker: int) -> None:
        if worker == 0:
            go_on.wait()

    loader = create_loader(demo_store, "train", 8, num_workers=2, prefetch_factor=2)
    loader.in_order, loader.timeout = False, 60
    loader.worker_init_fn = first_waits
    batches = iter(loader)
    for _ in range(len(loader) - 2):
        next(batches)
    go_on.set()
    assert len(list(batches)) == 2


def test_prefetching_may_be_deeper_than_a_pipe_takes_at_once(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of requests at a time go out in pieces that a pipe passes on whole."""
    write, written = os.write, []

    def noted(fd: int, data: bytes) -> int:
        written.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", noted)
    want = expected(demo_store, 1)
    loader = create_loader(demo_store, "train", 1, num_workers=1, prefetch_factor=len(want))
    assert len(want) * REQUEST.size > select.PIPE_BUF
    assert all(columns_equal(b, w) for b, w in zip(loader, want, strict=True))
    assert max(written) <= select.PIPE_BUF


def test_small_batches_are_prefetched_deeper(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the caller says how deep; DataLoader's attribute tells it."""

    def prefetched(asked: int | None) -> int | None:
        loader = create_loader(demo_store, "train", 8, num_workers=1, prefetch_factor=asked)
        return loader.prefetch_factor

    assert (prefetched(None), prefetched(3)) == (8, 3)
    slot = Layout(8, 32, 12).nbytes
    for count, want in ((5, 5), (1, 2)):
        monkeypatch.setattr(create_module, "_PREFETCH_BYTES", count * slot)
        assert (prefetched(None), prefetched(3)) == (want, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_function_of_the_user_sees_the_samples(demo_store: Path, workers: int) -> None:
    """In the promised order, through torch's own iterator."""
    want = expected(demo_store, 16)
    loader = create_loader(demo_store, "train", 16, num_workers=workers)

    def first_of(samples: list[Sample]) -> dict[str, torch.Tensor]:
        assert len(samples) == 16
        return dict(default_collate([dict(s) for s in samples[:1]]))

    loader.collate_fn = first_of
    for batch, whole in zip(loader, want, strict=True):
        assert columns_equal(batch, {name: column[:1] for name, column in whole.items()})


def test_workers_end_with_the_loader(demo_store: Path) -> None:
    """Persistent ones when it is dropped, others when the pass is over."""
    loader = create_loader(demo_store, "val", 8, num_workers=2)
    list(loader)
    assert loader._pool is not None
    kept = loader._pool.pids
    assert all(Path(f"/proc/{pid}").exists() for pid in kept)
    del loader
    gc.collect()
    assert not any(Path(f"/proc/{pid}").exists() for pid in kept)
    once = create_loader(demo_store, "val", 8, num_workers=2, persistent_workers=False)
    batches = iter(once)
    pids = batches._pool.pids  # type: ignore[attr-defined]
    list(batches)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


TRAINER = """
    import sys, time
    from jasper_mmap import create_loader
    if __name__ == "__main__":
        loader = create_loader(sys.argv[1], "train", 8, num_workers=2,
                               multiprocessing_context=sys.argv[2])
        batches = iter(loader)
        next(batches)
        print(*loader._pool.pids, flush=True)
        if sys.argv[3] == "idle":
            time.sleep(60)
        while True:
            for batch in loader:
                pass
"""


@pytest.mark.parametrize("doing", ["idle", "busy"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_workers_end_when_the_trainer_is_killed(
    demo_store: Path, tmp_path: Path, context: str, doing: str
) -> None:
    """They notice the closed pipe and say nothing; no process ever had memory with a name."""
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER))
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(demo_store), context, doing],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert trainer.stdout is not None
    assert trainer.stderr is not None
    with trainer:
        pids = trainer.stdout.readline().split()
        named = [_named_memory(pid) for pid in [str(trainer.pid), *pids]]
        trainer.kill()
        said = trainer.stderr.read()  # until the last worker is gone
    assert len(pids) == 2
    assert said == ""
    patience_s = time.monotonic() + 20
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < patience_s, f"workers {pids} outlived the trainer"
        time.sleep(0.05)
    assert named == [[], [], []]


def _named_memory(pid: int | str) -> list[str]:
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line for line in maps if "/dev/shm/" in line]


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


SMALL_SHM = """
    mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {python} -c "
    from jasper_mmap import create_loader
    loader = create_loader('{store}', 'train', 256, num_workers=2)
    print(sum(len(batch['relevance']) for _ in range(20) for batch in loader))
    "
"""


def test_the_size_of_dev_shm_is_no_limit(demo_store: Path) -> None:
    """Batches of a megabyte and more are served beside a /dev/shm of one."""
    script = textwrap.dedent(SMALL_SHM).format(python=sys.executable, store=demo_store)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if "unshare failed" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip("no permission to mount")
    assert done.returncode == 0, done.stderr
    loader = create_loader(demo_store, "train", 256)
    assert int(done.stdout) == 20 * len(loader) * 256
