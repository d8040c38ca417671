"""The inbox as a service: whatever is dropped, and whatever happens to the store, it goes on."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from converters import convert
from jasper_mmap import publish_negatives
from jasper_mmap.commands import main
from jasper_mmap.errors import StorageError
from jasper_mmap.negatives import candidate, filing
from jasper_mmap.negatives.dropped import Place
from jasper_mmap.negatives.inbox import Inbox
from jasper_mmap.negatives.write import publisher_lock
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

HANGS = pytest.mark.timeout(120)


def inbox_of(store: Path, **options: Any) -> Inbox:
    """Return an inbox with little patience, in the store."""
    place = Place.of(store, None)
    place.make()
    settings = {"settle_s": 0.0, "patience_s": 0.2, **options}
    publish = settings.pop("publish", publish_negatives)
    limits = settings.pop("limits", {})

    def publishing(*paths: Path, note: str) -> int:
        return int(publish(store, *paths, note=note, republish=False, lock_timeout_s=0.1, **limits))

    return Inbox(store, place, publishing, **settings)


def look_until(inbox: Inbox, done: Callable[[], object]) -> None:
    """Look again and again until it is done."""

    def looked() -> object:
        inbox.look()
        return done()

    until(looked)


def look_for(inbox: Inbox, seconds: float) -> None:
    """Look again and again for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        inbox.look()
        time.sleep(0.02)


def reasons(store: Path) -> list[str]:
    """Return what is said beside the pairs that failed."""
    return [path.read_text() for path in sorted((store / "inbox/failed").glob("*.reason.txt"))]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """Return the messages of an event."""
    caplog.set_level(logging.INFO, "jasper_mmap")
    return lambda event: [
        r.getMessage() for r in caplog.records if getattr(r, "event", None) == event
    ]


# What is wrong with a pair


def _meta(first: Path, _: Path, new: Tables) -> None:
    torch.save(new[0].to("meta"), first)


def _truncated(first: Path, _: Path, new: Tables) -> None:
    os.truncate(first, first.stat().st_size // 2)


def _empty(_: Path, second: Path, new: Tables) -> None:
    second.write_bytes(b"")


def _fifo(first: Path, _: Path, new: Tables) -> None:
    first.unlink()
    os.mkfifo(first)


def _device(_: Path, second: Path, new: Tables) -> None:
    second.unlink()
    second.symlink_to("/dev/zero")


def _nowhere(_: Path, second: Path, new: Tables) -> None:
    second.unlink()
    second.symlink_to("none")


def _loop(first: Path, _: Path, new: Tables) -> None:
    first.unlink()
    first.symlink_to(first.name)


def _folders(first: Path, second: Path, new: Tables) -> None:
    for path in (first, second):
        path.unlink()
        path.mkdir()
        (path / "x").touch()


def _code(first: Path, _: Path, new: Tables) -> None:
    torch.save({"x": os.system}, first)


def _shape(first: Path, _: Path, new: Tables) -> None:
    torch.save(new[0][:-1], first)


def _dtype(first: Path, _: Path, new: Tables) -> None:
    torch.save(new[0].to(torch.float32), first)


def _value(first: Path, _: Path, new: Tables) -> None:
    torch.save(with_value(new, 0, 3, 4, -1)[0], first)


def _tiers(_: Path, second: Path, new: Tables) -> None:
    torch.save(with_value(new, 1, 3, 4, 5)[1], second)


def _text(first: Path, _: Path, new: Tables) -> None:
    first.write_text("<html>404</html>")


WRONG: dict[str, tuple[Callable[[Path, Path, Tables], None], str]] = {
    "tensors without data": (_meta, ""),
    "truncated": (_truncated, ""),
    "empty": (_empty, ""),
    "FIFO": (_fifo, "FIFO"),
    "link to a device": (_device, "character device"),
    "link to nothing": (_nowhere, "No such file"),
    "link to itself": (_loop, "symbolic links"),
    "folders": (_folders, "is a folder"),
    "code": (_code, "refused"),
    "shape": (_shape, "499 rows"),
    "dtype": (_dtype, "float32"),
    "value": (_value, "-1 in row 3"),
    "tier": (_tiers, "row 3"),
    "a page": (_text, ""),
}


@HANGS
@pytest.mark.parametrize("way", WRONG)
def test_pair_that_is_wrong_fails_and_hinders_no_other(
    way: str, store: Path, oracle: Oracle, new: Tables
) -> None:
    """It moves to failed/ with the reason, as it is; the next pair is published meanwhile."""
    spoil, word = WRONG[way]
    folder = store / "inbox"
    spoil(*saved(new, folder, "a-"), new)
    os.utime(folder / f"a-{NAMES[1]}.pt", (1, 1), follow_symlinks=False)
    saved(numbered(oracle, 3), folder, "b-")
    inbox = inbox_of(store)
    inbox.look()
    assert current_pointer(store)["note"] == f"from b-{NAMES[0]}.pt"
    look_until(inbox, lambda: len(list(folder.glob("failed/*"))) == 4)
    assert all(word in reason for reason in reasons(store))
    assert inbox.refused == 1
    assert not list(folder.glob("*.pt"))
    kept = {path.name.partition("-")[2] for path in folder.glob("failed/*.pt")}
    assert len(kept) == 2


NAMES_OF_FILES = {
    "not UTF-8": b"\xff\xfe-",
    "a line break": b"x\n2026-11-25 INFO published generation 99 ",
    "an escape sequence": b"\x1b]0;x\x07",
    "long": b"x" * 235,
    "long, in letters of two bytes": "ä".encode() * 115,
    "a space and a dash": b" -rf ",
    "a pattern": b"[a]*?",
}


@pytest.mark.parametrize("prefix", NAMES_OF_FILES.values(), ids=NAMES_OF_FILES)
@pytest.mark.parametrize("good", [True, False])
def test_any_name_of_a_file_is_taken(
    good: bool, prefix: bytes, store: Path, new: Tables, said: Callable[[str], list[str]]
) -> None:
    """Published and moved, or refused with the reason; what is said of it is one printable line."""
    inbox = inbox_of(store)
    tables = new if good else with_value(new, 0, 1, 1, -5)
    first, second = saved(tables, store / "inbox")
    for path in (first, second):
        path.rename(path.with_name(os.fsdecode(prefix) + path.name))
    inbox.look()
    folder = store / "inbox" / ("done" if good else "failed")
    assert len(list(folder.iterdir())) == (2 if good else 4)
    assert current_pointer(store)["generation"] == (2 if good else 1)
    (message,) = said("published" if good else "refused")
    assert message.isprintable()
    if good:
        assert current_pointer(store)["note"].isprintable()
    ends = {path.name[-6:] for path in folder.glob("*.pt")}
    assert ends == {"ves.pt", "ers.pt"}


def test_unexpected_error_that_the_files_cause_again_is_the_pairs(
    store: Path, new: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once may be a hiccup; twice is a failure, and the traceback lies beside it."""
    failures = [ZeroDivisionError("odd")]

    def hiccup(*arguments: Any, **options: Any) -> int:
        if failures:
            raise failures.pop()
        return publish_negatives(*arguments, **options)

    inbox = inbox_of(store, publish=hiccup)
    saved(new, store / "inbox")
    inbox.look()
    assert len(list((store / "inbox").glob("*.pt"))) == 2
    inbox.look()
    assert current_pointer(store)["generation"] == 2

    def always(*_: object, **__: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(candidate, "examine", always)
    inbox = inbox_of(store)
    saved(new, store / "inbox")
    inbox.look()
    assert all("unexpected ZeroDivisionError: odd" in reason for reason in reasons(store))
    assert all("Traceback" in reason for reason in reasons(store))
    assert len(reasons(store)) == 2


def test_pair_beyond_a_limit_fails(store: Path, new: Tables) -> None:
    """Its files are sound, and refused all the same."""
    inbox = inbox_of(store, limits={"max_changed": 0.1})
    saved(new, store / "inbox")
    inbox.look()
    assert "the limit is 10.00%" in reasons(store)[0]


def test_file_that_may_not_be_read_is_given_time(store: Path, new: Tables) -> None:
    """A miner may set the rights of a file last."""
    if os.getuid() == 0:
        pytest.skip("root may read everything")
    inbox = inbox_of(store, patience_s=600)
    first, _ = saved(new, store / "inbox")
    first.chmod(0)
    look_for(inbox, 0.2)
    assert first.exists()
    first.chmod(0o600)
    look_until(inbox, lambda: current_pointer(store)["generation"] == 2)


def test_links_to_files_are_taken_and_moved_themselves(
    store: Path, new: Tables, tmp_path: Path
) -> None:
    """As a cache is made of them."""
    inbox = inbox_of(store)
    for path in saved(new, tmp_path / "mined"):
        (store / "inbox" / path.name).symlink_to(path)
    inbox.look()
    assert current_pointer(store)["generation"] == 2
    assert len(list((tmp_path / "mined").iterdir())) == 2
    assert all(path.is_symlink() for path in (store / "inbox/done").iterdir())


# What is wrong with anything else


def _away(store: Path) -> Iterator[None]:
    moved = store.rename(store.with_name("away"))
    yield
    moved.rename(store)


def _half_converted(store: Path) -> Iterator[None]:
    (store / ".converting").mkdir()
    manifest = (store / "manifest.json").rename(store / "aside")
    yield
    manifest.rename(store / "manifest.json")
    (store / ".converting").rmdir()


def _damaged_manifest(store: Path) -> Iterator[None]:
    text = (store / "manifest.json").read_text()
    (store / "manifest.json").write_text("{")
    yield
    (store / "manifest.json").write_text(text)


def _damaged_config(store: Path) -> Iterator[None]:
    text = (store / "config.json").read_text()
    (store / "config.json").write_text("{}")
    yield
    (store / "config.json").write_text(text)


def _damaged_table(store: Path) -> Iterator[None]:
    path = store / "pair_index.safetensors"
    whole = path.read_bytes()
    os.truncate(path, 100)
    yield
    path.unlink()  # not in place, for it was mapped
    path.write_bytes(whole)


def _busy(store: Path) -> Iterator[None]:
    with publisher_lock(store, 1):
        yield


def _lock_is_a_link(store: Path) -> Iterator[None]:
    lock = store / "negatives/.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to("nowhere")
    yield
    lock.unlink()


def _done_is_a_link(store: Path) -> Iterator[None]:
    (store.parent / "elsewhere").mkdir()
    (store.parent / "box/done").symlink_to(store.parent / "elsewhere")
    yield
    assert not list((store.parent / "elsewhere").iterdir())
    (store.parent / "box/done").unlink()


OUTAGES = {
    "away": _away,
    "being converted": _half_converted,
    "manifest damaged": _damaged_manifest,
    "config damaged": _damaged_config,
    "table damaged": _damaged_table,
    "busy": _busy,
    "lock is a link": _lock_is_a_link,
    "done/ is a link": _done_is_a_link,
}


@pytest.mark.parametrize("way", OUTAGES)
def test_what_is_wrong_with_the_store_is_said_once_and_waited_for(
    way: str, store: Path, oracle: Oracle, tmp_path: Path, said: Callable[[str], list[str]]
) -> None:
    """No pair fails for it, and all are published when it is over."""
    box = tmp_path / "box"
    box.mkdir()

    def publish(*paths: Path, note: str) -> int:
        return publish_negatives(store, *paths, note=note, lock_timeout_s=0.1)

    inbox = Inbox(store, Place.of(store, str(box)), publish, settle_s=0, patience_s=0)
    saved(numbered(oracle, 2), box, "a-")
    saved(numbered(oracle, 3), box, "b-")
    outage = OUTAGES[way](store)
    next(outage)
    look_for(inbox, 0.5)
    assert len(list(box.glob("*.pt"))) == 4
    assert len(said("hindered")) == 1, said("hindered")
    assert inbox.stuck
    assert next(outage, None) is None
    look_until(inbox, lambda: len(list(box.glob("done/*"))) == 4)
    assert current_pointer(store)["generation"] == 3
    assert not inbox.stuck
    assert not list(box.glob("failed/*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("call", ["fsync", "fstat", "rename"])
def test_any_error_of_the_disk_is_waited_for(
    call: str,
    code: int,
    store: Path,
    new: Tables,
    said: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever in publishing it strikes, and however it comes out."""
    inbox = inbox_of(store)
    saved(new, store / "inbox")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for _ in range(5):
            inbox.look()
        moved = [str(p) for p in (store / "inbox").glob("*/*")]
    if call != "rename":
        assert len(said("hindered")) == 1
        assert not moved
    look_until(inbox, lambda: len(list((store / "inbox").glob("done/*"))) == 2)
    assert current_pointer(store)["generation"] == 2


def test_memory_that_is_short_is_waited_for(
    store: Path, new: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the machine's, not the pair's."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    inbox = inbox_of(store)
    saved(new, store / "inbox")
    with monkeypatch.context() as patch:
        patch.setattr(candidate, "examine", fail)
        inbox.look()
    inbox.look()
    assert current_pointer(store)["generation"] == 2


def test_pair_that_finds_no_room_lets_others_pass(
    store: Path, oracle: Oracle, new: Tables, said: Callable[[str], list[str]]
) -> None:
    """A small pair may fit where a large one does not."""

    def full(store: Path, *paths: Path, **options: Any) -> int:
        if paths[0].name.startswith("a-"):
            raise StorageError("the disk is full")
        return publish_negatives(store, *paths, **options)

    inbox = inbox_of(store, publish=full)
    saved(new, store / "inbox", "a-")
    saved(numbered(oracle, 3), store / "inbox", "b-")
    inbox.look()
    inbox.look()
    assert current_pointer(store)["note"] == f"from b-{NAMES[0]}.pt"
    assert len(list((store / "inbox").glob("a-*"))) == 2
    assert len(said("hindered")) <= 2


def test_store_converted_anew_refuses_what_does_not_fit_it(
    store: Path, new: Tables, folder_named: Callable[[str], Path]
) -> None:
    """Against the store as it is then, whatever it was when the service began."""
    inbox = inbox_of(store)
    shutil.rmtree(store / "negatives")
    convert(folder_named("plain"), store)
    saved(new, store / "inbox")
    inbox.look()
    assert "300" in reasons(store)[0]


# Moving away


def test_pair_that_cannot_be_moved_is_not_published_twice(
    store: Path, new: Tables, said: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by the next process; it is moved when that can be done, both files or none."""
    saved(new, store / "inbox")
    real = Path.replace

    def fail(self: Path, target: Any) -> Any:
        if self.name == f"{NAMES[1]}.pt":
            raise PermissionError(errno.EPERM, "not permitted", str(self))
        return real(self, target)

    inbox = inbox_of(store)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        for _ in range(3):
            inbox.look()
        inbox_of(store).look()
    assert len(list((store / "inbox").glob("*.pt"))) == 2
    assert current_pointer(store)["generation"] == 2
    assert len([m for m in said("hindered") if "cannot move" in m]) == 2
    assert len(said("identical")) == 1
    inbox.look()
    assert len(list((store / "inbox/done").iterdir())) == 2
    assert current_pointer(store)["generation"] == 2


def test_reason_that_cannot_be_written_is_said_once(
    store: Path, new: Tables, said: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pair stays until it can be, and failed/ does not fill up meanwhile."""
    inbox = inbox_of(store)
    saved(with_value(new, 0, 1, 1, -1), store / "inbox")
    real = os.open

    def fail(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if "/failed/" in str(path) and flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "full", str(path))
        return real(path, flags, *rest, **options)

    def fail_to_move(self: Path, target: Any) -> Any:
        raise PermissionError(errno.EPERM, "not permitted", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        look_for(inbox, 0.2)
    assert not list((store / "inbox/failed").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(filing, "_rename_all", lambda pairs: fail_to_move(pairs[0][0], 0))
        look_for(inbox, 0.2)
    assert len(list((store / "inbox/failed").iterdir())) == 2
    assert len(list((store / "inbox").glob("*.pt"))) == 2
    assert len(said("hindered")) == 2
    assert len(said("refused")) == 1
    inbox.look()
    assert len(list((store / "inbox/failed").iterdir())) == 4


def test_equal_content_is_not_published_again(
    store: Path, new: Tables, said: Callable[[str], list[str]]
) -> None:
    """Whatever its dtype; it is moved to done/ all the same."""
    inbox = inbox_of(store)
    saved(new, store / "inbox", "a-")
    inbox.look()
    saved((new[0].to(torch.int32), new[1].to(torch.uint8)), store / "inbox", "b-")
    inbox.look()
    assert current_pointer(store)["generation"] == 2
    assert len(list((store / "inbox/done").iterdir())) == 4
    assert "generation 2, which is already current" in said("identical")[0]


def test_safetensors_are_taken_with_a_partner_of_their_kind(store: Path, oracle: Oracle) -> None:
    """A .pt file of the same name is no partner."""
    inbox = inbox_of(store)
    tables = dict(zip(NAMES, numbered(oracle, 2), strict=True))
    folder = store / "inbox"
    save_file({NAMES[0]: tables[NAMES[0]]}, folder / f"{NAMES[0]}.safetensors")
    torch.save(tables[NAMES[1]], folder / f"{NAMES[1]}.pt")
    look_for(inbox, 0.1)
    assert current_pointer(store)["generation"] == 1
    save_file({NAMES[1]: tables[NAMES[1]]}, folder / f"{NAMES[1]}.safetensors")
    inbox.look()
    assert current_pointer(store)["generation"] == 2
    assert sorted(path.name for path in folder.glob("*.*")) == [f"{NAMES[1]}.pt"]


def test_old_files_go_only_where_that_is_asked_for(
    store: Path, oracle: Oracle, said: Callable[[str], list[str]], tmp_path: Path
) -> None:
    """By the time since they were put there, however old a miner's file is; a user's own stay."""
    folder = store / "inbox"
    inbox = inbox_of(store, keep_days=7)
    for path in saved(numbered(oracle, 2), folder):
        os.utime(path, (1, 1))
    saved(with_value(numbered(oracle, 3), 0, 1, 1, -1), folder, "bad-")
    inbox.look()
    outside = tmp_path / "outside"
    outside.touch()
    os.utime(outside, (1, 1))
    mine = folder / "done" / "notes.txt"
    mine.touch()
    os.utime(mine, (1, 1))
    (folder / "done" / "000001-x_hard_negatives.pt").symlink_to(outside)
    (folder / "done" / "000001-folder").mkdir()
    inbox_of(store, keep_days=7).look()
    assert len(list(folder.glob("done/*"))) == 5
    assert len(list(folder.glob("failed/*"))) == 4
    old = time.time() - 8 * 86400
    for path in folder.glob("*/*"):
        os.utime(path, (old, old), follow_symlinks=False)
    inbox_of(store).look()
    assert len(list(folder.glob("*/*"))) == 9
    inbox_of(store, keep_days=9).look()
    assert len(list(folder.glob("*/*"))) == 9
    inbox_of(store, keep_days=7).look()
    assert sorted(path.name for path in folder.glob("*/*")) == ["000001-folder", "notes.txt"]
    assert outside.exists()
    assert len(said("removed")) == 7


# The command


def watch(store: Path, *arguments: object) -> Result:
    """Run the command to its end."""
    command = ["watch", str(store), "--settle", "0.1", *map(str, arguments)]
    return CliRunner().invoke(main.command, command)


def events(ran: Result) -> list[dict[str, Any]]:
    """Return what it printed with --json."""
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.parametrize("option", ["--interval", "--settle", "--lock-timeout", "--keep-days"])
@pytest.mark.parametrize("value", ["-1", "inf", "nan", "1e300", "soon"])
def test_command_refuses_times_that_cannot_be(store: Path, option: str, value: str) -> None:
    """At the call, with status 2; an interval of nothing as well."""
    assert watch(store, "--once", option, value).exit_code == 2
    assert watch(store, "--once", "--interval", 0).exit_code == 2


def test_once_handles_what_is_complete_and_tells_by_its_status(
    store: Path, oracle: Oracle, new: Tables, tmp_path: Path
) -> None:
    """0 where all was published, or nothing is complete; 1 where a pair was refused."""
    box = tmp_path / "a" / "box"
    ran = watch(store, "--once", "--json", "--inbox", box)
    assert ran.exit_code == 0
    assert [e["event"] for e in events(ran)] == ["created", "watching"]
    assert box.is_dir()
    _, late = saved(numbered(oracle, 3), box, "late-")
    late.unlink()
    saved(new, box)
    ran = watch(store, "--once", "--json", "--inbox", box)
    assert ran.exit_code == 0
    told = {e["event"]: e for e in events(ran)}
    assert told.keys() == {"watching", "waiting", "published"}
    assert told["published"]["generation"] == 2
    assert told["published"]["pair"] == f"{NAMES[0]}.pt"
    assert told["published"]["level"] == "info"
    assert time.strptime(told["published"]["time"], "%Y-%m-%dT%H:%M:%S.%fZ")
    saved(with_value(new, 0, 3, 4, -1), box, "bad-")
    ran = watch(store, "--once", "--inbox", box)
    assert ran.exit_code == 1
    assert "pairs refused: 1" in str(ran.exception)
    assert " ERROR refused bad-hard_negatives.pt: " in ran.stdout


def test_once_leaves_what_may_still_be_written(store: Path, new: Tables) -> None:
    """A file that does not load is refused only if it was left alone for long, run by run."""
    first, _ = saved(new, store / "inbox")
    os.truncate(first, 100)
    ran = watch(store, "--once", "--json")
    assert ran.exit_code == 0
    assert events(ran)[-1]["event"] == "incomplete"
    inbox = inbox_of(store, by_age=True, patience_s=30)
    real = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 60)
        inbox.look()
    assert inbox.refused == 1


def test_once_fails_where_the_store_cannot_be_written(store: Path, new: Tables) -> None:
    """And the pair stays."""
    saved(new, store / "inbox")
    with publisher_lock(store, 1):
        ran = watch(store, "--once", "--lock-timeout", "0.1")
    assert ran.exit_code == 1
    assert isinstance(ran.exception, StorageError)
    assert "1 of 1 pairs could not be published" in str(ran.exception)
    assert len(list((store / "inbox").glob("*.pt"))) == 2


def test_inbox_of_the_store_that_is_a_link_is_refused(
    store: Path, new: Tables, tmp_path: Path
) -> None:
    """A stranger's folder does not have files elsewhere moved; a link that is named is followed."""
    saved(new, tmp_path / "elsewhere")
    (store / "inbox").symlink_to(tmp_path / "elsewhere")
    assert watch(store, "--once").exit_code == 1
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2
    assert watch(store, "--once", "--inbox", store / "inbox").exit_code == 0
    assert current_pointer(store)["generation"] == 2


def started(store: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the service."""
    command = [sys.executable, "-W", "ignore", "-m", "jasper_mmap", "watch", str(store)]
    return subprocess.Popen(
        [*command, "--interval", "0.05", "--settle", "0.1", *arguments],
        stderr=subprocess.STDOUT,
        env={**IMPORTING, **options.pop("env", {})},
        text=True,
        **options,
    )


@HANGS
def test_service_outlives_a_hangup_and_bad_pairs(store: Path, oracle: Oracle, new: Tables) -> None:
    """Names of no encoding on a terminal of ASCII, a FIFO, a signal; then a good pair."""
    folder = store / "inbox"
    first, _ = saved(with_value(new, 0, 3, 4, -1), folder, "\udcff\x1b]0;ä-")
    fifo, _ = saved(new, folder, "fifo-")
    fifo.unlink()
    os.mkfifo(fifo)
    service = started(store, stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    try:
        until(lambda: len(list(folder.glob("failed/*"))) == 8, 60)
        service.send_signal(signal.SIGHUP)
        saved(numbered(oracle, 3), folder)
        until(lambda: read_pointer(store).generation == 2)
        until(lambda: len(list(folder.glob("done/*"))) == 2)
        service.send_signal(signal.SIGTERM)
        output, _ = service.communicate(timeout=20)
    finally:
        service.kill()
    assert service.returncode == 0, output
    assert output.isascii()
    assert all(line.isprintable() for line in output.splitlines())
    words = [line.split()[2] for line in output.splitlines()]
    assert sorted(words) == ["ended", "published", "refused", "refused", "watching"], output
    assert not first.exists()


@HANGS
def test_service_outlives_its_reader(store: Path, oracle: Oracle, new: Tables) -> None:
    """The pipe is closed after the first line, as by `head -1`."""
    service = started(store, "--json", stdout=subprocess.PIPE)
    try:
        assert service.stdout is not None
        assert json.loads(service.stdout.readline())["event"] == "created"
        service.stdout.close()
        for number in (2, 3):
            saved(numbered(oracle, number), store / "inbox")
            until(lambda number=number: read_pointer(store).generation == number)
        assert service.poll() is None
        service.send_signal(signal.SIGTERM)
        assert service.wait(20) == 0
    finally:
        service.kill()


@HANGS
def test_signal_ends_the_service_between_two_pairs(store: Path, oracle: Oracle) -> None:
    """What is left is for the next one."""
    inbox = inbox_of(store)
    for number in range(2, 6):
        saved(numbered(oracle, number), store / "inbox", f"{number}-")
    inbox.look(lambda: read_pointer(store).generation >= 3)
    assert read_pointer(store).generation == 3
    assert len(list((store / "inbox").glob("*.pt"))) == 4
