"""The command `jasper-mmap doctor`."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jasper_mmap.__main__ import main
from jasper_mmap.doctor.examine import OF_MACHINE, OF_STORE
from tests.terminal import shown

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jasper-mmap", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_a_sound_store_is_shown_in_80_columns(demo_store: Path) -> None:
    """A line or more a check, its state in colour, and status 0."""
    seen = shown(main, "jasper-mmap", "doctor", demo_store)
    assert seen.status == 0
    assert max(map(len, seen.lines)) <= 80
    ids = [line.split()[0] for line in seen.lines[2:] if not line.startswith(" ")]
    assert ids == [*OF_STORE, *OF_MACHINE]
    assert seen.raw.count("\x1b[32m") == seen.raw.count("\x1b[32mok\x1b[0m") > len(ids) // 2


def test_a_broken_store_is_named_in_one_line(
    doctor: Command, demo_store: Path, tmp_path: Path
) -> None:
    """Status 1, the table complete, and no text of a path reaches the terminal unescaped."""
    store = Path(shutil.copytree(demo_store, tmp_path / "a\x1b[31m\nb"))
    (store / "pair_index.safetensors").unlink()
    status, out, err = doctor(store)
    assert status == 1
    assert err.startswith("Error: broken: store. ")
    assert err.count("\n") == 1
    assert "Remedy: " in err
    assert "store             broken  " in out
    assert "-> " in out
    assert "\x1b" not in out + err


def test_json_has_the_checks(doctor: Command, demo_store: Path, tmp_path: Path) -> None:
    """The same answers, with and without a store."""
    status, out, _ = doctor("--json")
    answer = json.loads(out)
    assert (status, answer["store"], answer["broken"]) == (0, None, 0)
    assert [check["id"] for check in answer["checks"]] == [*OF_MACHINE]
    store = Path(shutil.copytree(demo_store, tmp_path / "store"))
    (store / "manifest.json").unlink()
    status, out, err = doctor(store, "--json")
    answer = json.loads(out)
    assert (status, answer["broken"], err.count("\n")) == (1, 1, 1)
    first = answer["checks"][0]
    assert first.keys() == {"id", "state", "found", "remedy"}
    assert (first["id"], first["state"]) == ("store", "broken")


def test_a_folder_that_does_not_exist(doctor: Command, tmp_path: Path) -> None:
    """One line, status 1, no table."""
    status, out, err = doctor(tmp_path / "none")
    assert (status, out, err.count("\n")) == (1, "", 1)
