"""A folder with the two files in place of two paths."""

import itertools
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from jasper_mmap.commands.main import command
from jasper_mmap.errors import MissingFileError, UnsafeFileError, UsageError
from jasper_mmap.negatives.mined_folder import files_in
from tests.publishing import NAMES, Tables, current_pointer, saved

KINDS = (".pt", ".safetensors")


@pytest.mark.parametrize("kinds", [*itertools.product(KINDS, KINDS)])
def test_files_are_found_by_their_names(tmp_path: Path, kinds: tuple[str, str]) -> None:
    """Whatever else lies there."""
    paths = tuple(tmp_path / f"{name}{kind}" for name, kind in zip(NAMES, kinds, strict=True))
    for path in (*paths, tmp_path / "hard_negatives.npy", tmp_path / "step1-negative_tiers.pt"):
        path.touch()
    assert files_in(tmp_path) == paths
    assert files_in(str(tmp_path)) == paths


@pytest.mark.parametrize("name", NAMES)
def test_none_or_several_are_errors_that_name_them(tmp_path: Path, name: str) -> None:
    """Each file by itself."""
    for other in NAMES:
        (tmp_path / f"{other}.pt").touch()
    (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(UsageError, match=rf"{name}\.pt and {name}\.safetensors"):
        files_in(tmp_path)
    for kind in KINDS:
        (tmp_path / f"{name}{kind}").unlink()
    with pytest.raises(MissingFileError, match=rf"holds no {name}\.pt or {name}\.safetensors"):
        files_in(tmp_path)
    with pytest.raises(MissingFileError, match="not found"):
        files_in(tmp_path / "x")
    with pytest.raises(UsageError, match="is a file"):
        files_in(tmp_path / f"{next(n for n in NAMES if n != name)}.pt")


def test_command_publishes_a_folder(store: Path, new: Tables, tmp_path: Path) -> None:
    """Of both kinds of files; what is no file is refused as ever."""
    saved(new, tmp_path / "mined")
    run = CliRunner().invoke
    assert (
        "published generation 2"
        in run(command, ["publish", str(store), str(tmp_path / "mined")]).output
    )
    other = tmp_path / "other"
    other.mkdir()
    for name, table in zip(NAMES, new, strict=True):
        save_file({name: table.flip(0).contiguous()}, other / f"{name}.safetensors")
    assert "published generation 3" in run(command, ["publish", str(store), str(other)]).output
    entry = current_pointer(store)["history"][-1]
    assert entry["files"] == [f"other/{name}.safetensors" for name in NAMES]
    (other / "hard_negatives.safetensors").unlink()
    os.mkfifo(other / "hard_negatives.safetensors")
    assert isinstance(run(command, ["publish", str(store), str(other)]).exception, UnsafeFileError)
