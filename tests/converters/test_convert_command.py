"""`jasper-convert`, and the way back to `.pt` files."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from converters import conversion, convert, export_pt
from converters.__main__ import main
from jasper_mmap.errors import ExistsError
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.manifest import read_manifest
from tests.converting import SMALL, load, same_bits
from tools.demo.folder import make_builder_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


def test_export_gives_the_builder_files_back(
    any_folder: Path, any_store: Path, tmp_path: Path
) -> None:
    """Equal tensors and lists, each in a clean file of its own, and the same config."""
    export_pt(any_store, tmp_path / "back")
    for name in ARTIFACTS:
        back = load(tmp_path / "back", name)
        if not (any_folder / f"{name}.pt").exists():
            continue
        wanted = load(any_folder, name)
        if isinstance(wanted, list):
            assert back == wanted
            continue
        assert same_bits(back, wanted), name
        assert back.untyped_storage().nbytes() == back.nbytes
    assert (tmp_path / "back" / "config.json").read_bytes() == (
        (any_folder / "config.json").read_bytes()
    )
    assert convert(tmp_path / "back", tmp_path / "again").store_id == (
        read_manifest(any_store).store_id
    )


def test_export_overwrites_nothing(demo_store: Path, tmp_path: Path) -> None:
    """One file of that name is enough to refuse, before anything is written."""
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "val_idx.pt").write_text("mine")
    with pytest.raises(ExistsError, match=r"val_idx\.pt: already exists"):
        export_pt(demo_store, tmp_path / "back")
    assert [p.name for p in (tmp_path / "back").iterdir()] == ["val_idx.pt"]


@dataclass
class Done:
    """How a command ended."""

    status: object
    stdout: str
    stderr: str


@pytest.fixture
def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Return a function that runs `jasper-convert` in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["jasper-convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code, *capsys.readouterr())

    return run


def test_the_command_converts_and_converts_back(
    folder: Path, tmp_path: Path, run_command: Callable[..., Done]
) -> None:
    """Results on stdout, progress on stderr."""
    done = run_command(folder, tmp_path / "store", "--json")
    assert done.status == 0
    assert json.loads(done.stdout)["generation"] == 1
    assert "100%" in done.stderr
    again = run_command(folder, tmp_path / "store", "--dtype", "float16")
    assert "5 of 17 artifacts written" in again.stdout
    assert re.search(r"^source_embs +\d\.\de-\d\d +\d", again.stdout, re.MULTILINE)
    kept = run_command(folder, tmp_path / "store")
    assert "0 of 17 artifacts written" in kept.stdout
    assert "warning: question_embs, source_embs, steering_centroid" in kept.stdout
    assert "stored as float16, as in an earlier conversion; --dtype source" in kept.stdout

    gone = run_command(folder, tmp_path / "store", "--dtype", "source")
    assert "5 of 17 artifacts written" in gone.stdout
    assert "restart running trainings" in gone.stdout
    back = run_command(tmp_path / "store", tmp_path / "back", "--to-pt")
    assert (back.status, back.stderr) == (0, "")
    assert same_bits(load(tmp_path / "back", "pair_index"), load(folder, "pair_index"))


def test_the_command_fails_in_one_line(
    tmp_path: Path, run_command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever failed; the traceback comes with --debug."""
    missing = tmp_path / "no"
    line = f"Error: Dataset directory not found: {missing}. Correct the path.\n"
    assert run_command(missing) == Done(1, "", line)
    debug = run_command(missing, "--debug")
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.endswith(line)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(conversion, "convert", fail)
    unexpected = run_command(missing)
    assert unexpected.status == 1
    assert unexpected.stderr == (
        "Error: unexpected RuntimeError: two lines (use --debug for a traceback)\n"
    )


@pytest.mark.parametrize(
    "arguments", [[], ["a", "--to-pt"], ["a", "b", "--to-pt", "--force"], ["a", "--dtype", "int8"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], run_command: Callable[..., Done]) -> None:
    """And says what is wrong."""
    done = run_command(*arguments)
    assert (done.status, done.stdout) == (2, "")
    assert "Usage: " in done.stderr


def test_it_runs_as_a_module() -> None:
    """From a checkout; its help has an example."""
    done = subprocess.run(
        [sys.executable, "-m", "converters", "--help"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "jasper-convert data/built" in done.stdout


def test_the_command_tells_every_problem_in_a_line(
    folder: Path, tmp_path: Path, run_command: Callable[..., Done]
) -> None:
    """The first after "Error: ", the others indented."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_neg": 0, "embedding_dim": "x"}))
    done = run_command(folder, tmp_path / "store")
    first, second = done.stderr.splitlines()
    assert (done.status, done.stdout) == (1, "")
    assert first.startswith(f"Error: {folder / 'config.json'}: 'embedding_dim' must be")
    assert second.startswith(f"  {folder / 'config.json'}: 'n_neg' must be")
