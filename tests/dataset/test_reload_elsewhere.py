"""`reload_negatives()` of a store that was converted into another folder than the builder's."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from converters import convert
from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.errors import ContentError, MissingFileError
from tests.oracle import Oracle
from tests.publishing import (
    NAMES,
    Tables,
    current_pointer,
    generations_left,
    numbered,
    own_copy,
    publish_numbered,
    saved,
)


@pytest.fixture
def source(demo_folder: Path, tmp_path: Path) -> Path:
    """Return a builder's folder that the test may change."""
    return own_copy(demo_folder, tmp_path / "built")


@pytest.fixture
def apart(source: Path, tmp_path: Path) -> Path:
    """Return a store of that folder in another one."""
    convert(source, tmp_path / "apart")
    return tmp_path / "apart"


@pytest.fixture
def dataset(apart: Path) -> Iterator[JASPERSteeringDataset]:
    """Return an open split of that store."""
    with JASPERSteeringDataset(apart, "train") as opened:
        yield opened


def test_reload_says_once_that_it_looks_only_beside_the_store(
    apart: Path, dataset: JASPERSteeringDataset, new: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    """With the ways there are; what is published is served as ever."""
    with caplog.at_level(logging.WARNING, "jasper_mmap"):
        for _ in range(2):
            assert dataset.reload_negatives() == 1
        with JASPERSteeringDataset(apart, "val") as other:
            other.reload_negatives()
    (said,) = (r.getMessage() for r in caplog.records)
    for words in ("beside the store only", *(f"no {name}.pt" for name in NAMES)):
        assert words in said
    for way in (f"jasper-convert SOURCE {apart}", "jasper-mmap publish", "source_dir=SOURCE"):
        assert way in said
    saved(new, apart)  # a program may write there too
    assert dataset.reload_negatives() == 2


def test_reload_looks_in_the_folder_that_it_is_given(
    apart: Path,
    source: Path,
    dataset: JASPERSteeringDataset,
    oracle: Oracle,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the store was converted from is no news; what is written there later is, once."""
    assert dataset.reload_negatives(source_dir=source) == 1
    saved(numbered(oracle, 2), source)
    monkeypatch.chdir(source.parent)
    assert dataset.reload_negatives(source_dir=source.name) == dataset.generation == 2
    assert torch.equal(dataset.hard_negatives, numbered(oracle, 2)[0])
    assert torch.equal(dataset.negative_tiers, numbered(oracle, 2)[1])
    assert dataset.reload_negatives(source_dir=str(source)) == 2
    for name in NAMES:
        os.utime(source / f"{name}.pt")
    assert dataset.reload_negatives(source) == 2
    assert convert(source, apart).generation == 2  # the converter knows these files too
    assert publish_numbered(apart, oracle) == 3
    assert dataset.reload_negatives(source) == 3
    assert generations_left(apart) == [1, 2, 3]
    assert caplog.records == []


def test_folder_without_the_files_is_an_error_where_it_was_asked_for(
    apart: Path, source: Path, dataset: JASPERSteeringDataset
) -> None:
    """Named, as is the argument; the old generation stays in service."""
    with pytest.raises(MissingFileError, match=r"nowhere/hard_negatives\.pt.*source_dir"):
        dataset.reload_negatives(source_dir=apart / "nowhere")
    (source / "negative_tiers.pt").unlink()
    with pytest.raises(MissingFileError, match=r"negative_tiers\.pt"):
        dataset.reload_negatives(source)
    assert dataset.generation == 1


def test_no_folder_is_read_from_the_store(
    apart: Path, source: Path, dataset: JASPERSteeringDataset, new: Tables
) -> None:
    """Names and stamps are kept, paths are not; one that was put there leads nowhere."""
    assert str(source) not in (apart / "manifest.json").read_text()
    assert str(source) not in json.dumps(current_pointer(apart))
    saved(new, source)
    path = apart / "negatives" / "CURRENT.json"
    pointer = current_pointer(apart)
    for stamps in (pointer["source"], pointer["history"][0]["source"]):
        for name in NAMES:
            stamps[name]["name"] = str(source / f"{name}.pt")
    path.write_text(json.dumps(pointer))
    assert dataset.reload_negatives() == 1
    assert generations_left(apart) == [1]


def test_reload_refuses_tiers_that_were_saved_twice(
    source: Path, dataset: JASPERSteeringDataset, new: Tables
) -> None:
    """As publishing does, unless it is allowed."""
    saved((new[1].to(torch.int64), new[1]), source)
    with pytest.raises(ContentError, match="hold the same values"):
        dataset.reload_negatives(source)
    assert dataset.generation == 1
    assert dataset.reload_negatives(source, allow_equal=True) == 2
