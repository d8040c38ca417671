"""Arguments of what reads and writes stores: each wrong one is named by a `UsageError`."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert, export_pt
from jasper_mmap import (
    JASPERSteeringDataset,
    publish_negatives,
    rollback_negatives,
    watch_negatives,
)
from jasper_mmap.errors import UsageError, WorkerError
from jasper_mmap.negatives.renewal import verify_store
from jasper_mmap.store.summary import summarise
from tests.converting import SMALL
from tests.publishing import Tables, contents
from tools.demo.folder import make_builder_folder

WRONG: tuple[tuple[str, Any], ...] = (
    *(("keep", value) for value in ("x", 0, 1.5, None)),
    *(("note", value) for value in (5, None, b"x")),
    *(("lock_timeout_s", value) for value in ("a", None, -1, float("nan"), float("inf"), [1])),
    *(("grace_s", value) for value in ("a", None, -1.0, float("nan"))),
)
OF_PUBLISH: tuple[tuple[str, Any], ...] = (
    *(("max_false_negatives", value) for value in ("x", 1.5, -0.1, float("nan"), [0.5])),
    *((name, "x") for name in ("max_own_source", "max_repeats", "max_changed")),
)
OF_ROLLBACK: tuple[tuple[str, Any], ...] = tuple(("generation", v) for v in ("x", 1.0, 0, -1))
PATHS = (None, 5, b"store", ["store"])


@pytest.mark.parametrize(("name", "value"), [*WRONG, *OF_PUBLISH])
def test_wrong_arguments_of_publish_are_named(
    store: Path, new: Tables, name: str, value: Any
) -> None:
    """Before anything is written."""
    before = contents(store)
    with pytest.raises(UsageError, match=f"^{name}.* must be "):
        publish_negatives(store, *new, **{name: value})
    assert contents(store) == before


@pytest.mark.parametrize(("name", "value"), [*WRONG, *OF_ROLLBACK])
def test_wrong_arguments_of_rollback_are_named(store: Path, name: str, value: Any) -> None:
    """Before anything is written."""
    before = contents(store)
    with pytest.raises(UsageError, match=f"^{name} must be "):
        rollback_negatives(store, **{name: value})
    assert contents(store) == before


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("dataset_dir", lambda path: publish_negatives(path, torch.ones(1), torch.ones(1))),
        ("dataset_dir", rollback_negatives),
        ("dataset_dir", verify_store),
        ("dataset_dir", summarise),
        ("src", convert),
        ("store", lambda path: export_pt(path, "out")),
    ],
)
def test_what_is_no_path_is_named(name: str, use: Callable[[Any], object], path: Any) -> None:
    """Of each function that takes one."""
    with pytest.raises(UsageError, match=f"^{name} must be a path"):
        use(path)


def test_second_paths_are_named_too(demo_folder: Path, demo_store: Path) -> None:
    """Where to convert or export to, and where a builder's files lie."""
    with pytest.raises(UsageError, match=r"^dst must be a path"):
        convert(demo_folder, b"out")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^dst must be a path"):
        export_pt(demo_store, None)  # type: ignore[arg-type]
    with (
        JASPERSteeringDataset(demo_store, "train") as dataset,
        pytest.raises(UsageError, match=r"^source_dir must be a path"),
    ):
        dataset.reload_negatives(source_dir=b"x")  # type: ignore[arg-type]


def test_a_progress_that_cannot_be_called_is_named(demo_folder: Path, tmp_path: Path) -> None:
    """Before anything is read."""
    with pytest.raises(UsageError, match=r"^progress must be a function"):
        convert(demo_folder, tmp_path / "out", progress=5)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.usefixtures("_no_threads")
def test_a_watch_without_a_thread_is_told(store: Path) -> None:
    """With the limit to raise; a later watch may adopt at another time."""
    with JASPERSteeringDataset(store, "train") as dataset:
        for adopt in ("now", "epoch"):
            with pytest.raises(WorkerError, match=r"can't start new thread.*ulimit -u") as caught:
                watch_negatives(dataset, adopt=adopt)
            assert isinstance(caught.value, RuntimeError)


@pytest.mark.usefixtures("_no_threads")
def test_conversion_and_publishing_need_no_thread(tmp_path: Path) -> None:
    """Where none starts, checksums are computed in the caller's."""
    folder = make_builder_folder(tmp_path / "built", seed=4, **SMALL)
    convert(folder, tmp_path / "store")
    tables = (torch.load(folder / f"{name}.pt") for name in ("hard_negatives", "negative_tiers"))
    assert publish_negatives(tmp_path / "store", *tables, republish=True) == 2
    assert verify_store(tmp_path / "store").ok
