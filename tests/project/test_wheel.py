"""The wheel holds the two packages and nothing else, and works where it is installed."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from tests.importing import PACKAGE_ORDERS

ROOT = Path(__file__).parents[2]
PACKAGES = {"jasper_mmap": "jasper_mmap", "jasper_converters": "converters"}
LICENCE = "jasper_mmap/LICENSE"
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
TYPED = """
from jasper_converters import convert
from jasper_mmap import create_loader

convert("builder", "store", force=True)
create_loader("store", "train", batch_size=8)
create_loader("store", "train", batch_size="eight")
convert("builder", forse=True)
reveal_type(convert("builder").generation)
"""


# Or pip would take the checkout for installed.
HERE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] = HERE) -> str:
    """Run a command, fail with what it said unless it exits 0, and return its stdout."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built offline from a copy of the checkout, which a build would litter."""
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, root / "source", ignore=NOT_SOURCE)
    build = ("wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", root)
    run(sys.executable, "-m", "pip", *build, root / "source")
    (built,) = root.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bare virtual environment into which only the wheel was installed."""
    root = tmp_path_factory.mktemp("elsewhere")
    venv.create(root, symlinks=True, with_pip=False)
    python = root / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install)
    return root


@pytest.fixture
def with_dependencies() -> dict[str, str]:
    """Return variables that lend an environment the packages of this one, to be found last."""
    return {**HERE, "PYTHONPATH": sysconfig.get_path("purelib")}


def test_wheel_holds_only_the_two_packages(wheel: Path) -> None:
    """Every source file of every room, the template of the report's page, both type markers and the
    licence; no test, no tool, no `converters`, no document."""
    wanted = {
        f"{installed}/{path.relative_to(ROOT / folder)}"
        for installed, folder in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed" or path.parent.name == "page"
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= wanted
    wanted.add(LICENCE)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == wanted


def test_wheel_holds_the_licence(wheel: Path) -> None:
    """Among its metadata, word for word, and named there."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        told = archive.read(metadata).decode()
        licence = archive.read(metadata.replace("METADATA", f"licenses/{LICENCE}")).decode()
    assert "\nLicense-Expression: MIT\n" in told
    assert f"\nLicense-File: {LICENCE}\n" in told
    assert licence == (ROOT / LICENCE).read_text()
    assert licence.startswith("MIT License\n\nCopyright (c) 2026 the jasper_mmap authors\n")


def test_installed_commands_convert(
    elsewhere: Path, demo_folder: Path, with_dependencies: dict[str, str], tmp_path: Path
) -> None:
    """Both commands show their help and do their work far from the checkout."""
    for name in ("jasper-convert", "jasper-mmap"):
        said = run(elsewhere / "bin" / name, "--help", cwd=tmp_path, env=with_dependencies)
        assert "Usage:" in said
    convert = elsewhere / "bin" / "jasper-convert"
    run(convert, demo_folder, tmp_path / "store", cwd=tmp_path, env=with_dependencies)
    read = (
        "import jasper_mmap, jasper_converters;"
        "print(jasper_mmap.__file__, jasper_converters.__file__);"
        "print(jasper_mmap.JASPERSteeringDataset('store', 'train').pair_index.tolist())"
    )
    said = run(elsewhere / "bin" / "python", "-c", read, cwd=tmp_path, env=with_dependencies)
    files, pairs = said.splitlines()
    assert files.count(str(elsewhere)) == 2
    assert pairs == str(torch.load(demo_folder / "pair_index.pt").tolist())


@pytest.mark.parametrize("first", ["names first", "modules first"])
def test_installed_names_are_not_hidden_by_modules(
    elsewhere: Path, with_dependencies: dict[str, str], tmp_path: Path, first: str
) -> None:
    """Whatever was imported before, `from jasper_converters import convert` gives the function."""
    program = (elsewhere / "bin" / "python", "-c", PACKAGE_ORDERS, "jasper_converters", first)
    run(*program, cwd=tmp_path, env=with_dependencies)


def test_mypy_finds_the_types_of_the_wheel(elsewhere: Path, tmp_path: Path) -> None:
    """A program elsewhere is checked against both packages: its two wrong calls are told."""
    (tmp_path / "program.py").write_text(TYPED)
    check = ("--strict", "--python-executable", elsewhere / "bin" / "python", "program.py")
    mypy = (sys.executable, "-m", "mypy", *check)
    said = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^program.py:(\d+): (?:error: .*\[(.*)\]|note: (Reveal.*))$", said, re.M)
    told = [(int(line), code or note.replace("builtins.", "")) for line, code, note in found]
    assert told == [(7, "arg-type"), (8, "call-arg"), (9, 'Revealed type is "int"')], said
