"""What users of datasets and loaders get wrong: each is an error of ours that says what to do."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jasper_mmap import JASPERSteeringDataset, create_loader, set_epoch
from jasper_mmap.errors import ClosedError, JasperError, UsageError, WorkerError
from tests.publishing import IMPORTING
from tests.serving import CONTEXTS, loader_of

Use = Callable[[Any], object]

READS: dict[str, Use] = {
    "sample": lambda loader: loader.dataset_obj[0],
    "list": lambda loader: loader.dataset_obj.__getitems__([0]),
    "table": lambda loader: loader.dataset_obj.source_embs,
    "negatives": lambda loader: loader.dataset_obj.hard_negatives,
    "config": lambda loader: loader.dataset_obj.config,
    "dim": lambda loader: loader.dataset_obj.embedding_dim,
    "device": lambda loader: loader.dataset_obj.device,
    "memory": lambda loader: loader.dataset_obj.memory_usage_mb,
    "probs": lambda loader: loader.dataset_obj.steering_probs,
    "reload": lambda loader: loader.dataset_obj.reload_negatives(),
    "iter": iter,
    "next": lambda loader: next(loader.begun),
    "context": lambda loader: loader.dataset_obj.__enter__(),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("workers", [0, 2])
def test_what_reads_the_store_says_closed(demo_store: Path, workers: int, read: str) -> None:
    """Also where batches were made ahead, or workers have the store open."""
    loader = loader_of(demo_store, "train", 8, workers)
    loader.begun = iter(loader)
    next(loader.begun)
    loader.dataset_obj.close()
    with pytest.raises(ClosedError, match="closed; open it again"):
        READS[read](loader)
    del loader


def test_what_reads_nothing_goes_on_after_close(demo_store: Path) -> None:
    """A last checkpoint after the end of a `with` is possible, and asking what it was."""
    loader = loader_of(demo_store, "train", 8, epoch=3)
    next(iter(loader))
    dataset = loader.dataset_obj
    before = loader.state_dict(), len(loader), len(dataset), dataset.split, dataset.current_epoch
    dataset.close()
    dataset.close()
    after = loader.state_dict(), len(loader), len(dataset), dataset.split, dataset.current_epoch
    assert after == before
    assert "closed" in repr(dataset)
    assert "closed" in repr(loader)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda d: d.hard_negative, "did you mean 'hard_negatives'"),
        (lambda d: d.question_emb, "did you mean 'question_embs'"),
        (lambda d: d.set_epochs, "did you mean 'set_epoch'"),
        (lambda d: d.zzz, "has no attribute 'zzz'."),
        (lambda d: d[0:4], "range"),
        (lambda d: d["0"], "a position must be an integer, not '0'"),
        (lambda d: d[None], "a position must be an integer, not None"),
        (lambda d: d[1.5], "a position must be an integer"),
        (lambda d: d[-1], "Index -1 out of range"),
        (lambda d: d[2**70], "a position must be an integer"),
        (lambda d: d.__getitems__([0, -1]), "Index -1 out of range"),
        (lambda d: d.__getitems__([0.5]), "positions must be a list of integers"),
        (lambda d: d.__getitems__("ab"), "positions must be a list of integers"),
        (lambda d: d.__getitems__([[0]]), "positions must be a list of integers"),
        (lambda d: d.__getitems__([2**70]), "positions must be a list of integers"),
        (lambda d: d.__getitems__([[0], [0, 1]]), "positions must be a list of integers"),
        (lambda d: d.force_steering("centriod"), "did you mean 'centroid'"),
        (lambda d: d.force_steering(1), "zero, centroid, keyword, residual"),
        (lambda d: d.set_epoch("1"), "epoch must be an integer"),
        (lambda d: d.reload_negatives(3), "source_dir must be a path"),
        (lambda d: type(d)(d.dataset_dir, None), "The splits are train, val, test."),
        (lambda d: set_epoch(d.config, 1), "set_epoch takes a JASPERSteeringDataset"),
    ],
)
def test_misuse_of_a_dataset_is_told(demo_store: Path, use: Use, words: str) -> None:
    """The error is ours, of the builtin that is expected, and one line."""
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        with pytest.raises(JasperError) as refusal:
            use(dataset)
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert not hasattr(dataset, "hard_negative")
        assert getattr(dataset, "zzz", 5) == 5


@pytest.mark.parametrize("path", [None, 5, b"store", ["store"]])
@pytest.mark.parametrize(
    "opened",
    [
        lambda path: JASPERSteeringDataset(path, "train"),
        lambda path: create_loader(path, "train", 8),
        JASPERSteeringDataset.create_combined_splits,
    ],
)
def test_what_is_no_path_is_told(path: Any, opened: Callable[[Any], object]) -> None:
    """The argument is named."""
    with pytest.raises(UsageError, match="dataset_dir must be a path"):
        opened(path)


@pytest.mark.parametrize("context", CONTEXTS)
def test_dead_worker_is_told(demo_store: Path, context: str) -> None:
    """With its number and what killed it; a RuntimeError, as torch's is."""
    loader = loader_of(demo_store, "train", 8, 2, context, prefetch_factor=2)
    iterator = iter(loader)
    next(iterator)
    for pid in loader._pool.pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"worker \d \(pid \d+\).*-9") as refusal:
        list(iterator)
    assert isinstance(refusal.value, RuntimeError)
    del loader, iterator


UNGUARDED = """
import sys
from jasper_mmap import create_loader
loader = create_loader(sys.argv[1], "train", 8, 2, multiprocessing_context=sys.argv[2])
print(sum(1 for _ in loader))
"""


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_script_without_a_main_guard_is_told_once(
    demo_store: Path, tmp_path: Path, context: str
) -> None:
    """Its workers would start workers: one error says what to write, and nothing hangs."""
    script = tmp_path / "train.py"
    script.write_text(UNGUARDED)
    ran = subprocess.run(
        [sys.executable, str(script), str(demo_store), context],
        capture_output=True,
        text=True,
        timeout=100,
        env=IMPORTING | {"PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.count("Traceback") == 1, ran.stderr
    assert "if __name__ == '__main__':" in ran.stderr.splitlines()[-1]


def test_guarded_script_runs(demo_store: Path, tmp_path: Path) -> None:
    """A worker that imports it makes no loader."""
    script = tmp_path / "train.py"
    head, _, rest = UNGUARDED.partition("loader =")
    body = f"loader ={rest}".replace("\n", "\n    ")
    script.write_text(f"{head}if __name__ == '__main__':\n    {body}")
    ran = subprocess.run(
        [sys.executable, str(script), str(demo_store), "spawn"],
        capture_output=True,
        text=True,
        timeout=100,
        env=IMPORTING | {"PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert int(ran.stdout) > 0


COLLECTED = """
import gc, sys
from jasper_mmap import JASPERSteeringDataset

class Reads(JASPERSteeringDataset):
    def __del__(self):
        print(self.current_epoch, self.generation, self[0]["relevance"].item() >= 0)
        self.close()

for _ in range(20):
    dataset = Reads(sys.argv[1], "train", epoch=3)
    dataset.itself = dataset
    del dataset
    gc.collect()
"""


def test_collected_dataset_can_be_read_to_its_end(demo_store: Path) -> None:
    """Also by a `__del__`, when the garbage collector found all of it at once."""
    ran = subprocess.run(
        [sys.executable, "-c", COLLECTED, str(demo_store)],
        capture_output=True,
        text=True,
        timeout=100,
        env=IMPORTING,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "3 1 True\n" * 20


def test_keyword_rows_outside_are_refused(demo_store: Path) -> None:
    """Of either end, in the words of all other indices; tables index as torch's do."""
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        lists: Any = dataset.pair_keyword_ids
        for row in (10**9, -1, len(lists)):
            with pytest.raises(JasperError, match=f"Index {row} out of range") as refusal:
                lists[row]
            assert isinstance(refusal.value, IndexError)
        for wrong in (0.5, "0", None):
            with pytest.raises(UsageError, match="must be an integer"):
                lists[wrong]
        assert [row.tolist() for row in lists[:3]] == [lists[i].tolist() for i in range(3)]
        assert torch.equal(dataset.pair_index[-1], dataset.pair_index[len(dataset.pair_index) - 1])
