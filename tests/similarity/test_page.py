"""The page on understanding the data quotes what the commands print on the real folder."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from jasper_mmap.commands.main import command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "jasper_mmap" / "similarity" / "README.md").read_text()
BLOCK = re.compile(r"^```console\n\$ jasper-mmap (.+)\n((?:.*\n)*?)```$", re.MULTILINE)
MINED = ROOT.parent / "shared" / "data" / "debian_small_new_negatives"


@pytest.fixture(scope="module")
def place(real_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the store and the mined negatives of the page."""
    place = tmp_path_factory.mktemp("page")
    shutil.copytree(real_store, place / "my_dataset")
    (place / "mined").symlink_to(MINED)
    return place


@pytest.mark.parametrize(("call", "quoted"), BLOCK.findall(PAGE))
def test_page_quotes_what_is_printed(
    call: str, quoted: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every quoted line, in order; between two parts that follow each other nothing is left out."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(command, shlex.split(call))
    printed = [line.rstrip() for line in done.output.splitlines() if not line.startswith("──")]
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        printed.append(f"Error: {done.exception}")
    for part in re.split(r"^\.\.\.\n", quoted, flags=re.MULTILINE):
        lines = part.splitlines()
        places = [n for n in range(len(printed)) if printed[n : n + len(lines)] == lines]
        assert places, f"not printed in these lines:\n{part}\nbut:\n" + "\n".join(printed)
        printed = printed[places[0] + len(lines) :]


def test_page_answers_every_question_of_its_table() -> None:
    """Each has a part of its own, and its command is quoted there."""
    rows = re.findall(r"^\| \[(.+)\]\(#.+\) \| `(.+)` \|$", PAGE, re.MULTILINE)
    parts = re.split(r"^## (.+)\n", PAGE, flags=re.MULTILINE)[1:]
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    assert [question for question, _ in rows] == list(texts)
    for question, call in rows:
        assert call.removeprefix("jasper-mmap ") in texts[question]
