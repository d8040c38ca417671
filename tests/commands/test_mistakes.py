"""What mistakes are told, whose permission is missing, control characters, interrupts."""

import contextlib
import errno
import io
import json
import logging
import os
import pty
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import converters.__main__
import jasper_mmap.__main__
from converters import conversion, export
from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.commands.answers import publications
from jasper_mmap.errors import FURTHER, JasperError, WorkerError, together
from jasper_mmap.files.atomic import access_error
from jasper_mmap.negatives import publish, renewal, rollback
from jasper_mmap.store import summary
from tests.converters.test_convert_disk import as_nobody
from tests.converting import in_child
from tests.mistakes import ESCAPE, FURTHER_ONES, KNOWN, Mistake, make_scene, section, told
from tests.publishing import IMPORTING, Tables

PAGE = Path(__file__).parents[1] / "mistakes.md"
ALL = (*KNOWN, *FURTHER_ONES)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that every mistake begins with."""
    place = tmp_path_factory.mktemp("mistakes") / "scene"
    make_scene(place)
    return place


@pytest.mark.parametrize("mistake", ALL, ids=lambda mistake: mistake.title)
def test_mistake_is_told_as_the_page_says(mistake: Mistake, scene: Path, tmp_path: Path) -> None:
    """Word for word; `python -m tests.mistakes > tests/mistakes.md` writes the page anew."""
    place = shutil.copytree(scene, tmp_path / "place")
    assert section(mistake.title, told(mistake, place)) in PAGE.read_text()


def test_page_holds_each_mistake_once() -> None:
    """In their order, and no others."""
    titles = [
        line.removeprefix("## ") for line in PAGE.read_text().splitlines() if line[:2] == "##"
    ]
    assert titles == [mistake.title for mistake in ALL]
    assert len(set(titles)) == len(titles)


def test_page_shows_no_internals() -> None:
    """No traceback, no error of Python but for its own words on unknown keywords."""
    page = PAGE.read_text()
    assert "Traceback" not in page
    assert "unexpected" not in page.replace("unexpected keyword argument", "", 2)
    assert "__init__" not in page
    assert "Errno" not in page
    assert page.count("\nTypeError: ") == 2


# Permissions: made with real files, by a child that is nobody where the tests run as root


@pytest.fixture
def public(scene: Path) -> Iterator[Path]:
    """Return a scene that others may read: pytest's own folders are closed to them."""
    root = Path(tempfile.mkdtemp(prefix="jasper-mistakes-"))
    root.chmod(0o777)
    shutil.copytree(scene, root, dirs_exist_ok=True)
    yield root
    subprocess.run(["chmod", "-R", "u+rwX", str(root)], check=True)
    shutil.rmtree(root)


def close_negatives(place: Path) -> Path:
    (place / "store" / "negatives").chmod(0o555)
    return place / "store" / "negatives"


def close_table(place: Path) -> Path:
    (place / "store" / "source_embs.safetensors").chmod(0o600)
    return place / "store" / "source_embs.safetensors"


def close_config(place: Path) -> Path:
    place.chmod(0o777)
    (place / "built" / "config.json").chmod(0o600)
    return place / "built" / "config.json"


def close_passage(place: Path) -> Path:
    (place / "store").chmod(0o700)
    return place / "store"


def close_builder(place: Path) -> Path:
    (place / "built").chmod(0o555)
    return place / "built"


DENIED: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "convert beside the files": ("jasper-convert built", close_builder),
    "convert into a folder of another": ("jasper-convert store built --to-pt", close_builder),
    "convert below a folder of another": ("jasper-convert built built/x/y", close_builder),
    "convert a config.json of another": ("jasper-convert built new", close_config),
    "publish": (
        "jasper-mmap publish store --negatives mined/hard_negatives.pt"
        " --tiers mined/negative_tiers.pt",
        close_negatives,
    ),
    "rollback": ("jasper-mmap rollback store --to 1", close_negatives),
    "load a file of another": ("JASPERSteeringDataset('store', 'train')", close_table),
    "load through a folder of another": ("JASPERSteeringDataset('store', 'train')", close_passage),
    "inspect through a folder of another": ("jasper-mmap inspect store", close_passage),
}


@pytest.mark.parametrize("case", DENIED)
def test_whose_permission_is_missing_is_told(case: str, public: Path) -> None:
    """The folder or file, its owner and mode, who asks, and no name of ours in it; in one line."""
    call, close = DENIED[case]
    barrier = close(public)
    mode = barrier.stat().st_mode

    def work() -> None:
        lines = told(Mistake(case, call), public).splitlines()
        shown = str(barrier).replace(f"{public}/", "DIR/")
        (line,) = (line for line in lines[1:] if "exit status" not in line)
        for words in (
            "no permission to",
            shown,
            "belongs to root (uid 0)",
            stat.filemode(mode),
            "runs as",
            "Ask the owner",
        ):
            assert words in line, (words, line)
        for name in (".converting", ".lock", ".incoming", ".tmp"):
            assert name not in line, line

    if os.getuid():
        pytest.skip("nobody else's files to try")
    assert in_child(as_nobody(work)) == 0


def test_read_only_disk_and_unknown_owner_are_told(tmp_path: Path) -> None:
    """No owner can permit the one, and the other has a number only."""
    path = tmp_path / ".x.tmp"
    told = str(access_error(path, "write", OSError(errno.EROFS, "Read-only file system")))
    assert told == (
        f"{tmp_path}: no permission to write it (Read-only file system). Use a folder on a"
        " writable disk."
    )
    if os.getuid() == 0:
        os.chown(tmp_path, 54321, -1)
        told = str(access_error(path, "write", OSError(errno.EACCES, "Permission denied")))
        assert "it belongs to uid 54321, has the mode drwx------" in told


# Control characters: what a stranger wrote into a dataset reaches no terminal as it is

HOSTILE = f"{ESCAPE}\r\x9b31m\u202e"
RAW = ("\x1b", "\x07", "\r", "\x9b", "\u202e", "\nforged")


def edit_pointer(store: Path, **changes: Any) -> None:
    path = store / "negatives" / "CURRENT.json"
    pointer = json.loads(path.read_text())
    pointer["history"][-1].update({k: v for k, v in changes.items() if k in pointer["history"][-1]})
    path.write_text(json.dumps(pointer | changes))


def edit_manifest(store: Path, **changes: Any) -> None:
    path = store / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_entry(store: Path, **changes: Any) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["artifacts"]["val_idx"].update(changes)
    edit_manifest(store, artifacts=manifest["artifacts"])


def edit_config(store: Path, **changes: Any) -> None:
    path = store / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


HOSTILE_STORES: dict[str, Callable[[Path], object]] = {
    "note": lambda store: edit_pointer(store, note=HOSTILE),
    "by": lambda store: edit_pointer(store, by=HOSTILE),
    "when": lambda store: edit_pointer(store, when=HOSTILE),
    "store_id of the pointer": lambda store: edit_pointer(store, store_id=HOSTILE),
    "sha256 of the pointer": lambda store: edit_pointer(store, sha256=HOSTILE),
    "file of the pointer": lambda store: edit_pointer(store, file=HOSTILE),
    "key of the pointer": lambda store: edit_pointer(store, **{HOSTILE: 1}),
    "created": lambda store: edit_manifest(store, created=HOSTILE),
    "converter": lambda store: edit_manifest(store, converter=HOSTILE),
    "count of a warning": lambda store: edit_manifest(store, warnings={"repeat_rows": HOSTILE}),
    "warnings": lambda store: edit_manifest(store, warnings=HOSTILE),
    "warning": lambda store: edit_manifest(store, warnings={HOSTILE: 3}),
    "format_version": lambda store: edit_manifest(store, format_version=HOSTILE),
    "beyond_float32": lambda store: edit_manifest(store, beyond_float32={HOSTILE: 3}),
    "file of an entry": lambda store: edit_entry(store, file=HOSTILE),
    "folder in an entry": lambda store: edit_entry(store, file=f"a/{HOSTILE}"),
    "dtype of an entry": lambda store: edit_entry(store, dtype=HOSTILE),
    "key of an entry": lambda store: edit_entry(store, **{HOSTILE: 1}),
    "key of config.json": lambda store: edit_config(
        store, **{f"n_ne{ESCAPE}": 1, "n_neg": HOSTILE}
    ),
    "not JSON": lambda store: (store / "config.json").write_text(HOSTILE),
    "safetensors header": lambda store: hostile_header(store),
    "folder": lambda store: store.rename(store.with_name(f"x{HOSTILE}")),
}


def hostile_header(store: Path) -> None:
    path = store / "val_idx.safetensors"
    data = path.read_bytes()
    name = json.dumps(HOSTILE[:4])[1:-1].encode()
    longer = data.replace(b'"val_idx"', b'"' + name + b'"', 1)
    extra = len(longer) - len(data)  # of the spaces behind the header
    path.write_bytes(longer.replace(b" " * extra, b"", 1))


@pytest.mark.parametrize("case", HOSTILE_STORES)
def test_text_of_a_store_cannot_steer_a_terminal(
    case: str, scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor forge a line, nor fill the screen: by no command, and in no message of an error."""
    store = shutil.copytree(scene / "store", tmp_path / "store")
    HOSTILE_STORES[case](store)
    (store,) = tmp_path.iterdir()
    with contextlib.suppress(JasperError):
        JASPERSteeringDataset(store, "val", validate="full").close()
    assert not [raw for raw in RAW if raw in caplog.text]
    for name in ("generations", "inspect", "verify", "rollback"):
        out = ran(jasper_mmap.__main__.main, "jasper-mmap", name, str(store))
        assert not [raw for raw in RAW if raw in out], (name, out)
        assert "unexpected" not in out
        assert max(map(len, out.splitlines())) < 2000


def test_text_of_a_builders_folder_cannot_steer_a_terminal(scene: Path, tmp_path: Path) -> None:
    """Names in a pickle, keys of config.json, the folder's own name."""
    built = Path(shutil.copytree(scene / "built", tmp_path / f"b{HOSTILE}"))
    (built / "train_idx.pt").write_bytes(b"\x80\x02c" + ESCAPE[:4].encode() + b"\nx\n)R.")
    edit_config(built, n_neg=HOSTILE)
    out = ran(converters.__main__.main, "jasper-convert", str(built))
    assert out.startswith("Error: ")
    assert not [raw for raw in RAW if raw in out], out


def ran(main: Callable[[], None], *arguments: str) -> str:
    """Run a command in this process; what it wrote."""
    seen = io.StringIO()
    with (
        contextlib.redirect_stdout(seen),
        contextlib.redirect_stderr(seen),
        mock.patch.object(sys, "argv", list(arguments)),
        pytest.raises(SystemExit),
    ):
        main()
    return seen.getvalue()


def test_a_real_terminal_gets_none_of_it(scene: Path, tmp_path: Path) -> None:
    """Where rich draws; a process of its own."""
    store = shutil.copytree(scene / "store", tmp_path / "store")
    edit_pointer(store, note=HOSTILE, by=HOSTILE)
    for name in ("generations", "inspect"):
        terminal, inside = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "jasper_mmap", name, str(store)],
            stdout=inside,
            stderr=inside,
            env=IMPORTING | {"TERM": "xterm"},
        ):
            os.close(inside)
            out = b""
            with contextlib.suppress(OSError):
                while part := os.read(terminal, 1 << 16):
                    out += part
        os.close(terminal)
        assert b"]0;owned" in out
        assert b"\x1b]0;" not in out
        assert "\x9b" not in out.decode()


def test_log_is_made_printable(store: Path, new: Tables, caplog: pytest.LogCaptureFixture) -> None:
    """Also by whoever only reads the records; one that is printable keeps its template."""
    with caplog.at_level(logging.INFO, "jasper_mmap"):
        publish_negatives(store, *new, note=HOSTILE)
        publish_negatives(store, *new, note="plain", republish=True)
    hostile, plain = (r for r in caplog.records if "published" in r.getMessage())
    assert not [raw for raw in RAW if raw in hostile.getMessage()]
    assert r"\x1b]0;owned" in hostile.getMessage()
    assert plain.args
    assert "plain" in plain.getMessage()


def test_errors_are_made_printable_and_keep_their_lines() -> None:
    """Once and again, as torch makes a worker's error of its message; of several too."""
    error = JasperError(f"{HOSTILE} is wrong")
    assert str(error).isprintable()
    assert str(JasperError(str(error))) == str(error)
    both = together([error, WorkerError("second")])
    assert str(both).split(FURTHER) == [str(error), "second"]
    assert str(type(both)(str(both))) == str(both)


# Interrupts


@pytest.mark.parametrize("name", ["verify", "inspect", "publish", "rollback", "generations"])
def test_interrupted_command_ends_with_130(name: str, scene: Path) -> None:
    """With one line on stderr, whatever it was doing."""
    patched = {
        "verify": (renewal, "verify_store"),
        "inspect": (summary, "summarise"),
        "publish": (publish, "publish_negatives"),
        "rollback": (rollback, "rollback_negatives"),
        "generations": (publications, "read_manifest"),
    }
    mined = [f"--negatives={scene}", f"--tiers={scene}"] if name == "publish" else []
    with mock.patch.object(*patched[name], side_effect=KeyboardInterrupt):
        expect_130(jasper_mmap.__main__.main, "jasper-mmap", name, str(scene / "store"), *mined)


def test_interrupted_conversion_ends_with_130(scene: Path) -> None:
    """Also where it goes back to .pt files."""
    for module, name, options in (
        (conversion, "convert", ()),
        (export, "export_pt", ("x", "--to-pt")),
    ):
        with mock.patch.object(module, name, side_effect=KeyboardInterrupt):
            expect_130(converters.__main__.main, "jasper-convert", str(scene / "built"), *options)


def expect_130(main: Callable[[], None], *arguments: str) -> None:
    seen = io.StringIO()
    with (
        contextlib.redirect_stderr(seen),
        mock.patch.object(sys, "argv", list(arguments)),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert ended.value.code == 130
    assert seen.getvalue() == "Error: interrupted; run it again to complete it.\n"


INTERRUPTED = """
import os, signal, sys, time
import converters.__main__ as program
from converters import conversion
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
def convert(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
conversion.convert = convert
sys.argv = ["jasper-convert", "x"]
program.main()
"""


def test_signal_ends_a_command_with_130() -> None:
    """A real SIGINT in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=60,
        env=IMPORTING,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Error: interrupted; run it again to complete it.\n"
