"""Every way to a new generation ends in one commit, which is all that a reader sees."""

from collections.abc import Callable
from pathlib import Path

import pytest

from converters import convert
from jasper_mmap import JASPERSteeringDataset, publish_negatives, rollback_negatives
from jasper_mmap.commands.negatives import watch
from jasper_mmap.negatives.write import Change
from jasper_mmap.store.pointer import read_pointer
from tests.publishing import Tables, saved


def reload(built: Path) -> int:
    """Let a dataset look for files that the builder overwrote."""
    with JASPERSteeringDataset(built, "val") as dataset:
        return dataset.reload_negatives()


def drop(built: Path, new: Tables) -> None:
    """Drop a pair into the inbox and let the service look once."""
    (built / "inbox").mkdir()
    saved(new, built / "inbox")
    watch.main([str(built), "--once", "--settle", "0"], standalone_mode=False)


WAYS: dict[str, Callable[[Path, Tables], object]] = {
    "publish": lambda built, new: publish_negatives(built, *new),
    "rollback": lambda built, _: rollback_negatives(built, 1),
    "reload": lambda built, new: (saved(new, built), reload(built)),
    "convert": lambda built, new: (saved(new, built), convert(built)),
    "inbox": drop,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_generation_comes_into_force_by_one_commit(
    built: Path, new: Tables, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the commit nothing changes; with it, once, the generation is the one it names."""
    publish_negatives(built, *(table.flip(0) for table in new))  # to have one to go back to
    before = (built / "negatives/CURRENT.json").read_bytes()
    commits: list[Change] = []
    with monkeypatch.context() as patch:
        patch.setattr(Change, "commit", lambda change, _, **__: commits.append(change))
        WAYS[way](built, new)
    assert (built / "negatives/CURRENT.json").read_bytes() == before
    (change,) = commits
    assert change.publishes
    assert change.pointer.generation == read_pointer(built).generation + 1
