"""The command lint: readable on a narrow terminal, and as JSON what Python gives."""

import json
import shutil
from inspect import signature
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import jasper_mmap.__main__
from jasper_mmap import lint_negatives
from jasper_mmap.commands.main import command
from tests.converting import contents
from tests.publishing import mounted
from tests.terminal import shown


@pytest.fixture(scope="module")
def linted(real_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the real store that may be written."""
    return Path(shutil.copytree(real_store, tmp_path_factory.mktemp("lint") / "real"))


def lint(store: Path, *arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(command, ["lint", str(store), *arguments], catch_exceptions=False)


def test_the_answer_is_readable_at_80_columns(linted: Path) -> None:
    """The path apart, no line is longer, and the thresholds stand in it."""
    seen = shown(jasper_mmap.__main__.main, "jasper-mmap", "lint", linted)
    assert max(len(line) for line in seen.lines if str(linted) not in line) <= 80
    text = " ".join(" ".join(seen.lines).split())
    for words in (
        "s > p - 0.05 * |p|",
        "lowest right source 19.10% 61.99%",
        "known ones too 22.36% 69.18%",
        "own right source 10.68% 44.28%",
        "(cosine >= 0.9999)",
        "temperature 0.05",
        "8,321 (18.12%) slots (19.2% by chance), 3,480 (90.93%) rows (92.3% by chance)",
        "1586 (128)",
        "3, 1, 2, 4 (as described",
    ):
        assert words in text


def test_json_is_the_report(linted: Path) -> None:
    """With its options."""
    given = json.loads(lint(linted, "--json", "--margin", "0.1", "--sample", "50").stdout)
    report = lint_negatives(linted, margin=0.1, sample=50)
    assert given == json.loads(json.dumps(report.to_dict()))
    assert given["sample"] == 50
    assert given["thresholds"]["margin"] == 0.1


def test_flags_are_written(linted: Path, tmp_path: Path) -> None:
    """To the file that is named."""
    out = tmp_path / "flags.safetensors"
    assert lint(linted, "--out", str(out)).exit_code == 0
    assert out.stat().st_size > 4806 * 12 * 7


READ_ONLY = """
import sys
from jasper_mmap.__main__ import main
sys.argv = ["jasper-mmap", "lint", sys.argv[1]]
main()
"""


def test_a_store_on_a_read_only_mount_is_linted(store: Path) -> None:
    """All is computed, nothing is kept, and that is said in one line; the status is 0."""
    before = contents(store)
    options = f"--bind {store} {store} && mount -o remount,bind,ro {store}"
    *answer, note = mounted(store, options, READ_ONLY).splitlines()
    assert note.startswith("note: not kept for the next call: ")
    assert "not kept" not in "".join(answer)
    assert contents(store) == before
    lint(store)
    assert contents(store) != before
    assert lint(store).stdout.splitlines() == answer


@pytest.mark.parametrize("options", [("--margin", "2"), ("--sample", "0"), ("--generation", "0")])
def test_wrong_usage_is_refused(linted: Path, options: tuple[str, str]) -> None:
    """With status 2."""
    assert CliRunner().invoke(command, ["lint", str(linted), *options]).exit_code == 2


def test_the_command_has_the_defaults_of_the_function() -> None:
    """They are written twice, since help must not import torch."""
    options = {option.name: option.default for option in command.commands["lint"].params}
    parameters = signature(lint_negatives).parameters
    for name in ("margin", "seed"):
        assert options[name] == parameters[name].default
