"""The documents run: their blocks work as they stand, their tables are those of the code."""

import ast
import builtins
import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader

from converters import ConversionReport, convert
from jasper_mmap import JASPERSteeringDataset, create_loader, errors
from jasper_mmap.negatives import inbox
from jasper_mmap.rules.curriculum import steering_probabilities
from jasper_mmap.rules.schema import (
    ARTIFACTS,
    COLUMNS,
    FLOAT_DTYPES,
    INT_DTYPES,
    NEGATIVES,
    STORED,
    Artifact,
)
from jasper_mmap.store.config_file import read_config
from jasper_mmap.store.lint import MEANING
from tests.project.test_layers import ROOMS, statement
from tools.demo.folder import make_builder_folder, remine_negatives

ROOT = Path(__file__).parents[2]
README = "README.md"
INSIDE = "jasper_mmap/README.md"
CHANGES = "jasper_mmap/CHANGES.md"
CONVERTERS = "converters/README.md"
CONTRIBUTING = ".github/CONTRIBUTING.md"
LOADER = "jasper_mmap/loader/README.md"
DATA = "jasper_mmap/similarity/README.md"
DOCTOR = "jasper_mmap/doctor/README.md"
REPORT = "jasper_mmap/report/README.md"
TEXTS = {
    name: (ROOT / name).read_text()
    for name in (
        *(README, INSIDE, CHANGES, CONVERTERS, CONTRIBUTING, LOADER, DATA, DOCTOR, REPORT),
    )
}
MOST_BYTES = 10_000  # of the README
SET_UP = "python -m pytest"  # ends the second line of the set-up block
BLOCK = re.compile(
    r"^(?:<!-- (?:saved as (?P<file>[\w.]+)(?:, )?)?(?:recipe: (?P<package>\w+)(?:, )?)?"
    r"(?:(?P<marker>given|not run): (?P<note>[^\n]+))? -->\n)?"
    r"```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PATH = re.compile(r"(?<![\w/.])((?:\w+/)+\w+\.py|(?:jasper_mmap|converters|tools|tests)/(?:\w+/)*)")
"""A module or a room, wherever a document names it."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
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
EVENT = {"_say": 1, "_say_once": 2}
"""The functions by which the inbox logs, and which of their arguments names the event."""
NOT_FOR_USERS = {
    *("adoption", "collective", "epoch_calls", "identity", "loaded", "read_counts", "reader")
}
"""What other modules of the package use of a dataset."""


class Block(NamedTuple):
    """A fenced block, and the comment above it: a set-up the test runs first, or why it is not.

    One that is `saved_as` a file is run by the command that names the file, one that needs a
    `package` by `tests/frameworks/test_recipes.py`.
    """

    document: str
    line: int
    language: str
    code: str
    given: str
    not_run: str
    saved_as: str
    package: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(*languages: str, of: Iterable[str] = tuple(TEXTS)) -> list[Block]:
    """Return the blocks of documents in these languages, or all of them."""
    found = [
        Block(
            document=document,
            line=TEXTS[document][: match.start()].count("\n") + 1,
            language=match["language"],
            code=match["code"],
            given=match["note"] if match["marker"] == "given" else "",
            not_run=match["note"] if match["marker"] == "not run" else "",
            saved_as=match["file"] or "",
            package=match["package"] or "",
        )
        for document in of
        for match in BLOCK.finditer(TEXTS[document])
    ]
    return [block for block in found if not languages or block.language in languages]


def to_run(language: str) -> list[Block]:
    """Return the blocks that are run here: not the set-up, not those that say why not."""
    return [
        b
        for b in blocks(language)
        if not (b.not_run or b.saved_as or b.package or SET_UP in b.code)
    ]


def table(document: str, *header: str) -> list[list[str]]:
    """Return the cells of the document's table with this header."""
    head = f"| {' | '.join(header)} |\n"
    (_, rest) = TEXTS[document].split(head)
    rows = rest.split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def section(document: str, title: str) -> str:
    """Return the text below a heading of the second level."""
    return TEXTS[document].split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def names_in(cells: Iterable[str]) -> list[str]:
    """Return what stands in backticks."""
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def bare(dtype: torch.dtype) -> str:
    """Return the name of a dtype as documents write it."""
    return str(dtype).removeprefix("torch.")


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
        "PATH": f"{root}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{root}:{ROOT}",
        "PYTHONWARNINGS": "error,ignore:This DataLoader will create:UserWarning",
        "OMP_NUM_THREADS": "1",  # or torchrun says that it sets it
    }


@pytest.fixture
def folder(tmp_path: Path, demo_folder: Path, demo_store: Path) -> Path:
    """Return a folder with what documents speak of: my_dataset and my_store, and new negatives."""
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
    """Each command of the bash blocks exits 0; the files that the document has saved are there."""
    for saved in blocks(of=[block.document]):
        if saved.saved_as:
            (folder / saved.saved_as).write_text(f"{saved.given}\n{saved.code}")
    run(block.code, folder, environment)


def test_blocks_are_run_or_say_why_not() -> None:
    """Every block that could be run is, or says why not; no fence is left open."""
    for document, text in TEXTS.items():
        assert len(re.findall("^```", text, re.MULTILINE)) == 2 * len(blocks(of=[document]))
    assert {block.language for block in blocks()} == {"bash", "console", "python", "text", "json"}
    commands = "".join(block.code for block in to_run("bash"))
    assert [b.saved_as for b in blocks() if b.saved_as not in commands] == []


def test_every_document_is_looked_at() -> None:
    """No other document lies in the repository, but for what tests keep."""
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in (".", ".github", ".ci", "jasper_mmap", "converters", "tools")
        for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
    ]
    assert sorted(found) == sorted(TEXTS)


def test_readme_is_short() -> None:
    """It is read before anything else: 10 kB, of which the input is a third."""
    assert len(TEXTS[README].encode()) <= MOST_BYTES


def test_first_example_trains() -> None:
    """The first Python block of the README is a whole training: loader, epochs, loss, step."""
    code = blocks("python", of=[README])[0].code
    order = ("create_loader(", "validate_first_batch(", "set_epoch(", ".backward()", ".step()")
    places = [code.rindex(words) for words in order]
    assert places == sorted(places)


def test_set_up_is_two_lines() -> None:
    """One block sets everything up, after the word to those who have no GPU."""
    (block,) = [b for b in blocks("bash", of=[README]) if SET_UP in b.code]
    first, second = block.code.splitlines()
    assert first == "pip install -e . && python -m tools.demo"
    assert second == f"pip install -e '.[dev]' && {SET_UP}"
    before = section(README, "Set up").partition("```")[0]
    assert "pytorch.org" in before
    assert "CPU" in before


def test_versions_run_are_those_of_the_checks() -> None:
    """The torch that `.ci/run` installs is among the versions that the README says were run."""
    (installed,) = re.findall(r"torch==([\d.]+)", (ROOT / ".ci" / "run").read_text())
    (line,) = re.findall(r"^Versions run: (.*)$", TEXTS[README], re.MULTILINE)
    assert f"torch {installed}" in line


def input_cells(artifact: Artifact) -> list[str]:
    """Return what a table of the input says of a file: its name, shape and kind of dtype."""
    shape = ",".join(map(str, artifact.shape))
    kind = {"ragged": "list"}.get(artifact.kind, artifact.kind)
    return [f"`{artifact.source}`", f"`[{shape}]`", kind]


def values_cell(artifact: Artifact) -> str:
    """Return what the table of the input in full says of a file's values."""
    if artifact.refers:
        return f"rows of {', '.join(f'`{name}`' for name in artifact.refers)}"
    if artifact.low is not None:
        return f"{artifact.low:g} to {artifact.high:g}"
    return "finite as float32"


def test_input_tables_are_the_schema() -> None:
    """Both name the 17 files with shape and kind; the README says what each holds."""
    wanted = [input_cells(artifact) for artifact in ARTIFACTS.values()]
    brief = table(README, "file", "shape", "dtype", "holds")
    assert [row[:3] for row in brief] == wanted
    assert all(row[3] for row in brief)
    assert f"{len(wanted)} files" in section(README, "The input folder")
    full = table(CONVERTERS, "file", "shape", "dtype", "values")
    assert full == [[*input_cells(a), values_cell(a)] for a in ARTIFACTS.values()]


def test_accepted_dtypes_are_the_schema() -> None:
    """Every dtype that the converter takes is listed, and no other."""
    told = dict(table(CONVERTERS, "dtype", "accepted"))
    assert told["float"] == ", ".join(map(bare, FLOAT_DTYPES))
    assert told["int"] == ", ".join(map(bare, INT_DTYPES))


def test_config_to_copy_converts(tmp_path: Path) -> None:
    """The README's config.json serves a folder of its sizes, and there is nothing to say of it."""
    (block,) = blocks("json", of=[README])
    sizes = json.loads(block.code)
    make_builder_folder(tmp_path, n_pairs=60, dim=sizes["embedding_dim"], n_neg=sizes["n_neg"])
    (tmp_path / "config.json").write_text(block.code)
    assert convert(tmp_path).notes == ()
    told = names_in(row[0] for row in table(CONVERTERS, "key", "value"))
    assert told == [*sizes, *sizes["curriculum"]]


def test_drawing_is_the_curriculum(tmp_path: Path) -> None:
    """Each star stands in the row of the probability that its epoch has."""
    (config,) = blocks("json", of=[README])
    (tmp_path / "config.json").write_text(config.code)
    curriculum = read_config(tmp_path)
    (drawing,) = blocks("text", of=[README])
    *rows, epochs = drawing.code.splitlines()[1:]
    stars = {m.start(): float(row.split()[0]) for row in rows for m in re.finditer(r"\*", row)}
    drawn = {
        int(m[0]): stars.pop(m.start()) for m in re.finditer(r"\d+", epochs) if m.start() in stars
    }
    assert len(drawn) > 5
    assert not stars
    assert drawn == {e: round(steering_probabilities(curriculum, e)["zero"], 9) for e in drawn}


def test_batch_table_is_the_schema() -> None:
    """Keys, shapes and dtypes stand in the README as in `schema.COLUMNS`."""
    told = [tuple(row[:3]) for row in table(README, "key", "shape", "dtype", "what")]
    assert told == [
        (f"`{c.name}`", f"`[{','.join(c.shape)}]`", bare(c.dtype)) for c in COLUMNS.values()
    ]


def test_store_layout_is_the_schema() -> None:
    """The layout names every artifact's file with its shape, and no other."""
    (layout,) = blocks("text", of=[CONVERTERS])
    told = dict(re.findall(r"^  (\w+\.safetensors) +(\[.*?\])", layout.code, re.MULTILINE))
    assert told == {a.file: f"[{', '.join(map(str, a.shape))}]" for a in STORED}
    inside = re.findall(r"(\w+) \[N_p, N\]", layout.code)
    assert inside == [a.name for a in NEGATIVES]
    assert not re.findall(r"\b(\w+)\.pt\b", layout.code)
    assert len(told) + len(inside) == len(ARTIFACTS)


def test_report_and_counts_are_those_of_the_code() -> None:
    """Each field of a report and each count is listed, in order; counts in the code's words."""
    told = names_in(row[0] for row in table(CONVERTERS, "field", "what"))
    assert told == [field.name for field in dataclasses.fields(ConversionReport)]
    counts = table(CONVERTERS, "count", "what")
    assert counts == [[f"`{name}`", meaning] for name, meaning in MEANING.items()]


def test_every_error_has_its_remedy() -> None:
    """Each error stands there with the builtins it also is, and each promised message."""
    rows = table(INSIDE, "error", "also a", "when", "remedy")
    leaves = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.JasperError)
    ]
    leaves.remove(errors.JasperError)
    assert {row[0]: row[1] for row in rows} == {f"`{k.__name__}`": also_a(k) for k in leaves}
    assert all(row[2] and row[3] for row in rows)
    assert [words for words in CONTRACT_WORDS if words not in section(INSIDE, "Errors")] == []


def also_a(kind: type[errors.JasperError]) -> str:
    """Return the builtins among an error's own bases, as the table writes them."""
    names = [base.__name__ for base in kind.__bases__ if hasattr(builtins, base.__name__)]
    return ", ".join(f"`{name}`" for name in names)


def test_every_room_is_listed_from_the_ground_up() -> None:
    """Each room once, in the words of its own `__init__`, below all that it may import."""
    rooms = {
        path.parent.relative_to(ROOT).as_posix(): first_sentence(path)
        for package in ("jasper_mmap", "converters", "tools")
        for path in (ROOT / package).rglob("__init__.py")
        if path.parent != ROOT / "jasper_mmap"
    }
    told = table(INSIDE, "room", "what")
    assert dict(told) == {f"`{room}/`": what for room, what in rooms.items()}
    order = [row[0].strip("`/").removeprefix("jasper_mmap/") for row in told]
    assert len(order) == len(rooms)
    for place, room in enumerate(order):
        assert not statement(room) & set(order[place:]), f"{room} stands too early"
    assert set(order) <= set(ROOMS)


def first_sentence(path: Path) -> str:
    """Return the first paragraph of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ")


def own_public(thing: object) -> set[str]:
    """Return the public names that an object has of this package, not of torch."""
    kinds = [kind for kind in type(thing).__mro__ if kind.__module__.startswith("jasper_mmap")]
    names = {*vars(thing)}.union(*(vars(kind) for kind in kinds))
    return {name for name in names if not name.startswith("_")}


def test_attributes_and_options_are_those_of_the_code(demo_store: Path) -> None:
    """What a dataset and a loader have for users, and every option with its default."""
    loader = create_loader(demo_store, "train", 8)
    dataset = names_in(row[0] for row in table_of("The dataset", "attribute", "what"))
    own = own_public(loader.dataset_obj) | {*ARTIFACTS, "split_indices"}
    assert sorted(dataset) == sorted(own - NOT_FOR_USERS)
    assert all(hasattr(loader.dataset_obj, name) for name in dataset)

    plain = DataLoader(loader.dataset_obj)
    torchs = {*vars(plain), *dir(plain)}
    told = names_in(row[0] for row in table_of("The loader", "attribute", "what"))
    assert sorted(told) == sorted(own_public(loader) - torchs)

    options = [row[:2] for row in table(INSIDE, "option", "default", "what")]
    assert options == [
        [f"`{p.name}`", "" if p.default is p.empty else f"`{p.default!r}`"]
        for p in inspect.signature(create_loader).parameters.values()
    ]
    assert JASPERSteeringDataset.__name__ in section(INSIDE, "The dataset")


def table_of(title: str, *header: str) -> list[list[str]]:
    """Return the cells of the table with this header in a section."""
    rows = section(INSIDE, title).split(f"| {' | '.join(header)} |\n")[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()[1:]]


def test_events_are_those_of_the_inbox() -> None:
    """Each event that the inbox logs is listed, and no other."""
    told = names_in(row[0] for row in table(INSIDE, "event", "level", "what"))
    given: list[ast.expr] = []
    for node in ast.walk(ast.parse(Path(inbox.__file__).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            given += node.args[EVENT[called] :][:1] if called in EVENT else []
        elif isinstance(node, ast.FunctionDef) and node.name in EVENT:
            given += node.args.defaults[-1:]
    logged = {n.value for e in given for n in ast.walk(e) if isinstance(n, ast.Constant)}
    assert sorted(told) == sorted(map(str, logged))


def anchors(text: str) -> set[str]:
    """Return the names that a document's headings have in links."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("document", TEXTS)
def test_links_lead_somewhere(document: str) -> None:
    """Each link names a file of the checkout, and a heading in it; so does each module's name."""
    text, folder = TEXTS[document], (ROOT / document).parent
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else ROOT / document
        assert file.is_relative_to(ROOT)
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target
    for name in PATH.findall(text):
        wanted = [ROOT / name, folder / name]
        assert any(path.exists() for path in wanted), name


def test_documents_are_linked_from_the_readme() -> None:
    """The README leads to each of them, to the changes once."""
    targets = [target.partition("#")[0] for target in LINK.findall(TEXTS[README])]
    assert {*targets} == TEXTS.keys() - {README}
    assert targets.count(CHANGES) == 1


@pytest.mark.parametrize("document", TEXTS)
def test_documents_speak_of_the_project_alone(document: str) -> None:
    """No address, no absolute path: what holds on one machine only does not belong there."""
    text = LINK.sub("", TEXTS[document])
    assert re.findall(r"https?://\S+|(?<![\w.`*)])/(?!dev/shm)\w+/\S*", text) == []


def test_changes_begin_with_the_version_of_the_package() -> None:
    """The newest entry is the version that is built; each has the four fixed headings."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    entries = [e for e in TEXTS[CHANGES].split("\n## ")[1:] if e[0].isdecimal()]
    assert entries[0].splitlines()[0] == version
    for entry in entries:
        headings = re.findall(r"^\*\*(\w+)\*\*", entry, re.MULTILINE)
        assert headings == ["Added", "Changed", "Fixed", "Removed"]
