"""`jasper-convert`, and the way back to `.pt` files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from converters import convert, export_pt
from jasper_mmap.errors import (
    ExistsError,
)
from jasper_mmap.manifest import read_manifest
from jasper_mmap.schema import ARTIFACTS
from tests.converting import (
    SMALL,
    load,
    same_bits,
)
from tools.demo_data import make_builder_folder


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
    with pytest.raises(ExistsError, match=r"val_idx\.pt: exists already"):
        export_pt(demo_store, tmp_path / "back")
    assert [p.name for p in (tmp_path / "back").iterdir()] == ["val_idx.pt"]


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `jasper-convert` from the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "converters", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_converts_and_converts_back(folder: Path, tmp_path: Path) -> None:
    """Results on stdout, progress on stderr, one line for a failure."""
    done = run_command(folder, tmp_path / "store", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["generation"] == 1
    assert "100%" in done.stderr

    back = run_command(tmp_path / "store", tmp_path / "back", "--to-pt")
    assert (back.returncode, back.stderr) == (0, "")
    assert same_bits(load(tmp_path / "back", "pair_index"), load(folder, "pair_index"))

    shutil.rmtree(folder)
    failed = run_command(folder, tmp_path / "store")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == f"Error: Dataset directory not found: {folder}\n"
    assert "Traceback" in run_command(folder, "--debug").stderr
    assert run_command(tmp_path / "store", "--to-pt").returncode == 2
