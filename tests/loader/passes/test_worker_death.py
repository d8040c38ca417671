"""A worker process as its trainer sees it, with and without a descriptor of the process."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from jasper_mmap.loader.passes import worker_death
from jasper_mmap.loader.passes.worker_death import Child


@pytest.fixture(params=[True, False], ids=["pidfd", "no pidfd"])
def process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a process that sleeps; without pidfd as an old kernel would have it."""
    if not request.param:
        monkeypatch.setattr(worker_death, "process_descriptor", lambda pid: None)
    started = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    started.start()
    yield started
    started.kill()
    started.join()


def test_a_child_is_alive_until_it_ends(process: Any) -> None:
    """Waiting for it takes as long as was asked for and changes nothing."""
    child = Child(process)
    begun = time.monotonic()
    child.join(0.2)
    assert 0.1 < time.monotonic() - begun < 10
    assert child.is_alive()
    os.kill(child.pid, signal.SIGTERM)
    child.join(10)
    assert not child.is_alive()
    assert child.exitcode == -signal.SIGTERM


def test_a_stopped_child_is_killed(process: Any) -> None:
    """Nothing milder than SIGKILL reaches it; a second one does no harm."""
    child = Child(process)
    os.kill(child.pid, signal.SIGSTOP)
    child.kill()
    child.join(10)
    assert not child.is_alive()
    assert child.exitcode == -signal.SIGKILL
    child.kill()
