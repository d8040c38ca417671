"""The commands about generations, and the service that publishes what a miner drops."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.commands.main import command
from jasper_mmap.errors import ContentError, MissingFileError, UsageError
from jasper_mmap.negatives.dropped import Place
from jasper_mmap.negatives.inbox import Inbox
from jasper_mmap.store.pointer import read_pointer
from tests.oracle import Oracle
from tests.publishing import (
    IMPORTING,
    NAMES,
    Tables,
    current_pointer,
    numbered,
    saved,
    until,
    with_value,
)

# Commands


def _run(name: str, *arguments: object) -> Result:
    return CliRunner().invoke(command, [name, *map(str, arguments)])


def test_commands_publish_show_and_roll_back(store: Path, new: Tables, tmp_path: Path) -> None:
    """Each says what it did; `--json` for programs."""
    first, second = saved(new, tmp_path / "mined")
    files = ("--negatives", first, "--tiers", second)
    ran = _run("publish", store, *files, "--note", "from a test", "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.output)["generation"] == 2
    assert "published generation 3; 500 of 500 rows changed" in _run("rollback", store).output
    shown = json.loads(_run("generations", store, "--json").output)
    assert [entry["generation"] for entry in shown] == [1, 2, 3]
    assert [entry["in_force"] for entry in shown] == [False, False, True]
    assert shown[1]["note"] == "from a test"
    assert "current" in _run("generations", store).output.splitlines()[4]
    refused = _run("publish", store, *files, "--max-changed", "0.1")
    assert isinstance(refused.exception, ContentError)
    assert _run("publish", store, *files, "--max-changed", "7").exit_code == 2
    assert isinstance(_run("rollback", store, "--to", "99").exception, MissingFileError)


# The inbox


def _inbox(
    store: Path,
    *,
    settle_s: float = 0.1,
    patience_s: float = 0.3,
    then: Callable[[], object] = lambda: None,
) -> Inbox:
    """Return an inbox of that store that needs little patience; `then` follows a publishing."""

    def publish(*paths: Path, note: str) -> int:
        number = publish_negatives(store, *paths, note=note)
        then()
        return number

    place = Place.of(store, None)
    place.make()
    return Inbox(store, place, publish, settle_s=settle_s, patience_s=patience_s)


@pytest.fixture
def inbox(store: Path) -> Inbox:
    """Return such an inbox."""
    return _inbox(store)


def _look_for(inbox: Inbox, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        inbox.look()
        time.sleep(0.02)


def _look_until(inbox: Inbox, done: Callable[[], object]) -> None:
    def looked() -> object:
        inbox.look()
        return done()

    until(looked)


def test_inbox_publishes_complete_pairs_and_files_them(
    store: Path, oracle: Oracle, inbox: Inbox
) -> None:
    """A pair whose second file comes late is published when it is there, then moved to done/."""
    folder = store / "inbox"
    _, second = saved(numbered(oracle, 2), folder, "step1-")
    second.rename(store / "late")
    _look_for(inbox, 0.3)
    assert current_pointer(store)["generation"] == 1
    (store / "late").rename(second)
    _look_until(inbox, lambda: current_pointer(store)["generation"] == 2)
    assert "step1-hard_negatives.pt" in current_pointer(store)["note"]
    done = sorted(path.name for path in (folder / "done").iterdir())
    assert done == [f"000002-step1-{name}.pt" for name in NAMES]
    assert not list(folder.glob("*.pt"))


def test_inbox_waits_for_files_that_are_still_being_written(store: Path, oracle: Oracle) -> None:
    """A file that grows, or does not load yet, is not published and not thrown away."""
    inbox = _inbox(store, patience_s=600)
    first, _ = saved(numbered(oracle, 2), store / "inbox")
    whole = first.read_bytes()
    first.write_bytes(b"")
    for end in range(0, len(whole), len(whole) // 10):
        with first.open("ab") as file:
            file.write(whole[first.stat().st_size : end])
        _look_for(inbox, 0.05)
        assert current_pointer(store)["generation"] == 1
    _look_for(inbox, 0.2)
    assert first.exists()
    first.write_bytes(whole)
    _look_until(inbox, lambda: current_pointer(store)["generation"] == 2)


def test_inbox_leaves_files_that_do_not_rest(store: Path, oracle: Oracle) -> None:
    """A miner may write the same files several times before it is done."""
    inbox = _inbox(store, settle_s=1)
    for number in range(2, 8):
        saved(numbered(oracle, number), store / "inbox")
        inbox.look()
        time.sleep(0.02)
        inbox.look()
        assert current_pointer(store)["generation"] == 1
    _look_until(inbox, lambda: current_pointer(store)["generation"] == 2)
    with JASPERSteeringDataset(store, "train") as dataset:
        assert torch.equal(dataset.hard_negatives, numbered(oracle, 7)[0])


def test_inbox_publishes_what_was_written_while_it_published(store: Path, oracle: Oracle) -> None:
    """A miner may use the same names again at any time: the newer pair becomes a generation too."""
    coming = [numbered(oracle, 7)]
    folder = store / "inbox"
    inbox = _inbox(store, then=lambda: coming and saved(coming.pop(), folder))
    saved(numbered(oracle, 2), folder)
    _look_until(inbox, lambda: len(list((folder / "done").glob("*.pt"))) == 2)
    assert current_pointer(store)["generation"] == 3
    assert sorted(path.name for path in (folder / "done").iterdir()) == [
        f"000003-{name}.pt" for name in NAMES
    ]
    with JASPERSteeringDataset(store, "train") as dataset:
        assert torch.equal(dataset.hard_negatives, numbered(oracle, 7)[0])


@pytest.mark.parametrize("damage", ["value", "file"])
def test_inbox_files_what_is_wrong_with_the_reason(
    damage: str, store: Path, new: Tables, inbox: Inbox
) -> None:
    """A bad pair goes to failed/, and the next good one is published."""
    folder = store / "inbox"
    first, _ = saved(with_value(new, 0, 5, 6, -3), folder)
    if damage == "file":
        os.truncate(first, 100)
    _look_until(inbox, lambda: len(list(folder.glob("failed/*"))) == 4)
    failed = {
        path.name.partition("Z-")[2] or path.name: path for path in (folder / "failed").iterdir()
    }
    assert sum(path.suffix == ".pt" for path in failed.values()) == 2
    reasons = [path.read_text() for path in failed.values() if path.name.endswith(".reason.txt")]
    assert all(("-3 in row 5, column 6" if damage == "value" else "damaged") in r for r in reasons)
    assert reasons
    saved(new, folder)
    _look_until(inbox, lambda: current_pointer(store)["generation"] == 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_command_serves_an_inbox_until_signalled(
    store: Path, new: Tables, tmp_path: Path, number: signal.Signals
) -> None:
    """One line an event; a clean end with status 0."""
    folder = tmp_path / "mined"
    folder.mkdir()
    program = (
        "import sys; from jasper_mmap.commands.negatives import watch;"
        "from jasper_mmap.console import run; run(watch)"
    )
    arguments = [str(store), "--inbox", str(folder), "--interval", "0.05", "--settle", "0.1"]
    service = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=IMPORTING,
        text=True,
    )
    assert service.stdout is not None
    assert "watching" in service.stdout.readline()
    saved(new, folder)
    until(lambda: read_pointer(store).generation == 2)
    until(lambda: len(list((folder / "done").glob("*.pt"))) == 2)
    service.send_signal(number)
    output, _ = service.communicate(timeout=20)
    assert service.returncode == 0, output
    # A slow disk may add a line that says the pair cannot be read yet.
    told = [line.split(" INFO ")[1] for line in output.splitlines() if " INFO " in line]
    assert [event.split(" ")[0] for event in told] == ["published", "ended"], output


def test_inbox_pattern_must_tell_the_two_files_apart(store: Path) -> None:
    """A pattern that could not name the tiers' file is a mistake."""
    for given in ("/somewhere/*.pt", "/some[w]here/hard_negatives.pt", str(store / "config.json")):
        with pytest.raises(UsageError, match="must be a folder, or a pattern"):
            Place.of(store, given)
    both = ("*hard_negatives*.pt", "*hard_negatives*.safetensors")
    assert Place.of(store, str(store)).patterns == both
    assert Place.of(store, str(store / "a_hard_negatives_*")).patterns == ("a_hard_negatives_*",)


@pytest.mark.parametrize("option", ["--max-margin-false-negatives", "--max-eval-sources"])
def test_inbox_refuses_beyond_the_limits_of_the_lint(store: Path, new: Tables, option: str) -> None:
    """As publish does, with the same words in the reason."""
    files = saved(new, store / "inbox")
    refused = _run("publish", store, store / "inbox", option, 0)
    assert refused.exit_code == 1
    assert isinstance(refused.exception, ContentError)
    assert _run("watch", store, "--once", "--settle", 0.1, option, 0).exit_code == 1
    (reason, _) = (store / "inbox" / "failed").glob("*.reason.txt")
    assert reason.read_text().strip() == str(refused.exception)
    assert read_pointer(store).generation == 1
    assert not any(path.exists() for path in files)
    saved(new, store / "inbox")
    assert _run("watch", store, "--once", "--settle", 0.1, option, 1).exit_code == 0
    assert read_pointer(store).generation == 2
