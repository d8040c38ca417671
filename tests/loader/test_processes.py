"""A process started with a dataset or loader goes its own way; its own workers follow it."""

import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from jasper_mmap import JASPERSteeringDataset, create_loader, set_epoch, watch_negatives
from jasper_mmap.dataset.control import in_worker
from jasper_mmap.errors import UsageError
from jasper_mmap.rules.names import Variant
from tests.oracle import VARIANTS, Oracle
from tests.publishing import IMPORTING, Witness, publish_numbered, until
from tests.serving import CONTEXTS, loader_of, next_positions, variants_in_epoch, variants_of

Report = dict[str, Any]


def running(work: Callable[..., Report], context: str, *arguments: Any) -> Callable[[], Report]:
    """Start a process that does `work` once its report is asked for; return what asks."""
    methods: Any = multiprocessing.get_context(context)
    go, answers = methods.Event(), methods.SimpleQueue()
    process = methods.Process(target=_report, args=(work, go, answers, arguments))
    process.start()

    def report() -> Report:
        go.set()
        answer: Report = answers.get()
        process.join(60)
        assert process.exitcode == 0
        assert "error" not in answer, answer["error"]
        return answer

    return report


def _report(work: Callable[..., Report], go: Any, answers: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        assert go.wait(60)
        answers.put(work(*arguments))
    except BaseException as error:
        answers.put({"error": f"{type(error).__name__}: {error}"})
        raise


def _variants(dataset: JASPERSteeringDataset, workers: int) -> list[int]:
    loader: DataLoader[Any] = DataLoader(
        dataset, 32, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    return [v for batch in loader for v in batch["steering_variant"].tolist()]


def _own_way(dataset: JASPERSteeringDataset, epoch: int, forced: Variant | None) -> Report:
    found: Report = {"began": (dataset.current_epoch, dataset.generation), "worker": in_worker()}
    dataset.set_epoch(epoch)
    dataset.force_steering(forced)
    found["own"] = variants_of(dataset)
    found["workers"] = _variants(dataset, 2)
    dataset.force_steering("zero")
    found["zero"] = set(_variants(dataset, 1))
    dataset.force_steering(forced)
    found["epoch"] = dataset.current_epoch
    return found


@pytest.mark.parametrize("context", CONTEXTS)
def test_started_processes_have_words_of_their_own(demo_store: Path, context: str) -> None:
    """Epoch and forced steering of one reach neither its parent nor its siblings, but its workers;
    it begins with the words as they stood at its start."""
    with JASPERSteeringDataset(demo_store, "train", epoch=2) as dataset:
        dataset.set_epoch(3)
        first = running(_own_way, context, dataset, 1, "residual")
        second = running(_own_way, context, dataset, 7, None)
        dataset.set_epoch(5)
        dataset.force_steering("keyword")
        reports = [first(), second()]
        assert [report["began"] for report in reports] == [(3, 1), (3, 1)]
        assert [report["epoch"] for report in reports] == [1, 7]
        residual = [VARIANTS.index("residual")] * len(dataset)
        seventh = variants_in_epoch(demo_store, "train", 7)
        for report, want in zip(reports, (residual, seventh), strict=True):
            assert report["own"] == report["workers"] == want
            assert report["zero"] == {0}
            assert not report["worker"]
        assert dataset.current_epoch == 5
        assert set(variants_of(dataset)) == {VARIANTS.index("keyword")}


def _adopt(dataset: JASPERSteeringDataset, oracle: Oracle) -> Report:
    witness, positions = Witness(oracle, "train"), list(range(8))

    def served() -> int:
        return witness.generation_of(dataset.__getitems__(positions).columns, positions, 1)

    found: Report = {"began": served()}
    found["reloaded"] = dataset.reload_negatives(), served()
    with watch_negatives(dataset, 0.02):
        number = publish_numbered(dataset.dataset_dir, oracle)
        until(lambda: dataset.generation == number)
    found["watched"] = served()
    batch = next(iter(DataLoader(dataset, 8, num_workers=1, multiprocessing_context="fork")))
    found["worker"] = witness.generation_of(batch, positions, 1)
    return found


@pytest.mark.parametrize("context", CONTEXTS)
def test_started_process_adopts_for_itself(store: Path, oracle: Oracle, context: str) -> None:
    """It begins with the generation that was served, reloads and watches; nobody else switches."""
    with JASPERSteeringDataset(store, "train") as dataset, watch_negatives(dataset, 3600, "epoch"):
        publish_numbered(store, oracle)
        report = running(_adopt, context, dataset, oracle)
        assert report() == {"began": 1, "reloaded": (2, 2), "watched": 3, "worker": 3}
        assert dataset.generation == 1


def _served(dataset: JASPERSteeringDataset, oracle: Oracle) -> Report:
    positions = list(range(8))
    batch = dataset.__getitems__(positions).columns
    return {"served": Witness(oracle, "train").generation_of(batch, positions, 1)}


@pytest.mark.parametrize("context", CONTEXTS)
def test_started_process_serves_a_generation_that_was_removed(
    store: Path, oracle: Oracle, context: str
) -> None:
    """What its parent holds open it can open too, although the file has lost its name."""
    with JASPERSteeringDataset(store, "train") as dataset:
        number = publish_numbered(store, oracle)
        dataset.reload_negatives()
        report = running(_served, context, dataset, oracle)
        for _ in range(2):
            publish_numbered(store, oracle, keep=1, grace_s=0)
        assert report() == {"served": number}


class ForksInItsWorker(JASPERSteeringDataset):
    """A dataset whose worker forks a process, which is no worker."""

    def __getitems__(self, indices: Any) -> Any:
        assert in_worker()
        reader, writer = os.pipe()
        if not (child := os.fork()):
            began = self.current_epoch
            self.set_epoch(9)
            os.write(writer, bytes([in_worker(), began, self.current_epoch]))
            os._exit(0)
        os.waitpid(child, 0)
        assert get_worker_info() is not None
        assert tuple(os.read(reader, 3)) == (False, 4, 9)
        assert self.current_epoch == 4
        return super().__getitems__(indices)


def test_process_forked_by_a_worker_is_no_worker(demo_store: Path) -> None:
    """It begins with the words that the worker follows, and changes its own."""
    with ForksInItsWorker(demo_store, "train", epoch=4) as dataset:
        loader: DataLoader[Any] = DataLoader(
            dataset, 64, num_workers=1, multiprocessing_context="fork"
        )
        assert len(list(loader)) == -(-len(dataset) // 64)
        assert dataset.current_epoch == 4


# Loaders


def _iterate(loader: Any, epoch: int) -> Report:
    set_epoch(loader, epoch)
    promised = next_positions(loader)
    relevance = [batch["relevance"].tolist() for batch in loader]
    return {"promised": promised, "served": relevance}


def test_loader_used_in_forked_children_serves_each_its_own(
    demo_store: Path, oracle: Oracle
) -> None:
    """Each child has workers of its own, and the parent's pool goes on."""
    loader = loader_of(demo_store, "train", 8, 2, "fork")
    before = [batch["relevance"].tolist() for batch in loader]
    reports = [running(_iterate, "fork", loader, epoch) for epoch in (4, 5)]
    pair = oracle.splits["train"]
    for report in reports:
        found = report()
        rows = [[pair[i] for i in positions] for positions in found["promised"]]
        assert found["served"] == [oracle.tables["pair_relevance"][r].tolist() for r in rows]
    set_epoch(loader, 0)
    assert [batch["relevance"].tolist() for batch in loader] == before
    del loader


def _go_on(iterator: Any) -> Report:
    with pytest.raises(UsageError, match=r"another process.*iter\(loader\)"):
        next(iterator)
    del iterator
    gc.collect()
    return {}


def test_iterator_of_workers_is_refused_in_a_forked_child(demo_store: Path) -> None:
    """Its workers answer the parent, which goes on unharmed."""
    loader = loader_of(demo_store, "train", 8, 2, "fork")
    iterator = iter(loader)
    first = next(iterator)
    assert running(_go_on, "fork", iterator)() == {}
    assert 1 + sum(1 for _ in iterator) == len(loader)
    assert first["relevance"].isfinite().all()
    del loader, iterator, first


def _drop(kept: list[Any]) -> Report:
    kept.clear()
    gc.collect()
    return {}


def test_batches_kept_by_the_parent_outlive_their_copies_in_a_child(demo_store: Path) -> None:
    """A child that drops its copies of kept batches frees nothing: the memory is the parent's."""
    loader = loader_of(demo_store, "train", 8, 2, "fork")
    kept = list(loader)
    assert loader.slot_fallbacks > 0
    before = [{name: column.clone() for name, column in batch.items()} for batch in kept]
    assert running(_drop, "fork", kept)() == {}
    for batch, want in zip(kept, before, strict=True):
        assert all(torch.equal(batch[name], want[name]) for name in want)
    del loader, kept


def test_watch_of_the_parent_does_not_bind_its_child(store: Path) -> None:
    """A child may watch in another way than the process that forked it."""
    with JASPERSteeringDataset(store, "train") as dataset, watch_negatives(dataset, 3600):
        assert running(_watch_by_epoch, "fork", dataset)() == {"watched": True}


def _watch_by_epoch(dataset: JASPERSteeringDataset) -> Report:
    with watch_negatives(dataset, 3600, adopt="epoch") as watcher:
        return {"watched": watcher.running}


def test_copy_of_a_used_loader_serves_what_comes_next(demo_store: Path) -> None:
    """A copied or pickled loader has slots of its own; nothing is shared but the store."""
    loader = create_loader(demo_store, "train", 8, watch=True)
    list(loader)
    for twin in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert twin.watcher is None
        want = next_positions(loader)
        assert next_positions(twin) == want
        batches = list(twin)
        assert len(batches) == len(want)
    assert loader.watcher is not None
    loader.watcher.stop()


def test_end_of_a_bare_fork_leaves_the_workers_of_its_parent_alone(demo_store: Path) -> None:
    """Go on with a pass after a copy of the trainer, made by `os.fork` alone, ended as usual."""
    program = (
        "import os, sys\n"
        "from jasper_mmap import create_loader\n"
        "def main():\n"
        "    loader = create_loader(sys.argv[1], 'train', 1, num_workers=2, prefetch_factor=1)\n"
        "    batches = iter(loader)\n"
        "    next(batches)\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        sys.exit(7)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "    assert len(list(batches)) == len(loader) - 1\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(demo_store)],
        capture_output=True,
        text=True,
        timeout=60,
        env=IMPORTING,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
