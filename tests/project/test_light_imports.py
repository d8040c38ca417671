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
HEAVY = {"torch", "numpy", "safetensors", "rich", "click"}


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
