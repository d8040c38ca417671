"""One table given twice is refused wherever it comes from; rows that are hardly negatives warn."""

import json
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from converters import convert
from converters.__main__ import command as convert_command
from jasper_mmap import publish_negatives, rollback_negatives
from jasper_mmap.commands.main import command
from jasper_mmap.errors import ContentError
from jasper_mmap.negatives.dropped import Place
from jasper_mmap.negatives.inbox import Inbox
from tests.converting import contents as disk
from tests.oracle import Oracle
from tests.publishing import (
    IMPORTING,
    Tables,
    contents,
    current_pointer,
    generations_left,
    own_copy,
    publish_numbered,
    saved,
    until,
)

SAME = "hold the same values.*--allow-equal"


@pytest.fixture
def twice(new: Tables) -> Tables:
    """Return tiers as negatives, and themselves in another dtype."""
    return new[1].to(torch.int64), new[1].to(torch.uint8)


def run(*arguments: object) -> Result:
    """Run `jasper-mmap` in this process."""
    return CliRunner().invoke(command, [str(a) for a in arguments])


# Equal tables


@pytest.mark.parametrize("form", ["tensors", "files", "one file"])
def test_tiers_given_twice_are_refused(
    form: str, store: Path, twice: Tables, tmp_path: Path
) -> None:
    """Compared by value; nothing is written, and `allow_equal` takes them."""
    given: tuple[Any, Any] = twice
    if form != "tensors":
        given = saved(twice, tmp_path / "mined")
    if form == "one file":
        given = (given[1], given[1])
    before = contents(store)
    with pytest.raises(ContentError, match=SAME):
        publish_negatives(store, *given)
    assert contents(store) == before
    assert publish_negatives(store, *given, allow_equal=True) == 2


def test_negatives_given_twice_are_called_so(store: Path, new: Tables) -> None:
    """Rather than refused for the first number that is no tier."""
    with pytest.raises(ContentError, match=SAME):
        publish_negatives(store, new[0], new[0].to(torch.int32))


def test_one_value_apart_is_not_equal(store: Path, twice: Tables) -> None:
    """Wherever the two tables differ, at the last place too."""
    for row, column in ((0, 0), (-1, -1)):
        negatives = twice[0].clone()
        negatives[row, column] += 1
        assert publish_negatives(store, negatives, twice[1]) > 1


def test_publish_command_takes_equal_tables_only_if_told(
    store: Path, twice: Tables, tmp_path: Path
) -> None:
    """`--allow-equal`."""
    first, second = saved(twice, tmp_path / "mined")
    files = ("publish", store, "--negatives", first, "--tiers", second)
    assert isinstance(run(*files).exception, ContentError)
    assert current_pointer(store)["generation"] == 1
    assert run(*files, "--allow-equal").exit_code == 0
    assert current_pointer(store)["generation"] == 2


def test_rollback_brings_back_equal_tables(store: Path, oracle: Oracle, twice: Tables) -> None:
    """They were allowed once."""
    publish_negatives(store, *twice, allow_equal=True)
    publish_numbered(store, oracle)
    assert rollback_negatives(store) == 4


def test_inbox_refuses_equal_tables_with_the_reason(store: Path, twice: Tables) -> None:
    """The pair goes to failed/."""
    place = Place.of(store, None)
    place.make()
    inbox = Inbox(store, place, partial(publish_negatives, store), settle_s=0)
    saved(twice, store / "inbox")

    def looked() -> list[Path]:
        inbox.look()
        return list((store / "inbox").glob("failed/*.reason.txt"))

    until(looked)
    assert all("hold the same values" in reason.read_text() for reason in looked())
    assert current_pointer(store)["generation"] == 1


def test_watch_command_takes_equal_tables_if_told(store: Path, twice: Tables) -> None:
    """Its option reaches the publishing."""
    arguments = ["watch", str(store), "--settle", "0", "--interval", "0.05", "--allow-equal"]
    service = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "jasper_mmap", *arguments],
        stdout=subprocess.PIPE,
        env=IMPORTING,
        text=True,
    )
    try:
        assert service.stdout is not None
        assert "created the inbox" in service.stdout.readline()
        assert "watching" in service.stdout.readline()
        saved(twice, store / "inbox")
        until(lambda: current_pointer(store)["generation"] == 2)
    finally:
        service.terminate()
        service.communicate(timeout=20)


def test_convert_refuses_equal_tables(demo_folder: Path, tmp_path: Path, twice: Tables) -> None:
    """A first conversion and a later one; nothing is left behind, the old store stays."""
    folder, store = own_copy(demo_folder, tmp_path / "built"), tmp_path / "store"
    convert(folder, store)
    saved(twice, folder)
    before = disk(store)
    for target in (store, tmp_path / "first"):
        with pytest.raises(ContentError, match=r"hard_negatives\.pt and .*negative_tiers\.pt hold"):
            convert(folder, target)
    assert disk(store) == before
    assert not (tmp_path / "first").exists()
    assert convert(folder, store, allow_equal=True).generation == 2
    assert convert(folder, store).generation == 2  # nothing is new, so nothing is asked
    ran = CliRunner().invoke(convert_command, [str(folder), str(tmp_path / "f"), "--allow-equal"])
    assert ran.exit_code == 0, ran.output


# Rows that are hardly negatives


def suspect(tables: Tables, oracle: Oracle, kind: str, rows: int) -> Tables:
    """Return negatives of which that many rows repeat a source, or hold their pair's own."""
    sources = len(oracle.tables["source_embs"])
    own = torch.tensor([source for _, source in oracle.pair_index])
    shift = torch.arange(1, tables[0].shape[1] + 1)
    negatives = (own[:, None] + shift) % sources  # neither
    negatives[:rows, 0] = negatives[:rows, 1] if kind == "repeat" else own[:rows]
    return negatives, tables[1]


@pytest.mark.parametrize(
    ("kind", "words"), [("repeat", "contain a source twice"), ("own", "own source")]
)
def test_more_than_half_of_the_rows_warn(
    kind: str,
    words: str,
    store: Path,
    oracle: Oracle,
    new: Tables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On the logger, with the share; half of them do not."""
    half = len(new[0]) // 2
    with caplog.at_level(logging.WARNING, "jasper_mmap"):
        publish_negatives(store, *suspect(new, oracle, kind, half))
        assert not caplog.records
        publish_negatives(store, *suspect(new, oracle, kind, half + 1))
        rollback_negatives(store, 2)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("jasper_mmap", logging.WARNING)
    assert "generation 3" in record.getMessage()
    assert f"50.2% of rows of negatives contain {'a' if kind == 'repeat' else 'the'}" in (
        record.getMessage()
    )
    assert words in record.getMessage()


def _main(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does."""
    program = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    ran = subprocess.run(
        program, capture_output=True, text=True, timeout=60, env=IMPORTING, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def test_answers_of_commands_begin_with_the_warning(
    store: Path, demo_folder: Path, oracle: Oracle, new: Tables, tmp_path: Path
) -> None:
    """Once: not in the log beside it; in JSON it is a field."""
    bad = suspect(new, oracle, "repeat", len(new[0]))
    folder = own_copy(demo_folder, tmp_path / "built")
    first, second = saved(bad, folder)
    files = ("--negatives", first, "--tiers", second)
    words = "100.0% of rows of negatives contain a source twice; check"
    for ran in (
        _main("jasper_mmap", "publish", store, *files),
        _main("converters", folder, tmp_path / "a"),
        _main("converters", folder, tmp_path / "a"),  # nothing to do, and still to be said
    ):
        assert ran.stdout.startswith(f"warning: {words}")
        assert "contain a source twice; check" not in ran.stderr
    for module, *arguments in (
        ("jasper_mmap", "publish", store, *files, "--json"),
        ("converters", folder, tmp_path / "b", "--json"),
    ):
        assert json.loads(_main(str(module), *arguments).stdout)["warning"].startswith(words)
    sound = _main("jasper_mmap", "rollback", store, "--to", 1, "--json")
    assert json.loads(sound.stdout)["warning"] is None
    assert generations_left(store) == [1, 2, 3]  # the second time it was there already
