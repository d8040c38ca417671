"""The old way of working: files beside the store are overwritten, then `reload_negatives()`."""

import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.errors import ContentError
from tests.oracle import Oracle
from tests.publishing import (
    NAMES,
    Tables,
    current_pointer,
    generations_left,
    numbered,
    publish_numbered,
    saved,
    with_value,
)

# The old way of working


def test_reload_publishes_overwritten_files_once(built: Path, oracle: Oracle) -> None:
    """New content makes a generation; the same content written again, or nothing new, none."""
    with JASPERSteeringDataset(built, "train") as dataset:
        assert dataset.reload_negatives() == 1
        saved(numbered(oracle, 2), built)
        assert dataset.reload_negatives() == dataset.generation == 2
        assert torch.equal(dataset.hard_negatives, numbered(oracle, 2)[0])
        assert dataset.reload_negatives() == 2
        saved(numbered(oracle, 2), built)
        assert dataset.reload_negatives() == 2
        assert publish_numbered(built, oracle) == 3
        assert dataset.reload_negatives() == 3
        saved(numbered(oracle, 5), built)
        assert dataset.reload_negatives() == 4


def test_reload_knows_files_whose_generation_was_removed(built: Path, oracle: Oracle) -> None:
    """A store copied with other times does not publish the builder's old files as news."""
    for _ in range(4):
        newest = publish_numbered(built, oracle, grace_s=0)
    for name in NAMES:
        os.utime(built / f"{name}.pt")
    with JASPERSteeringDataset(built, "train") as dataset:
        assert dataset.reload_negatives() == newest
    assert generations_left(built)[0] > 1


def test_reload_refuses_overwritten_files_that_are_wrong(built: Path, new: Tables) -> None:
    """An error that names the row, and the old generation stays in service."""
    with JASPERSteeringDataset(built, "train") as dataset:
        saved(with_value(new, 1, 3, 4, 9), built)
        with pytest.raises(ContentError, match=r"negative_tiers\.pt.* row 3, column 4"):
            dataset.reload_negatives()
        assert dataset.generation == 1
        assert current_pointer(built)["generation"] == 1


def _reload(folder: Path, start: Any, answers: Any) -> None:
    with JASPERSteeringDataset(folder, "train") as dataset:
        start.wait()
        answers.put(dataset.reload_negatives())


def test_several_ranks_reloading_at_once_make_one_generation(built: Path, new: Tables) -> None:
    """Whoever has the lock first publishes; the others find it done."""
    context = multiprocessing.get_context("forkserver")
    start, answers = context.Barrier(4), context.Queue()
    ranks = [context.Process(target=_reload, args=(built, start, answers)) for _ in range(4)]
    saved(new, built)
    for rank in ranks:
        rank.start()
    assert [answers.get(timeout=60) for _ in ranks] == [2] * 4
    for rank in ranks:
        rank.join()
    assert generations_left(built) == [1, 2]


def test_reload_on_a_store_that_cannot_be_written_warns(
    built: Path, new: Tables, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is published is served; overwritten files stay unpublished."""
    with JASPERSteeringDataset(built, "train") as dataset:
        saved(new, built)

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(30, "Read-only file system", str(built))

        monkeypatch.setattr(FileLock, "acquire", refuse)
        with caplog.at_level(logging.WARNING):
            assert dataset.reload_negatives() == 1
        assert "serving the published negatives" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_reload_while_one_file_is_gone_says_so_each_time(
    built: Path, new: Tables, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A builder may remove a file before it writes it anew: it was not converted elsewhere."""
    with JASPERSteeringDataset(built, "train") as dataset:
        (built / f"{name}.pt").unlink()
        for _ in range(2):
            with caplog.at_level(logging.WARNING):
                assert dataset.reload_negatives() == 1
            (record,) = caplog.records
            assert f"no {name}.pt beside the other file" in record.getMessage()
            caplog.clear()
        saved(new, built)
        assert dataset.reload_negatives() == 2
