"""A builder saves its two files one after the other; nobody makes a generation of half a pair."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert
from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.errors import FormatError
from jasper_mmap.negatives.builder_pair import ALONE_S, BOTH_S, PATIENCE_S, PairWatch, Stamps
from jasper_mmap.negatives.overwritten_pt import publish_overwritten
from tests.converting import touch
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

FILES = tuple(f"{name}.pt" for name in NAMES)
LOOK_S = 0.1
"""How much longer than needed the watch may take."""


class Builder:
    """A folder, a clock that only sleeping moves, and what is written at which second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s = 0.0
        self.plans: list[tuple[float, Callable[[], object]]] = []
        self.pairs = PairWatch(lambda: self.now_s, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        while self.plans and self.plans[0][0] <= self.now_s:
            self.plans.pop(0)[1]()

    def at(self, second: float, do: Callable[[], object]) -> None:
        """Do something when that second has come; call it in the order of time."""
        self.plans.append((second, do))

    def write(self, name: str, content: str = "new") -> None:
        """Save one of the files with a content that no file had, or as torch does before that."""
        if content == "empty":
            (self.folder / name).write_bytes(b"")
        else:
            torch.save(torch.full((len(str(self.now_s)),), self.now_s), self.folder / name)
        touch(self.folder / name)

    def stamps(self) -> Stamps:
        """Return both stamps, read without the package."""
        found = {name: (self.folder / f"{name}.pt").stat() for name in NAMES}
        return {
            name: {"name": f"{name}.pt", "bytes": s.st_size, "mtime_ns": s.st_mtime_ns}
            for name, s in found.items()
        }

    def settles_at(self, made: Mapping[str, Any]) -> float:
        """Return how many seconds it takes; what settles must be what is there."""
        before = self.now_s
        assert self.pairs.settled(self.folder, made) == self.stamps()
        return self.now_s - before


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """Return a builder that has written both files."""
    found = Builder(tmp_path)
    for name in FILES:
        found.write(name)
    return found


def test_nothing_new_is_not_waited_for(builder: Builder) -> None:
    """As ever."""
    assert builder.settles_at(builder.stamps()) == 0


@pytest.mark.parametrize("name", FILES)
def test_one_that_changed_alone_rests_first(name: str, builder: Builder) -> None:
    """Also where its time is long ago: what counts is when it was first seen."""
    made = builder.stamps()
    builder.write(name)
    assert ALONE_S <= builder.settles_at(made) <= ALONE_S + LOOK_S


@pytest.mark.parametrize("names", [FILES, FILES[::-1]])
def test_the_second_one_is_waited_for(names: tuple[str, str], builder: Builder) -> None:
    """It has changed as soon as it is opened; then both must rest."""
    made = builder.stamps()
    builder.write(names[0])
    builder.at(4.8, lambda: builder.write(names[1], "empty"))
    builder.at(5.6, lambda: builder.write(names[1]))
    assert 5.6 + BOTH_S <= builder.settles_at(made) <= 5.6 + BOTH_S + 2 * LOOK_S


def test_both_must_rest(builder: Builder) -> None:
    """The first one written again begins anew for both."""
    made = builder.stamps()
    builder.write(FILES[0])
    builder.at(1, lambda: builder.write(FILES[1]))
    builder.at(1.7, lambda: builder.write(FILES[0]))
    assert 2.7 <= builder.settles_at(made) <= 2.7 + 2 * LOOK_S


def test_one_that_moves_does_not_rest(builder: Builder) -> None:
    """Each time it moves, it begins anew."""
    made = builder.stamps()
    builder.write(FILES[0], "empty")
    for second in (3, 6, 9):
        builder.at(second, lambda: builder.write(FILES[0]))
    assert 9 + ALONE_S <= builder.settles_at(made) <= 9 + ALONE_S + 2 * LOOK_S


def test_one_that_is_put_anew_is_waited_for(builder: Builder) -> None:
    """A builder may remove a file before it writes it."""
    made = builder.stamps()
    builder.write(FILES[0])
    builder.at(0.5, (builder.folder / FILES[1]).unlink)
    builder.at(20, lambda: builder.write(FILES[1]))
    assert 21 <= builder.settles_at(made) <= 21 + 2 * LOOK_S


def test_patience_ends(builder: Builder) -> None:
    """A file that is written for ever is an error that names it."""
    made = builder.stamps()
    builder.write(FILES[0])
    for second in range(1, 100):
        builder.at(second, lambda: builder.write(FILES[0]))
    with pytest.raises(FormatError, match=r"hard_negatives\.pt: still being written after 60 s"):
        builder.settles_at(made)
    assert PATIENCE_S <= builder.now_s <= PATIENCE_S + LOOK_S


def test_both_new_and_whole_are_taken_at_once(builder: Builder) -> None:
    """The usual case costs nothing."""
    made = builder.stamps()
    for name in FILES:
        builder.write(name)
    assert builder.settles_at(made) == 0


def test_both_new_but_one_not_whole_is_waited_for(builder: Builder) -> None:
    """The second one was just opened when they were first looked at."""
    made = builder.stamps()
    builder.write(FILES[0])
    builder.write(FILES[1], "empty")
    builder.at(0.8, lambda: builder.write(FILES[1]))
    assert 1.8 <= builder.settles_at(made) <= 1.8 + 2 * LOOK_S


def test_both_that_rest_but_are_no_archive_are_left_to_the_reader(builder: Builder) -> None:
    """An old format, or damaged: whoever reads them says so."""
    made = builder.stamps()
    for name in FILES:
        builder.write(name, "empty")
    assert BOTH_S <= builder.settles_at(made) <= BOTH_S + LOOK_S


def test_what_rested_since_an_earlier_call_need_not_rest_again(builder: Builder) -> None:
    """The change was first seen then."""
    made = builder.stamps()
    builder.write(FILES[0])
    first = builder.settles_at(made)
    assert first >= ALONE_S
    assert builder.settles_at(made) == 0
    builder.write(FILES[0])
    assert builder.settles_at(made) >= ALONE_S


# What is published


def heard(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def assert_current(store: Path, tables: Tables) -> None:
    """Require that a reader is served these."""
    with JASPERSteeringDataset(store, "train", validate="full") as dataset:
        assert torch.equal(dataset.hard_negatives, tables[0])
        assert torch.equal(dataset.negative_tiers, tables[1])


@pytest.mark.parametrize("first", [0, 1])
def test_reload_between_two_files_publishes_the_pair(
    first: int, built: Path, oracle: Oracle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And no lock is held meanwhile: others publish."""
    tables = numbered(oracle, 6)
    later = saved(tables, tmp_path / "later")
    builder = Builder(built)
    later[first].replace(built / FILES[first])
    builder.at(2, lambda: publish_numbered(built, oracle, lock_timeout_s=0))
    builder.at(3, lambda: later[1 - first].replace(built / FILES[1 - first]))
    publish_overwritten(built, pairs=builder.pairs)
    assert generations_left(built) == [1, 2, 3]
    assert_current(built, tables)
    assert heard(caplog) == []


@pytest.mark.parametrize("changed", [0, 1])
def test_one_overwritten_alone_is_published_with_a_warning(
    changed: int, built: Path, oracle: Oracle, caplog: pytest.LogCaptureFixture
) -> None:
    """Users of the earlier dataset do so; the file that stayed as it was is named."""
    before = tuple(torch.load(built / name, weights_only=True) for name in FILES)
    tables = list(before)
    tables[changed] = numbered(oracle, 6)[changed]
    torch.save(tables[changed], built / FILES[changed])
    builder = Builder(built)
    publish_overwritten(built, pairs=builder.pairs)
    assert builder.now_s == pytest.approx(ALONE_S, abs=LOOK_S)
    assert_current(built, (tables[0], tables[1]))
    (said,) = heard(caplog)
    assert f"{FILES[1 - changed]} as it was for generation 1" in said
    publish_overwritten(built, pairs=builder.pairs)
    assert generations_left(built) == [1, 2]


def test_equal_content_is_no_news_and_warns_of_nothing(
    built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether one file was touched or written again; the new stamp is remembered."""
    builder = Builder(built)
    torch.save(torch.load(built / FILES[0], weights_only=True), built / FILES[0])
    publish_overwritten(built, pairs=builder.pairs)
    assert generations_left(built) == [1]
    assert current_pointer(built)["source"] == builder.stamps()
    assert heard(caplog) == []


class Late(PairWatch):
    """Overwrites a file between the wait and the reading."""

    def __init__(self, path: Path, table: torch.Tensor) -> None:
        super().__init__(lambda: 0.0, lambda _: None)
        self._path, self._table = path, table

    def settled(self, folder: Path, made: Mapping[str, Any]) -> Stamps:
        """Return what was there just before."""
        found = super().settled(folder, made)
        torch.save(self._table, self._path)
        return found


def test_what_was_waited_for_is_what_is_read(built: Path, oracle: Oracle) -> None:
    """A pair that moves after all is refused; the next call takes it."""
    saved(numbered(oracle, 5), built)
    late = Late(built / FILES[0], numbered(oracle, 6)[0])
    with pytest.raises(FormatError, match="changed while being read"):
        publish_overwritten(built, pairs=late)
    assert generations_left(built) == [1]
    publish_overwritten(built)
    assert generations_left(built) == [1, 2]


# In real time


def overwrite(folder: Path, tables: Tables, pause_s: float) -> threading.Thread:
    """Save the first file now and the second one after a while."""
    torch.save(tables[0], folder / FILES[0])

    def follow() -> None:
        time.sleep(pause_s)
        torch.save(tables[1], folder / FILES[1])

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


@pytest.mark.parametrize("how", ["reload", "convert"])
def test_reload_and_convert_wait_for_the_second_file(
    how: str, demo_folder: Path, tmp_path: Path, oracle: Oracle, caplog: pytest.LogCaptureFixture
) -> None:
    """A second after the second file rests, both are published; also in another folder."""
    folder = own_copy(demo_folder, tmp_path / "built")
    store = folder if how == "reload" else tmp_path / "store"
    convert(folder, store)
    tables = numbered(oracle, 6)
    with JASPERSteeringDataset(store, "val") as dataset:
        thread, begun = overwrite(folder, tables, 0.5), time.monotonic()
        if how == "reload":
            assert dataset.reload_negatives() == 2
        else:
            assert convert(folder, store).generation == 2
        assert 0.5 + BOTH_S <= time.monotonic() - begun < ALONE_S
    thread.join()
    assert_current(store, tables)
    assert generations_left(store) == [1, 2]
    assert heard(caplog) == []


@pytest.mark.parametrize("how", ["reload", "convert"])
def test_one_file_alone_takes_six_seconds_and_then_nothing(
    how: str, built: Path, oracle: Oracle, caplog: pytest.LogCaptureFixture
) -> None:
    """As programs of the earlier dataset do; where there is nothing to do nobody waits."""
    with JASPERSteeringDataset(built, "val") as dataset:

        def renewed() -> int:
            return convert(built).generation if how == "convert" else dataset.reload_negatives()

        torch.save(numbered(oracle, 6)[0], built / FILES[0])
        begun = time.monotonic()
        assert renewed() == 2
        assert ALONE_S <= time.monotonic() - begun < ALONE_S + 3
        (said,) = heard(caplog)
        assert "negative_tiers.pt as it was for generation 1" in said
        begun = time.monotonic()
        assert renewed() == 2
        assert time.monotonic() - begun < BOTH_S
        assert len(heard(caplog)) == 1
