"""Tables whose time is not the stamped one: what opening says, and what `verify` does about it."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.commands.main import command
from jasper_mmap.errors import IndexRangeError
from jasper_mmap.negatives.renewal import verify_store
from jasper_mmap.rules.schema import STORED
from jasper_mmap.store.folder import Store
from tests.damage import rewrite
from tests.publishing import IMPORTING, current_pointer, mounted


@pytest.fixture(autouse=True)
def warnings_heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let each test read what was logged from WARNING on."""
    with caplog.at_level(logging.WARNING, "jasper_mmap"):
        yield


def heard(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings since the last call."""
    found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    caplog.clear()
    return found


def moved(path: Path) -> None:
    """Give a file a time that it never had."""
    stamp = path.stat().st_mtime_ns
    os.utime(path, ns=(stamp, stamp + 1))


@pytest.fixture
def copied(demo_store: Path, tmp_path: Path) -> Path:
    """Return a copy of a store with other times."""
    target = tmp_path / "copied"
    shutil.copytree(demo_store, target, copy_function=shutil.copyfile)
    return target


@pytest.fixture
def links(demo_store: Path, tmp_path: Path) -> Path:
    """Return a store whose files are links to copies with other times, as in a hub's cache."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(demo_store, blobs, copy_function=shutil.copyfile)
    (blobs / "negatives" / ".lock").unlink(missing_ok=True)
    for path in [p for p in blobs.rglob("*") if p.is_file()]:
        target = snapshot / path.relative_to(blobs)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return snapshot


def test_copied_store_is_warned_of_once(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line a process and state, whatever opens it: some names, a count, and what to run."""
    JASPERSteeringDataset.create_combined_splits(copied)
    (said,) = heard(caplog)
    names = [a.file for a in STORED]
    assert f"{', '.join(names[:4])} and {len(names) - 4} more" in said
    assert said.endswith(f"run: jasper-mmap verify {copied}.")
    JASPERSteeringDataset(copied, "val")
    Store(copied)
    assert heard(caplog) == []


def test_each_state_is_warned_of(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that moves later is news; one that only differs from the stamp as before is not."""
    Store(store)
    assert heard(caplog) == []
    for name in ("source_embs", "train_idx"):
        moved(store / f"{name}.safetensors")
        for _ in range(2):
            Store(store)
        (said,) = heard(caplog)
        assert f"{name}.safetensors" in said
    moved(store / "train_idx.safetensors")
    Store(store)
    (said,) = heard(caplog)
    assert "source_embs.safetensors, train_idx.safetensors. Only" in said


@pytest.mark.parametrize("moved_s", [-86_400, 86_400])
def test_older_and_newer_times_are_alike(
    moved_s: int, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that an older one replaced was changed as well: its numbers are read again, and
    `verify` renews its stamp."""
    path = store / "val_idx.safetensors"
    stamp = path.stat().st_mtime_ns + moved_s * 10**9
    os.utime(path, ns=(stamp, stamp))
    Store(store)
    (said,) = heard(caplog)
    assert path.name in said
    assert verify_store(store).renewed == (path.name,)
    rewrite(path, lambda tables: tables["val_idx"][0].fill_(-1), touch=False)
    os.utime(path, ns=(stamp, stamp + moved_s))
    with pytest.raises(IndexRangeError, match="-1 in row 0"):
        Store(store)


def test_full_validation_warns_of_nothing(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It recomputed everything; the next one that does not still warns."""
    Store(copied, validate="full")
    assert heard(caplog) == []
    Store(copied)
    assert len(heard(caplog)) == 1


def test_verified_store_is_warned_of_no_more(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the warning advises works."""
    assert not verify_store(copied).notes
    JASPERSteeringDataset(copied, "val")
    assert heard(caplog) == []


def test_moved_generation_is_no_warning(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It was checked in full."""
    moved(store / "negatives" / "000001.safetensors")
    JASPERSteeringDataset(store, "val")
    assert heard(caplog) == []


WORKERS = """
import sys
from torch.utils.data import DataLoader
from jasper_mmap import JASPERSteeringDataset, create_loader
if __name__ == "__main__":
    dataset = JASPERSteeringDataset(sys.argv[1], "val")
    for method in ("fork", "spawn"):
        options = {"num_workers": 2, "multiprocessing_context": method}
        print(sum(1 for _ in DataLoader(dataset, 16, **options)))
        loader = create_loader(sys.argv[1], "val", 16, **options)
        print(sum(1 for _ in loader))
"""


def test_workers_say_nothing(copied: Path, tmp_path: Path) -> None:
    """They open the store anew under spawn, torch's and ours; the process that made them warned."""
    program = tmp_path / "program.py"
    program.write_text(WORKERS)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", program, copied],
        capture_output=True,
        text=True,
        timeout=120,
        env=IMPORTING,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(set(ran.stdout.split())) == 1
    assert ran.stderr.count("jasper-mmap verify") == 1, ran.stderr


def test_store_of_links_is_left_as_it_is(links: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stamps cannot be renewed in a hub's cache, so the warning and verify's note say what else."""
    before = {path: path.lstat().st_ino for path in links.rglob("*")}
    JASPERSteeringDataset(links, "val")
    (said,) = heard(caplog)
    assert 'Open it with validate="full"' in said
    assert "manifest.json is a link" in said
    report = verify_store(links)
    assert report.ok
    assert report.renewed == ()
    (note,) = report.notes
    assert 'validate="full"' in note
    assert "manifest.json is a link" in note
    assert {path: path.lstat().st_ino for path in links.rglob("*")} == before
    assert all(p.is_symlink() for p in before if not p.is_dir())


def test_pointer_that_is_a_link_stays_one(copied: Path, tmp_path: Path) -> None:
    """The tables' stamps are renewed without it."""
    pointer = copied / "negatives" / "CURRENT.json"
    pointer.rename(tmp_path / "elsewhere.json")
    pointer.symlink_to(tmp_path / "elsewhere.json")
    before = current_pointer(copied)
    report = verify_store(copied)
    assert report.ok
    assert len(report.renewed) == len(STORED)
    (note,) = report.notes
    assert "negatives/000001.safetensors. The stamps" in note
    assert "CURRENT.json is a link" in note
    assert pointer.is_symlink()
    assert current_pointer(copied) == before
    assert len(verify_store(copied).notes) == 1


READ_ONLY = """
import logging, sys
from jasper_mmap.store.folder import Store
from jasper_mmap.negatives.renewal import verify_store
logging.basicConfig(stream=sys.stdout, format="%(message)s")
Store(sys.argv[1])
report = verify_store(sys.argv[1])
assert report.ok and not report.renewed
print(*report.notes, sep="\\n")
"""


def test_read_only_store_says_so(copied: Path) -> None:
    """On a read-only mount; root may write anywhere else."""
    options = f"--bind {copied} {copied} && mount -o remount,bind,ro {copied}"
    warning, note = mounted(copied, options, READ_ONLY).splitlines()
    for said in (warning, note):
        assert 'validate="full"' in said
        assert f"{copied} is not writable" in said


def test_quick_verification_says_what_it_left_out(store: Path) -> None:
    """In text and in JSON."""
    words = ("SHA-256", "floating-point", "NaN", "warnings", "renewed")
    text = CliRunner().invoke(command, ["verify", str(store), "--quick"]).output
    said = CliRunner().invoke(command, ["verify", str(store), "--quick", "--json"]).output
    for told in (text, *json.loads(said)["notes"]):
        assert all(word in told for word in words)
    assert "note:" not in CliRunner().invoke(command, ["verify", str(store)]).output
