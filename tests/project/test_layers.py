"""The shape of the code: imports point one way, files stay short, the tables stand only once."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from jasper_mmap.rules.schema import ARTIFACTS, COLUMNS

ROOT = Path(__file__).parents[2]
PACKAGES = ("jasper_mmap", "converters", "tools")
TOP_LEVEL = {"README.md", "pyproject.toml", "tests", *PACKAGES}
MADE_BY_TOOLS = (".*", "*.egg-info", "build", "dist")
MAX_LINES = 300
MAX_FILES = 14  # of one folder
MAX_NAMES_TOGETHER = 4  # of one table: a formula may name its inputs

# A room is a folder. What is at the top of `jasper_mmap` is on the ground, but for these.
GROUND = "the ground"
APART = {
    "jasper_mmap": "jasper_mmap",  # the public interface
    "jasper_mmap.__main__": "commands",
}
STATED: dict[str, set[str]] = {
    "jasper_mmap": {GROUND, "rules", "negatives", "timing", "dataset", "loader"},
    GROUND: set(),
}
"""What those may import that no room's own `__init__` states."""
STATEMENT = re.compile(r"^May import: (.+?)\.$", re.MULTILINE | re.DOTALL)


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the checkout."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for package in PACKAGES for p in sorted(ROOT.glob(f"{package}/**/*.py"))}


def imports_of(module: str) -> Iterator[str]:
    """Yield the modules of ours that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = FILES[module].relative_to(ROOT).parent.parts[: 1 - node.level or None]
                base = ".".join(filter(None, (*inside, base)))
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in FILES else base


def literals_of(path: Path) -> Iterator[tuple[int, set[str]]]:
    """Yield the line and the strings of each list, tuple, set and dict (its keys)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            members: list[ast.expr | None] = [*node.elts]
        elif isinstance(node, ast.Dict):
            members = node.keys
        else:
            continue
        texts = {m.value for m in members if isinstance(m, ast.Constant)}
        yield node.lineno, {text for text in texts if isinstance(text, str)}


def room_of(module: str) -> str:
    """Return the room of a module."""
    package, *folders = FILES[module].relative_to(ROOT).parent.parts
    if package != "jasper_mmap":
        return "/".join((package, *folders))
    return APART.get(module, "/".join(folders) or GROUND)


def statement(room: str) -> set[str]:
    """Return the rooms that a room's own `__init__` states it may import."""
    if room in STATED:
        return STATED[room]
    path = ROOT / room if room.split("/")[0] in PACKAGES else ROOT / "jasper_mmap" / room
    docstring = ast.get_docstring(ast.parse((path / "__init__.py").read_text()))
    (named,) = STATEMENT.findall(docstring or "")
    return {room.strip() for room in named.split(",")}


ROOMS = sorted({room_of(module) for module in FILES} - {"jasper_mmap"})


def test_rooms_stand_in_an_order() -> None:
    """What a room states it may import may import less than itself: no circle, no way upwards."""
    for room in ROOMS:
        for below in statement(room) - {"jasper_mmap"}:
            assert statement(below) < statement(room), f"{room} may import {below}"


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_are_those_the_room_states(module: str) -> None:
    """A module imports from its own room and from those that the room states."""
    room = room_of(module)
    ours = {room_of(name) for name in imports_of(module) if name.split(".")[0] in PACKAGES}
    assert ours <= {room} | statement(room)


def test_nothing_imports_in_a_circle() -> None:
    """Inside a room neither: the modules can be put in an order."""
    graph = {module: set(imports_of(module)) & FILES.keys() for module in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


def test_converters_are_imported_by_no_other_name() -> None:
    """The installed name stays out of the code: it would be a second copy of every module."""
    assert not [m for m in FILES for name in imports_of(m) if name.startswith("jasper_converters")]


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_file_is_long(module: str) -> None:
    """One concept a file: none has more than 300 lines."""
    assert len(FILES[module].read_text().splitlines()) <= MAX_LINES


FOLDERS = sorted({path.parent for path in ROOT.glob("[!.]*/**/*.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_no_folder_is_full(folder: Path) -> None:
    """More than 14 files are two rooms."""
    assert len(list(folder.glob("*.py"))) <= MAX_FILES


def test_top_level_holds_only_what_belongs_there() -> None:
    """Nothing is left lying at the top of the repository."""
    visible = {
        path.name
        for path in ROOT.iterdir()
        if not any(fnmatch(path.name, pattern) for pattern in MADE_BY_TOOLS)
    }
    assert visible == TOP_LEVEL


@pytest.mark.parametrize("module", [m for m in sorted(FILES) if not m.startswith("tools")])
def test_only_schema_lists_artifacts_or_batch_keys(module: str) -> None:
    """No other file has a list, set or dict of the names that schema.py tells."""
    if module == "jasper_mmap.rules.schema":
        return
    listed = {
        f"{FILES[module]}:{line}": sorted(names & table.keys())
        for line, names in literals_of(FILES[module])
        for table in (ARTIFACTS, COLUMNS)
        if len(names & table.keys()) > MAX_NAMES_TOGETHER
    }
    assert not listed


CHANGING = {
    *("fsync", "rename", "unlink", "rmdir", "rmtree", "mkdir", "makedirs", "touch"),
    *("write_bytes", "write_text", "symlink_to", "hardlink_to"),
}
"""Methods of `Path` and functions of `os` and `shutil` that change a disk, or sync it."""
LAYER = "jasper_mmap.files.atomic"
WRITING = re.compile("[rwabx+]*[wax+][b+]*")


def changes_of(path: Path) -> Iterator[str]:
    """Yield the calls in a file that change the disk or open a file to do so, `atomic`'s apart."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "O_CREAT":
            yield f"{node.lineno}: {node.attr}"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        of_path = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) != "atomic"
        modes = [a.value for a in ast.walk(node) if isinstance(a, ast.Constant)]
        if (
            (of_path and name in CHANGING)
            # That of `Path` has one argument, that of a string two, that of a dataclass is bare.
            or (of_path and name == "replace" and len(node.args) == 1)
            or (name in ("open", "fdopen") and any(WRITING.fullmatch(str(m)) for m in modes))
        ):
            yield f"{node.lineno}: {name}"


@pytest.mark.parametrize(
    "module",
    [
        m
        for m in FILES
        if room_of(m).startswith(("files", "store", "simil", "negatives", "report", "conv"))
    ],
)
def test_only_one_module_changes_a_store(module: str) -> None:
    """What is made, renamed, removed and synced goes through `files.atomic`: there a power cut and
    failing calls are tried."""
    changes = list(changes_of(FILES[module]))
    assert bool(changes) == (module == LAYER), changes
