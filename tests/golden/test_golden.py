"""Stores of released versions open for ever, and serve the very bits that those versions served."""

import json
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap import JASPERSteeringDataset
from tests.golden.make import DIGESTS, STORE, publish_another, resumed, served

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.gz"))


def stamp(store: Path, name: str, mtime_ns: int) -> None:
    """Give a file the time that its store remembers; an archive keeps whole seconds."""
    os.utime(store / name, ns=(mtime_ns, mtime_ns))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a released version's store, and what that version served from it."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    store = tmp_path / STORE
    for entry in json.loads((store / "manifest.json").read_text())["artifacts"].values():
        stamp(store, entry["file"], entry["mtime_ns"])
    pointer = json.loads((store / "negatives" / "CURRENT.json").read_text())
    stamp(store / "negatives", pointer["file"], pointer["mtime_ns"])
    return store, json.loads((tmp_path / DIGESTS).read_text())


def test_there_is_one_of_each_version() -> None:
    """None is left out unseen."""
    assert [path.name for path in ARCHIVES] == ["0.1.0.tar.gz", "0.2.0.tar.gz"]
    assert sum(path.stat().st_size for path in ARCHIVES) < 100_000


def test_opens_as_it_was_left(
    golden: tuple[Path, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Its stamps are known, its checksums right."""
    for validate in ("auto", "full"):
        with caplog.at_level(logging.WARNING, "jasper_mmap"):
            JASPERSteeringDataset(golden[0], "train", validate=validate).close()
    assert caplog.records == []


@pytest.mark.parametrize("workers", [0, 2])
def test_serves_the_same_bits(golden: tuple[Path, dict[str, Any]], workers: int) -> None:
    """Orders, three epochs of two passes, every variant drawn and forced, all splits."""
    store, digests = golden
    options = {"num_workers": 2, "multiprocessing_context": "fork"} if workers else {}
    assert served(store, **options) == digests["served"]


def test_resumes_its_state(golden: tuple[Path, dict[str, Any]]) -> None:
    """In the middle of a pass, and on to the next one."""
    store, digests = golden
    assert resumed(store, digests["state"]) == digests["resumed"]


def test_is_published_to(golden: tuple[Path, dict[str, Any]]) -> None:
    """The number goes on from those that it has, and what is served is what that version served."""
    store, digests = golden
    assert publish_another(store) == digests["published"]["generation"]
    assert served(store) == digests["published"]["served"]
    assert served(store) != digests["served"]
