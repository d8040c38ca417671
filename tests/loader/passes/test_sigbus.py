"""A mapped file that is truncated, or that cannot be read, ends a worker: the trainer says why."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jasper_mmap import create_loader
from jasper_mmap.errors import WorkerError
from jasper_mmap.store.pointer import FOLDER
from tests.publishing import IMPORTING

PROGRAM = """
import os, sys
from torch.utils.data import default_collate
from jasper_mmap import create_loader
from jasper_mmap.errors import WorkerError

def collate(samples):
    return default_collate(list(samples))

if __name__ == "__main__":
    store, short, context, custom = sys.argv[1:]
    options = {"num_workers": 2, "multiprocessing_context": context, "pin_memory": False}
    loader = create_loader(store, "train", 16, **options)
    if custom == "custom":
        loader.collate_fn = collate
    batches = iter(loader)
    next(batches)
    os.truncate(short, 4096)
    for attempt in range(10):
        try:
            for batch in batches:
                pass
        except WorkerError as error:
            print(type(error).__name__, error)
            break
        except (RuntimeError, OSError, EOFError):
            pass  # of torch's signal handler, which raises between any two lines of the program
        batches = loader
"""


def said(tmp_path: Path, *arguments: str) -> str:
    """Run the program in a process of its own; return what it printed."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=IMPORTING,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_a_truncated_table_is_named(store: Path, context: str, tmp_path: Path) -> None:
    """With its size and the size that it had."""
    table = store / "steering_residual.safetensors"
    before = table.stat().st_size
    text = said(tmp_path, str(store), str(table), context, "default")
    assert "WorkerError DataLoader worker" in text
    assert "was ended by SIGBUS: a served file was truncated" in text
    assert f"{table} has 4,096 bytes, but had {before:,}. Convert the store again" in text


def test_a_truncated_generation_is_named(store: Path, tmp_path: Path) -> None:
    """The file of the generation that is served."""
    negatives = store / FOLDER / "000001.safetensors"
    text = said(tmp_path, str(store), str(negatives), "fork", "default")
    assert f"{negatives} has 4,096 bytes" in text


def test_torchs_message_is_put_right(store: Path, tmp_path: Path) -> None:
    """With a custom collate torch's iterator runs, which blames the shared memory."""
    table = store / "source_embs.safetensors"
    text = said(tmp_path, str(store), str(table), "fork", "custom")
    assert "WorkerError a DataLoader worker was ended by SIGBUS" in text
    assert f"{table} has 4,096 bytes" in text
    assert "shared memory" not in text


def test_a_page_that_cannot_be_read_blames_the_medium(store: Path) -> None:
    """All sizes are right; the signal comes from outside here."""
    loader = create_loader(store, "train", 8, num_workers=1, pin_memory=False)
    batches = iter(loader)
    next(batches)
    assert loader._pool is not None
    (pid,) = loader._pool.pids
    os.kill(pid, signal.SIGBUS)
    with pytest.raises(WorkerError, match=r"the medium or the memory failed.*jasper-mmap verify"):
        list(batches)
