"""A stand-in of a store, and this process made to look like a worker."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data._utils import worker

from jasper_mmap.negatives.write import write_pointer
from jasper_mmap.store.pointer import FOLDER
from tests.dataset.generation.stand_in import StandIn
from tests.publishing import pointer_chain


@pytest.fixture
def standing(tmp_path: Path) -> Any:
    """Return a stand-in whose pointer names generation 3 of three."""
    (tmp_path / FOLDER).mkdir()
    write_pointer(tmp_path, pointer_chain("a", "b", "c", sources=(3,)))
    return StandIn(tmp_path)


@pytest.fixture
def as_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process look like a worker of torch's."""
    monkeypatch.setattr(worker, "_worker_info", SimpleNamespace(id=0))
    yield
    monkeypatch.undo()
