"""The shape of the code: imports point one way, files stay short, the tables stand only once."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from jasper_mmap.schema import ARTIFACTS, COLUMNS

ROOT = Path(__file__).parents[1]
PACKAGES = ("jasper_mmap", "converters", "tools")
TOP_LEVEL = {"README.md", "pyproject.toml", "tests", *PACKAGES}
MADE_BY_TOOLS = (".*", "*.egg-info", "build", "dist")
MAX_LINES = 300
MAX_NAMES_TOGETHER = 4  # of one table: a formula may name its inputs

# A module may import those after it. `__init__` stands for the package's own name.
LAYERS = (
    ("tools", "demo demo_report demo_data demo_negatives __init__"),
    (
        "tools",
        "bench bench_plot bench_table bench_libraries bench_records bench_contenders bench_data",
    ),
    ("converters", "__main__ __init__ convert commit export precheck survey generation plan"),
    ("converters", "write narrow derive source staging report progress"),
    ("jasper_mmap", "__main__ cli cli_bench cli_negatives console version service"),
    ("jasper_mmap", "inbox dropped filing report summary"),
    ("jasper_mmap", "bench machine turns __init__"),
    ("jasper_mmap", "first_batch loader watcher look worker_pass workers child worker signals"),
    ("jasper_mmap", "passes sampler epochs order"),
    (
        "jasper_mmap",
        "agreement dataset batch reading gather slots layout adoption overwritten publish",
    ),
    ("jasper_mmap", "builder_pair retention incoming served placement stack renewal validate"),
    ("jasper_mmap", "remarks store generation audit checks lint negatives manifest locks"),
    ("jasper_mmap", "configfile curriculum config steering permutation"),
    (
        "jasper_mmap",
        "ptfile ptarchive pickled saved tensorfile control warm mapping modes arguments schema"
        " shared threads",
    ),
    ("jasper_mmap", "missing atomic failures jsonfile regular errors printable"),
)
ORDER = [
    f"{package}.{module}".removesuffix(".__init__")
    for package, modules in LAYERS
    for module in modules.split()
]


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
                inside = module if FILES[module].stem == "__init__" else module.rpartition(".")[0]
                base = f"{inside}.{base}".rstrip(".")
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


def test_every_module_has_one_place_in_the_order() -> None:
    """A new module is put into LAYERS, a removed one taken out."""
    assert sorted(ORDER) == sorted(FILES)


@pytest.mark.parametrize("module", [m for m in ORDER if m in FILES])
def test_imports_point_down(module: str) -> None:
    """A module imports only what comes after it, so nothing imports in a circle or upwards."""
    below = ORDER[ORDER.index(module) + 1 :]
    ours = {name for name in imports_of(module) if name.split(".")[0] in PACKAGES}
    assert not {name for name in ours if name not in below}


def test_converters_are_imported_by_no_other_name() -> None:
    """The installed name stays out of the code: it would be a second copy of every module."""
    assert not [m for m in FILES for name in imports_of(m) if name.startswith("jasper_converters")]


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_file_is_long(module: str) -> None:
    """One concept a file: none has more than 300 lines."""
    assert len(FILES[module].read_text().splitlines()) <= MAX_LINES


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
    if module == "jasper_mmap.schema":
        return
    listed = {
        f"{FILES[module]}:{line}": sorted(names & table.keys())
        for line, names in literals_of(FILES[module])
        for table in (ARTIFACTS, COLUMNS)
        if len(names & table.keys()) > MAX_NAMES_TOGETHER
    }
    assert not listed
