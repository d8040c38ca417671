"""The README runs: its blocks work as they stand, its tables are those of the code."""

import ast
import builtins
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from jasper_mmap import errors
from jasper_mmap.rules.schema import ARTIFACTS, COLUMNS, NEGATIVES, STORED
from tools.demo.folder import remine_negatives

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SET_UP = "python -m pytest"  # ends the second line of the set-up block
BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>given|not run): (?P<note>[^\n]+) -->\n)?"
    r"```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
CONTRACT_WORDS = (
    "Dataset directory not found",
    "Config file not found",
    "Split file not found",
    "pair_index references question",
    "pair_index references source",
    "hard_negatives references source",
    "Split indices reference pair",
    "Index ... out of range",
)


class Block(NamedTuple):
    """A fenced block, and the comment above it: a set-up the test runs first, or why it is not."""

    line: int
    language: str
    code: str
    given: str
    not_run: str

    def __str__(self) -> str:
        return f"line{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return the README's blocks in these languages, or all of them."""
    found = [
        Block(
            line=README[: match.start()].count("\n") + 1,
            language=match["language"],
            code=match["code"],
            given=match["note"] if match["marker"] == "given" else "",
            not_run=match["note"] if match["marker"] == "not run" else "",
        )
        for match in BLOCK.finditer(README)
    ]
    return [block for block in found if not languages or block.language in languages]


def to_run(language: str) -> list[Block]:
    """Return the blocks that are run: not the set-up, not those that say why not."""
    return [b for b in blocks(language) if not b.not_run and SET_UP not in b.code]


def table(*header: str) -> list[list[str]]:
    """Return the cells of the README's table with this header."""
    head = f"| {' | '.join(header)} |\n"
    rows = README.split(head, 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def section(title: str) -> str:
    """Return the text below a heading of the second level."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return variables under which the checkout's packages and commands are as installed."""
    root = tmp_path_factory.mktemp("installed")
    (root / "jasper_converters").symlink_to(ROOT / "converters")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, target in scripts.items():
        module, function = target.split(":")
        command = root / name
        command.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
        command.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{root}:{os.environ['PATH']}",
        "PYTHONPATH": f"{root}:{ROOT}",
        "PYTHONWARNINGS": "error,ignore:This DataLoader will create:UserWarning",
    }


@pytest.fixture
def folder(tmp_path: Path, demo_folder: Path, demo_store: Path) -> Path:
    """Return a folder with what the README speaks of: my_dataset, converted, and new negatives."""
    shutil.copytree(demo_folder, tmp_path / "my_dataset")
    shutil.copytree(demo_store, tmp_path / "my_dataset", dirs_exist_ok=True)
    (tmp_path / "new_negatives").mkdir()
    for artifact, tensor in zip(NEGATIVES, remine_negatives(demo_folder, seed=5), strict=True):
        torch.save(tensor, tmp_path / "new_negatives" / artifact.source)
    return tmp_path


def run(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a shell command in `folder`; fail with what it said unless it exits 0."""
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", to_run("python"), ids=str)
def test_python_block_runs(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """Each Python block runs as it stands, by itself, after what its marker gives."""
    (folder / "block.py").write_text(f"{block.given}\n{block.code}")
    run(f"{sys.executable} block.py", folder, environment)


@pytest.mark.parametrize("block", to_run("bash"), ids=str)
def test_bash_block_runs(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """Each command of the bash blocks exits 0."""
    run(block.code, folder, environment)


def test_blocks_are_run_or_say_why_not() -> None:
    """Every block but the store's layout is run by a test here, or says why not."""
    assert to_run("python")
    assert to_run("bash")
    assert README.count("\n```") == 2 * len(blocks()), "a fence is not closed, or not understood"
    assert {block.language for block in blocks()} == {"bash", "python", "text"}
    assert len(blocks("text")) == 1


def test_training_example_has_eight_lines() -> None:
    """The first Python block is the whole of a training loop."""
    assert len(blocks("python")[0].code.splitlines()) == 8


def test_set_up_is_two_lines() -> None:
    """One block sets everything up: a line for the demonstration, a line for the tests."""
    (block,) = [b for b in blocks("bash") if SET_UP in b.code]
    first, second = block.code.splitlines()
    assert first == "pip install -e . && python -m tools.demo"
    assert second == f"pip install -e '.[dev]' && {SET_UP}"


def test_batch_table_is_the_schema() -> None:
    """Keys, shapes and dtypes stand in the README as in `schema.COLUMNS`."""
    told = [tuple(row[:3]) for row in table("key", "shape", "dtype", "what")]
    assert told == [
        (f"`{c.name}`", f"`[{','.join(c.shape)}]`", str(c.dtype).removeprefix("torch."))
        for c in COLUMNS.values()
    ]


def test_store_layout_is_the_schema() -> None:
    """The layout names every artifact's file with its shape, and no other."""
    (layout,) = blocks("text")
    told = dict(re.findall(r"^  (\w+\.safetensors) +(\[.*?\])", layout.code, re.MULTILINE))
    assert told == {a.file: f"[{', '.join(map(str, a.shape))}]" for a in STORED}
    inside = re.findall(r"(\w+) \[N_p, N\]", layout.code)
    assert inside == [a.name for a in NEGATIVES]
    assert not re.findall(r"\b(\w+)\.pt\b", layout.code)
    assert len(told) + len(inside) == len(ARTIFACTS)


def test_troubleshooting_tells_every_error() -> None:
    """Each error stands there with the builtins it also is, and each promised message."""
    rows = table("error", "also a", "when", "remedy")
    leaves = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.JasperError)
    ]
    leaves.remove(errors.JasperError)
    assert {row[0]: row[1] for row in rows} == {f"`{k.__name__}`": also_a(k) for k in leaves}
    assert all(row[2] and row[3] for row in rows)
    assert [words for words in CONTRACT_WORDS if words not in section("Troubleshooting")] == []


def also_a(kind: type[errors.JasperError]) -> str:
    """Return the builtins among an error's own bases, as the table writes them."""
    names = [base.__name__ for base in kind.__bases__ if hasattr(builtins, base.__name__)]
    return ", ".join(f"`{name}`" for name in names)


def test_every_room_is_listed() -> None:
    """What lies where: each room once, in the words of its own `__init__`; nothing that is gone."""
    rooms = {
        f"`{path.parent.relative_to(ROOT)}/`": first_sentence(path)
        for package in ("jasper_mmap", "converters", "tools")
        for path in (ROOT / package).rglob("__init__.py")
        if path.parent != ROOT / "jasper_mmap"
    }
    told = table("room", "what")
    assert dict(told) == rooms
    assert len(told) == len(rooms)


def first_sentence(path: Path) -> str:
    """Return the first paragraph of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ")


def test_readme_speaks_of_the_project_alone() -> None:
    """No address, no absolute path: what holds on one machine only does not belong there."""
    assert re.findall(r"https?://\S+|(?<![\w.])/(?!dev/shm)\w+/\S*", README) == []


def test_changes_begin_with_the_version_of_the_package() -> None:
    """The newest entry is the version that is built, under the four fixed headings."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = section("Changes").split("\n### ")[1]
    assert newest.startswith(version)
    headings = re.findall(r"^\*\*(\w+)\*\*", newest, re.MULTILINE)
    assert headings == ["Added", "Changed", "Fixed", "Removed"]
