"""What is imported when: a name's modules when it is used, and no more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import converters
import jasper_mmap
from tests.importing import PACKAGE_ORDERS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
TOOLS = {"accelerate", "lightning", "ray", "torchdata", "transformers"}
"""What a loader can be handed to; torch's own DataLoader must do without them too."""
HEAVY = {"torch", "numpy", "safetensors", "rich", "click", "matplotlib", *TOOLS}


def run(program: str, *arguments: str) -> str:
    """Run a program in a fresh process and return its stdout."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def imported_by(program: str) -> set[str]:
    """Return which of the heavy packages a program has imported at its end."""
    told = run(f"{program}\nimport json, sys\nprint(json.dumps([*sys.modules]))")
    return HEAVY & set(json.loads(told.splitlines()[-1]))


def test_packages_import_nothing_before_a_name_is_used() -> None:
    """Nor for the version, the errors and the list of names."""
    assert not imported_by("import jasper_mmap, converters; dir(jasper_mmap), dir(converters)")
    assert not imported_by("import jasper_mmap; jasper_mmap.__version__, jasper_mmap.errors")


@pytest.mark.parametrize("package", ["jasper_mmap", "converters"])
def test_library_imports_neither_click_nor_rich(package: str) -> None:
    """All that has a public name."""
    names = f"from {package} import *"
    assert imported_by(names) == {"torch", "numpy", "safetensors"}


def test_names_of_the_packages_are_the_public_ones() -> None:
    """No module stands among them by accident, and each is there."""
    assert set(dir(jasper_mmap)) == {*jasper_mmap.__all__, "__version__", "errors"}
    assert set(dir(converters)) == set(converters.__all__)
    for package in (jasper_mmap, converters):
        assert all(hasattr(package, name) for name in dir(package))
    with pytest.raises(AttributeError, match="module 'jasper_mmap' has no attribute 'reload'"):
        _ = jasper_mmap.reload  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", ["names first", "modules first"])
@pytest.mark.parametrize("package", ["jasper_mmap", "converters"])
def test_no_module_takes_the_place_of_a_name(package: str, first: str) -> None:
    """Whatever was imported before, `from converters import convert` gives the function."""
    run(PACKAGE_ORDERS, package, first)


COMMAND = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as ended:
    print(f"ended with {ended.code}")
print(*sys.modules, sep="\\n")
"""


@pytest.mark.parametrize("package", ["jasper_mmap", "converters"])
@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--version", 0), ("--nonsense", 2)])
def test_commands_answer_without_torch(package: str, option: str, status: int) -> None:
    """What is asked or wrong before any work begins takes neither torch nor rich."""
    lines = run(COMMAND, package, option).splitlines()
    assert f"ended with {status}" in lines
    assert HEAVY.intersection(lines) == {"click"}
    if option == "--version":
        program = {"jasper_mmap": "jasper-mmap", "converters": "jasper-convert"}[package]
        assert lines[0] == f"{program}, version {jasper_mmap.__version__}"


@pytest.mark.parametrize("name", ["bench", "diff", "publish", "show", "verify", "watch"])
def test_helps_of_commands_come_without_torch(name: str) -> None:
    """Their choices and defaults too."""
    lines = run(COMMAND, "jasper_mmap", name, "--help").splitlines()
    assert "ended with 0" in lines
    assert HEAVY.intersection(lines) == {"click"}


def test_shell_completion_comes_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that begin with what was typed, and no more."""
    monkeypatch.setitem(ENVIRONMENT, "_JASPER_MMAP_COMPLETE", "bash_complete")
    monkeypatch.setitem(ENVIRONMENT, "COMP_WORDS", "jasper-mmap ver")
    monkeypatch.setitem(ENVIRONMENT, "COMP_CWORD", "1")
    program = """
import sys
from jasper_mmap.__main__ import main
sys.argv = ["jasper-mmap"]
try:
    main()
finally:
    print(*sys.modules, sep="\\n")
"""
    lines = run(program).splitlines()
    assert lines[0] == "plain,verify"
    assert HEAVY.intersection(lines) == {"click"}
