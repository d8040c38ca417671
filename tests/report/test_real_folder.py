"""The page of the real folder: its numbers, and the marks of its pictures, are the JSON's."""

import json
import re
from copy import deepcopy
from typing import Any

import pytest

from jasper_mmap.negatives.lint import lint_negatives
from jasper_mmap.printable import size
from jasper_mmap.report.numbers.content import Content
from tests.report.drawn import Drawing, drawing
from tests.report.pools import LITERAL, QUANTILES, mend_pool, opening_pool, row_pool, section_pool
from tests.report.reading import Page, Section
from tests.report.shown import wrong_numbers
from tests.report.test_page import ORDER

pytestmark = pytest.mark.xdist_group("real_report")  # whose numbers are gathered once
PICTURES = ORDER[2:]


@pytest.fixture(scope="module")
def read(real_html: str) -> Page:
    """Return the page, read back."""
    return Page(real_html)


@pytest.fixture(scope="module")
def data(real: Content) -> dict[str, Any]:
    """Return what `--json` prints, of which the lint is what `jasper-mmap lint --json` prints."""
    value: dict[str, Any] = json.loads(json.dumps(real.to_dict()))
    assert value["lint"] == json.loads(json.dumps(lint_negatives(real.lint.store).to_dict()))
    return value


def drawings(html: str) -> dict[str, Drawing]:
    """Return the pictures of a page by section."""
    svgs = re.findall(r"<svg .*?</svg>", html, re.DOTALL)
    return dict(zip(PICTURES, map(drawing, svgs), strict=True))


def wrong_in_section(name: str, section: Section, data: dict[str, Any]) -> list[str]:
    """Return the numbers of a section's sentence and tables that the JSON does not hold."""
    literal, pool = LITERAL.get(name, []), section_pool(name, data)
    wrong = wrong_numbers(section.texts[f"{name}-see"], pool, literal)
    for title, table in section.tables.items():
        for row in table.rows:
            if name == "generations":
                wrong += wrong_in_generation(row, data)
                continue
            words = [*literal, *re.findall(r"tier \d", row[0])]
            wrong += wrong_numbers(" | ".join(row), row_pool(name, title, row, data), words)
    return wrong


def wrong_in_generation(row: list[str], data: dict[str, Any]) -> list[str]:
    """Return the cells of a generation that are not those of the history."""
    (one,) = (g for g in data["generations"] if str(g["generation"]) == row[0].split()[0])
    texts = [one["when"][: len("2026-12-31T23:59:59")], one["by"], one["note"] or "-"]
    wrong = [cell for cell, text in zip(row[1:4], texts, strict=True) if cell != text]
    for cell, key in zip(row[4:7], ("changed", "margin_false", "known_right"), strict=True):
        wrong += wrong_numbers(cell, one[key]) if one[key] else [cell] * (cell != "-")
    return wrong


def test_every_number_of_the_page_is_in_the_json(read: Page, data: dict[str, Any]) -> None:
    """Sentences and tables, each section from its own part."""
    wrong = {
        name: numbers
        for name in PICTURES
        if (numbers := wrong_in_section(name, read.sections[name], data))
    }
    assert wrong == {}
    header = read.sections["map"].tables["Sources by square; columns are x"].header
    (low, high), columns = data["clusters"]["x"], len(header) - 1
    places = [low + (n + 0.5) * (high - low) / columns for n in range(columns)]
    assert wrong_numbers(" ".join(header), places) == []


def test_what_the_page_says_first_is_in_the_json(
    real_html: str, read: Page, data: dict[str, Any]
) -> None:
    """The opening, what to mend, and the tables of the store."""
    (opening,) = re.findall(r"</h1>\n<p>(.*?)</p>", real_html)
    assert wrong_numbers(opening, opening_pool(data)) == []
    items = re.findall(r"<li><strong>(.*?)</strong> (.*?)\n<pre>", real_html)
    assert len(items) == len(data["mend"]) == 3
    for item in items:
        assert wrong_numbers(" ".join(item), mend_pool(data)) == []
    about, artifacts, config = read.sections["store"].tables.values()
    summary, generation = data["summary"], data["summary"]["generation"]
    assert [row[1] for row in about.rows] == [
        *(summary["store"], summary["store_id"], str(summary["format_version"])),
        *(summary["created"], summary["converter"], size(summary["bytes"])),
        *(str(generation["number"]), generation["when"], generation["by"], generation["note"]),
    ]
    tables = {t["name"]: t for t in (*summary["artifacts"], *generation["tables"])}
    assert [row[0] for row in artifacts.rows] == [*tables]
    for name, dtype, *numbers in artifacts.rows:
        assert dtype == tables[name]["dtype"]
        assert wrong_numbers(" | ".join(numbers), tables[name]) == []
    values = data["config"]
    assert {
        key: text if isinstance(values[key], str) else json.loads(text) for key, text in config.rows
    } == values


def test_every_label_of_a_picture_is_in_the_json(real_html: str, data: dict[str, Any]) -> None:
    """At bars, and the names of rows; what is on a scale is no measurement."""
    for name, one in drawings(real_html).items():
        for label in one.words:
            assert wrong_numbers(label, section_pool(name, data)) == [], (name, label)


def test_marks_are_where_the_numbers_are(real_html: str, data: dict[str, Any]) -> None:
    """Boxes, thin lines, medians and the margin of the similarities; the bars of four pictures."""
    drawn, one = drawings(real_html), data["lint"]["of_generation"]
    (axes,) = drawn["similarity"].axes
    values = one["similarity"]["all"]
    rows = [values["own"], *values["tiers"].values()]
    colours = ["green", *["blue"] * 4]
    low, first, median, third, high = ([row[q] for row in rows] for q in QUANTILES)
    assert [box[0] for box in axes.boxes] == [line[0] for line in axes.lines[:5]] == colours
    assert [box[1] for box in axes.boxes] == pytest.approx(first, abs=2e-5)
    assert [box[2] for box in axes.boxes] == pytest.approx(third, abs=2e-5)
    assert [line[1] for line in axes.lines[:5]] == pytest.approx(low, abs=2e-5)
    assert [line[2] for line in axes.lines[:5]] == pytest.approx(high, abs=2e-5)
    assert [x for _, x in axes.points] == pytest.approx(median, abs=2e-5)
    edge = median[0] - data["lint"]["thresholds"]["margin"] * abs(median[0])
    (margin,) = [line for line in axes.lines if line[0] == "bad"]
    assert margin[1:] == pytest.approx((edge, edge), abs=2e-5)

    false = one["margin_false"]
    bars = {
        "splits": [data["lint"]["of_store"]["splits"].values()],
        "false": [
            [share["count"] / share["of"] for share in false[key].values()]
            for key in ("tiers", "splits")
        ],
        "steering": [[d["cosine"] for d in one["steering"].values()]],
        "hubs": [[uses for _, uses in one["hubness"]["most"]]],
    }
    for name, every in bars.items():
        for read, lengths in zip(drawn[name].axes, map(list, every), strict=True):
            widest = max(map(abs, lengths))
            assert {round(box[1] / widest, 5) for box in read.boxes} == {0}
            assert [box[2] for box in read.boxes] == pytest.approx(lengths, abs=1e-5 * widest)


def test_a_wrong_number_is_seen(read: Page, data: dict[str, Any]) -> None:
    """One planted in the first row of each table, and in each sentence."""
    for name in PICTURES:
        section = read.sections[name]
        key = f"{name}-see"
        for title, table in section.tables.items():
            row = [*table.rows[0]]
            place = next(n for n in range(len(row) - 1, -1, -1) if re.search(r"\d", row[n]))
            planted = re.sub(r"\d(?=\D*$)", lambda digit: f"{digit[0]}7", row[place])
            spoilt = deepcopy(section)
            spoilt.tables[title].rows[0][place] = planted
            assert wrong_in_section(name, spoilt, data), (name, title, row, planted)
        pool = section_pool(name, data)
        if re.search(r"\d", text := section.texts[key]) and pool:
            spoilt = deepcopy(section)
            spoilt.texts[key] = text + " It was 7,777 (77.7%)."
            assert len(wrong_in_section(name, spoilt, data)) == 3
