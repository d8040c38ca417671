"""Folders of strangers: links where the package writes, and files that are no regular ones."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converters import convert
from jasper_mmap import JASPERSteeringDataset, publish_negatives, rollback_negatives
from jasper_mmap.errors import AccessError, FormatError, JasperError, UnsafeFileError
from jasper_mmap.files import locks
from jasper_mmap.files.locks import exclusive
from jasper_mmap.files.regular_files import open_regular
from jasper_mmap.negatives.renewal import verify_store
from jasper_mmap.store.pointer import FOLDER
from tests.oracle import Oracle
from tests.publishing import IMPORTING, Tables, current_pointer, numbered, saved

HANGS = pytest.mark.timeout(60)
"""Where the test would wait for the writer of a FIFO."""


# What is read


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link_to_fifo(path: Path) -> None:
    target = path.with_name("elsewhere")
    os.mkfifo(target)
    path.symlink_to(target)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        # The name of a socket has a hundred characters at most.
        one.bind("/proc/self/cwd/.s")
        Path(".s").rename(path)


def _link_to_device(path: Path) -> None:
    path.symlink_to("/dev/null")


KINDS = {
    "FIFO": _fifo,
    "link to a FIFO": _link_to_fifo,
    "socket": _socket,
    "character device": _link_to_device,
}


@pytest.fixture(params=KINDS)
def put(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Callable[[Path], None]:
    """Return what puts a file that is no regular one in the place of another."""
    monkeypatch.chdir(tmp_path)

    def put_there(path: Path) -> None:
        path.unlink()
        KINDS[request.param](path)

    return put_there


@HANGS
@pytest.mark.parametrize(
    "name",
    [
        "train_idx.safetensors",
        "question_embs.safetensors",
        "config.json",
        "manifest.json",
        f"{FOLDER}/CURRENT.json",
        f"{FOLDER}/000001.safetensors",
    ],
)
def test_store_with_what_is_no_regular_file_is_refused(
    name: str, put: Callable[[Path], None], store: Path
) -> None:
    """Opening and verifying neither hang nor read without end, and name the file."""
    put(store / name)
    with pytest.raises(JasperError, match=Path(name).name):
        JASPERSteeringDataset(store, "train")
    assert any(Path(name).name in p.message for p in verify_store(store, quick=True).problems)


@HANGS
@pytest.mark.parametrize(
    "name", ["train_idx.pt", "pair_keyword_ids.pt", "hard_negatives.pt", "config.json"]
)
def test_folder_of_a_builder_with_what_is_no_regular_file_is_refused(
    name: str, put: Callable[[Path], None], demo_folder: Path, tmp_path: Path
) -> None:
    """Nothing is written."""
    folder = Path(shutil.copytree(demo_folder, tmp_path / "built"))
    put(folder / name)
    with pytest.raises(UnsafeFileError, match=name):
        convert(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@HANGS
def test_config_in_the_way_of_a_conversion_is_not_waited_for(
    put: Callable[[Path], None], demo_folder: Path, store: Path
) -> None:
    """The file in the store that is to be replaced may be one that hangs, too."""
    put(store / "config.json")
    with pytest.raises(UnsafeFileError, match=r"config\.json"):
        convert(demo_folder, store)


@HANGS
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_published_file_that_is_no_regular_one_is_refused(
    suffix: str, put: Callable[[Path], None], store: Path, new: Tables, tmp_path: Path
) -> None:
    """It is neither opened nor copied beside the generations."""
    first, second = saved(new, tmp_path / "mined")
    odd = first.rename(first.with_suffix(suffix))
    put(odd)
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        publish_negatives(store, odd, second)
    assert current_pointer(store)["generation"] == 1


def test_kinds_of_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind by its name; a folder says that it is one."""
    monkeypatch.chdir(tmp_path)
    for word, make in KINDS.items():
        make(tmp_path / word)
        with pytest.raises(UnsafeFileError, match=word.split()[-1]):
            open_regular(tmp_path / word)
        (tmp_path / "elsewhere").unlink(missing_ok=True)
    with pytest.raises(FormatError, match="is a folder"):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


@HANGS
def test_file_that_becomes_a_fifo_meanwhile_hangs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at its kind and the open."""
    path = tmp_path / "x"
    path.touch()
    opened = os.open

    def swapped(name: Any, *rest: Any) -> int:
        path.unlink()
        os.mkfifo(path)
        return opened(name, *rest)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(UnsafeFileError, match="FIFO"):
        open_regular(path)


# What is written


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder that nothing may touch."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("thesis.tex", ".hidden.tmp", "config.json", ".lock"):
        (folder / name).write_text(f"years of {name}")
    return folder


@pytest.fixture
def untouched(home: Path) -> Callable[[], bool]:
    """Return whether that folder is as it was."""

    def state() -> dict[str, tuple[str, int]]:
        return {p.name: (p.read_text(), p.stat().st_mtime_ns) for p in home.iterdir()}

    before = state()
    return lambda: state() == before


@pytest.mark.parametrize("apart", [False, True])
def test_staging_folder_that_is_a_link_is_refused(
    apart: bool, demo_folder: Path, home: Path, tmp_path: Path, untouched: Callable[[], bool]
) -> None:
    """Converting, with success or without, removes and writes nothing elsewhere."""
    source = Path(shutil.copytree(demo_folder, tmp_path / "built"))
    target = tmp_path / "store" if apart else source
    target.mkdir(exist_ok=True)
    (target / ".converting").symlink_to("../home")
    with pytest.raises(AccessError, match=r"\.converting: is a link"):
        convert(source, target)
    (source / "val_idx.pt").write_bytes(b"damaged")
    with pytest.raises(JasperError):
        convert(source, target)
    assert untouched()


def test_folder_left_in_the_staging_folder_stops_nothing(demo_folder: Path, tmp_path: Path) -> None:
    """It is none of ours, and stays; links there are removed themselves."""
    store = tmp_path / "store"
    (store / ".converting" / ".mine.tmp").mkdir(parents=True)
    (store / ".converting" / "x").symlink_to(tmp_path)
    convert(demo_folder, store)
    assert [p.name for p in (store / ".converting").iterdir()] == [".mine.tmp"]
    assert verify_store(store).ok


def _acts(store: Path, oracle: Oracle) -> dict[str, Callable[[], object]]:
    return {
        "publish": lambda: publish_negatives(store, *numbered(oracle, 7)),
        "rollback": lambda: rollback_negatives(store),
    }


@pytest.mark.parametrize("act", ["publish", "rollback"])
def test_lock_holder_that_is_a_link_is_replaced(
    act: str, store: Path, oracle: Oracle, home: Path, untouched: Callable[[], bool]
) -> None:
    """What it leads to is not written; the lock is taken all the same."""
    publish_negatives(store, *numbered(oracle, 2))
    (store / FOLDER / ".lock-holder.json").symlink_to(home / "thesis.tex")
    _acts(store, oracle)[act]()
    assert untouched()
    assert current_pointer(store)["generation"] == 3


def test_verify_renews_stamps_and_writes_through_no_link(
    store: Path, home: Path, untouched: Callable[[], bool]
) -> None:
    """It takes the lock for that."""
    os.utime(store / "train_idx.safetensors")
    (store / FOLDER / ".lock-holder.json").symlink_to(home / "thesis.tex")
    assert verify_store(store).renewed == ("train_idx.safetensors",)
    assert untouched()


@pytest.mark.parametrize("act", ["publish", "rollback"])
@pytest.mark.parametrize("there", [False, True])
def test_lock_that_is_a_link_is_refused_with_the_remedy(
    there: bool, act: str, store: Path, oracle: Oracle, home: Path, untouched: Callable[[], bool]
) -> None:
    """Whether it leads to a file or would make one."""
    publish_negatives(store, *numbered(oracle, 2))
    lock = store / FOLDER / ".lock"
    lock.unlink()
    lock.symlink_to(home / (".lock" if there else "new"))
    with pytest.raises(AccessError, match=r"\.lock: is a link .* Remove the link"):
        _acts(store, oracle)[act]()
    assert untouched()
    lock.unlink()
    _acts(store, oracle)[act]()
    assert current_pointer(store)["generation"] == 3


def test_lock_put_there_as_a_link_after_the_look_is_not_followed(
    tmp_path: Path, home: Path, untouched: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library that locks does not follow it either."""
    (tmp_path / ".lock").symlink_to(home / ".lock")
    monkeypatch.setattr(locks, "_check_lock_file", lambda _: None)
    with pytest.raises(JasperError), exclusive(tmp_path / ".lock", 1, "wait"):
        pass
    assert untouched()


def test_folder_of_generations_that_is_a_link_is_read_and_not_written(
    store: Path, new: Tables, tmp_path: Path
) -> None:
    """Publishing, converting and renewing stamps refuse it; a reload serves what is there."""
    moved = (store / FOLDER).rename(tmp_path / "moved")
    (store / FOLDER).symlink_to(moved)
    before = sorted(p.name for p in moved.iterdir())
    with JASPERSteeringDataset(store, "train") as dataset:
        assert dataset.reload_negatives() == 1
    os.utime(store / "train_idx.safetensors")
    assert not verify_store(store).renewed
    with pytest.raises(AccessError, match="bind-mounted"):
        publish_negatives(store, *new)
    with pytest.raises(AccessError, match="is a link"):
        publish_negatives(store, *saved(new, tmp_path / "mined"))
    assert sorted(p.name for p in moved.iterdir()) == before


def _linked(store: Path, target: Path) -> Path:
    """Return a folder of real folders in which every file is a link, as a hub's cache is."""
    shutil.copytree(store, target, copy_function=lambda a, b: Path(b).symlink_to(a))
    return target


def test_cache_of_links_opens_verifies_and_stays_one(store: Path, tmp_path: Path) -> None:
    """Its stamps are another's times; the manifest and the pointer are left links."""
    cache = _linked(store, tmp_path / "cache")
    os.utime(store / "train_idx.safetensors")
    with JASPERSteeringDataset(cache, "train") as dataset:
        assert dataset.generation == 1
    report = verify_store(cache)
    assert report.ok
    assert not report.renewed
    assert "is a link" in report.notes[0]
    assert all(p.is_symlink() for p in cache.rglob("*") if not p.is_dir())
    assert verify_store(store).renewed == ("train_idx.safetensors",)


def test_store_of_links_can_be_published_to(store: Path, new: Tables, tmp_path: Path) -> None:
    """Once its lock is no link; the store that the links lead to stays as it was."""
    publish_negatives(store, *new)
    before = {p.name: p.read_bytes() for p in (store / FOLDER).iterdir()}
    cache = _linked(store, tmp_path / "cache")
    with pytest.raises(AccessError, match="Remove the link"):
        publish_negatives(cache, *reversed_rows(new))
    (cache / FOLDER / ".lock").unlink()
    assert publish_negatives(cache, *reversed_rows(new)) == 3
    assert {p.name: p.read_bytes() for p in (store / FOLDER).iterdir()} == before
    with JASPERSteeringDataset(cache, "train") as dataset:
        assert dataset.hard_negatives.equal(new[0].flip(0))


def reversed_rows(tables: Tables) -> Tables:
    """Return both tables with their rows in the opposite order."""
    return tables[0].flip(0), tables[1].flip(0)


def test_folder_of_a_name_that_is_swept_stops_nothing(store: Path, new: Tables) -> None:
    """It is none of ours, and stays."""
    (store / FOLDER / ".mine.tmp").mkdir()
    assert publish_negatives(store, *new) == 2
    assert (store / FOLDER / ".mine.tmp").is_dir()


def test_holder_that_is_no_regular_file_hangs_nobody(store: Path, tmp_path: Path) -> None:
    """Who cannot take the lock reads the name of the holder."""
    lock = tmp_path / ".lock"
    holder = tmp_path / ".lock-holder.json"
    program = (
        "import sys; from pathlib import Path; from jasper_mmap.files.locks import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 0.1, 'wait'): pass\n"
    )
    with exclusive(lock, 1, "wait"):
        holder.unlink()
        os.mkfifo(holder)
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, str(lock)],
            capture_output=True,
            text=True,
            timeout=60,
            env=IMPORTING,
            check=False,
        )
        assert "held by another process" in ran.stderr
        holder.unlink()
        holder.write_text('{"by": "\\u001b]0;x\\n' + "y" * 999 + '"}')
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, str(lock)],
            capture_output=True,
            text=True,
            timeout=60,
            env=IMPORTING,
            check=False,
        )
        assert r"held by \x1b]0;x\nyyy" in ran.stderr
        assert "y" * 99 not in ran.stderr
