"""The API reference: every public name has its place there, with its docstring."""

import html
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

import converters
import jasper_mmap
from jasper_mmap import errors

ROOT = Path(__file__).parents[2]
PAGES = {
    "jasper_mmap": jasper_mmap,
    "jasper_mmap/errors": errors,
    "jasper_converters": converters,
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the command wrote, without a warning."""
    root = tmp_path_factory.mktemp("docs")
    (root / "jasper_converters").symlink_to(ROOT / "converters")
    environment = {**os.environ, "PYTHONPATH": f"{root}:{ROOT}", "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "tools.docs"]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "build/api/index.html\n"
    return root / "build" / "api"


def documented(page: str) -> Iterator[tuple[str, str]]:
    """Yield what a page has to tell: each public name, also of classes, with its docstring."""
    module = PAGES[page]
    errors_of = [name for name, kind in vars(module).items() if is_error(kind)]
    for name in getattr(module, "__all__", errors_of):
        thing = getattr(module, name)
        if name.startswith("_"):
            continue
        yield name, inspect.getdoc(thing) or ""
        if inspect.isclass(thing) and issubclass(thing, Dataset | DataLoader):
            for member, value in vars(thing).items():
                if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                    yield f"{name}.{member}", inspect.getdoc(value) or ""


def is_error(kind: object) -> bool:
    """Whether it is one of the package's errors."""
    return inspect.isclass(kind) and issubclass(kind, errors.JasperError)


def words(text: str) -> str:
    """Return the words of a text, whatever stands between them."""
    return " ".join(re.findall(r"\w+", text))


@pytest.mark.parametrize("page", PAGES)
def test_every_public_name_has_its_docstring(reference: Path, page: str) -> None:
    """The first paragraph of each stands below the name."""
    text = (reference / f"{page}.html").read_text()
    parts = re.split(r'<(?:section|div) id="([\w.]+)"', text)
    below = {
        name: words(html.unescape(re.sub("<[^>]*>", "", part)))
        for name, part in zip(parts[1::2], parts[2::2], strict=True)
    }
    told = list(documented(page))
    assert told
    for name, docstring in told:
        first = words(docstring.partition("\n\n")[0])
        assert first, f"{name} has no docstring"
        assert first in below[name], name


def test_index_leads_to_every_page(reference: Path) -> None:
    """The public modules, and no other."""
    pages = {path.relative_to(reference).as_posix() for path in reference.rglob("*.html")}
    assert pages == {f"{page}.html" for page in PAGES} | {"index.html"}
    index = (reference / "index.html").read_text()
    assert [page for page in PAGES if f'href="{page}.html"' not in index] == []
