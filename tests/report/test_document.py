"""The document of the report: its numbers are the page's, its pictures are made by its command."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from jasper_mmap.report.numbers.content import Content
from tests.report.drawn import drawing
from tests.report.pools import LITERAL, mend_pool, opening_pool, row_pool, section_pool
from tests.report.reading import Page
from tests.report.shown import wrong_numbers
from tests.report.test_page import ORDER
from tools.docs.pictures import command

pytestmark = pytest.mark.xdist_group("real_report")  # whose numbers are gathered once
FOLDER = Path(__file__).parents[2] / "jasper_mmap" / "report"
TEXT = (FOLDER / "README.md").read_text()
SVG = re.compile(r"!\[[^\]]+\]\((\w+)\.svg\)")


def parts(level: str) -> dict[str, str]:
    """Return the text below each heading of a level."""
    pieces = re.split(rf"^{level} (.+)\n", TEXT, flags=re.MULTILINE)[1:]
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def test_every_picture_is_described_with_its_numbers(real: Content, real_html: str) -> None:
    """In the page's order, under its titles; each number from the part of the JSON it is about."""
    data = json.loads(json.dumps(real.to_dict()))
    read = Page(real_html)
    described = parts("###")
    names = ORDER[2:]
    assert [*described] == [read.sections[name].texts[f"{name}-title"] for name in names]
    for name, text in zip(names, described.values(), strict=True):
        pool = [section_pool(name, data)]
        if name == "generations":
            pool.append(data["generations"])
        else:
            tables = read.sections[name].tables.items()
            pool += [row_pool(name, t, row, data) for t, table in tables for row in table.rows]
        words = [
            *LITERAL.get(name, ()),
            "near 100%",
            *re.findall(r"[Tt]iers? \d(?:, \d and \d)?", text),
        ]
        assert wrong_numbers(text, pool, words) == [], name
    first = parts("##")["What the page says first"]
    assert wrong_numbers(first, [opening_pool(data), mend_pool(data)]) == []
    assert wrong_numbers("The median is 0.494.", section_pool("similarity", data)) == ["0.494"]


def test_pictures_are_made_by_the_command(real: Content, real_html: str, tmp_path: Path) -> None:
    """The kept files have the words and marks of what is drawn; the rest is matplotlib's."""
    shown = SVG.findall(TEXT)
    assert [f"{name}.svg" for name in shown] == ["similarity.svg", "false.svg"]
    assert "python -m tools.docs.pictures my_dataset jasper_mmap/report\n" in TEXT
    done = CliRunner().invoke(command, [real.lint.store, str(tmp_path)])
    assert (done.exit_code, done.exception) == (0, None)
    sections = Page(real_html).sections
    for name in shown:
        made, kept = ((at / f"{name}.svg").read_text() for at in (tmp_path, FOLDER))
        assert len(kept.encode()) < 60_000
        one, other = drawing(made), drawing(kept)
        assert one.words == other.words
        for drawn, known in zip(one.axes, other.axes, strict=True):
            for kind in ("boxes", "lines", "points"):
                marks, before = getattr(drawn, kind), getattr(known, kind)
                assert [mark[0] for mark in marks] == [mark[0] for mark in before]
                for mark, old in zip(marks, before, strict=True):
                    assert mark[1:] == pytest.approx(old[1:], abs=1e-4)
        assert f">{sections[name].texts[f'{name}-title']}</title>" in kept
        assert "prefers-color-scheme: dark" in kept
