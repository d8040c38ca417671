"""The page: its numbers are those of the lint, and no text of a store can change what it is."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jasper_mmap.negatives.lint import lint_negatives
from jasper_mmap.report import of_lint, of_rows, of_store
from jasper_mmap.report.numbers.content import Content, content_of, sample_for
from jasper_mmap.report.whole_page import notes, page
from tests.report.reading import Page, Table

ORDER = [
    *("mend", "store", "splits", "similarity", "false", "untrained", "curriculum", "steering"),
    *("clusters", "map", "relevance", "distance", "norms", "generations", "hubs", "worst"),
]
NASTY = "<script>alert('x')</script>\"&amp; $\\frac{1}{2}$ {{ 7 * 7 }}\n\x1b[31m\u202e\x00 ]]>"
SHOWN = "<script>alert('x')</script>\"&amp; $\\frac{1}{2}$ {{ 7 * 7 }}\\n\\x1b[31m\\u202e\\x00 ]]>"


def of(share: dict[str, Any]) -> str:
    """A share as the tables write it."""
    if not share["of"]:
        return "-"
    percent = f"{share['count'] / share['of']:.1%}"
    if percent == "0.0%" and share["count"]:
        percent = "<0.1%"
    if percent == "100.0%" and share["count"] < share["of"]:
        percent = ">99.9%"
    return f"{share['count']:,} ({percent})"


def number(value: float | None, digits: int = 3) -> str:
    """A cosine or loss as the tables write it."""
    return "-" if value is None else format(value, f".{digits}f")


def expected(lint: dict[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the section and rows of each table of the lint, from its JSON alone."""
    store, one = lint["of_store"], lint["of_generation"]
    pairs = store["pairs"]
    yield (
        "splits",
        [
            *([n, f"{k:,}", f"{k / pairs:.1%}"] for n, k in store["splits"].items()),
            ["all", f"{pairs:,}", "-"],
            ["questions in two splits", f"{store['questions_in_two_splits']:,}", "-"],
        ],
    )
    rows = []
    for split, values in one["similarity"].items():
        named = {"right source": values["own"]}
        named |= {f"tier {tier}": q for tier, q in values["tiers"].items()}
        for name, q in named.items():
            cosines = [number(q[p]) for p in ("p5", "p25", "p50", "p75", "p95")]
            rows.append([f"{split}, {name}", f"{q['count']:,}", *cosines])
    yield "similarity", rows
    kinds = {
        "lowest right source": "margin_false",
        "lowest, known ones too": "margin_false_with_known",
        "own right source": "margin_false_own",
    }
    rows = []
    for name, key in kinds.items():
        v = one[key]
        shares = [v["slots"], v["rows"], *v["tiers"].values(), *v["splits"].values()]
        rows.append([name, *map(of, shares)])
    yield "false", rows
    known, weak, evaluation = (one[k] for k in ("known_right", "weak_right", "evaluation_sources"))
    shares = [known["slots"], known["slots_by_number"], known["slots_by_content"], known["rows"]]
    shares += [weak["rows"], weak["margin_false"], weak["lowest_rows"], weak["lowest_margin_false"]]
    last = [of(evaluation["slots"]), f"{evaluation['chance_slots']:.1%}"]
    yield "false", [[cell] for cell in (*map(of, shares), *last)]
    yield (
        "untrained",
        [
            [
                f"{split}, {variant}",
                of(v["nearest"]),
                of(v["nearest_known_aside"]),
                number(v["infonce"]),
                number(v["infonce_known_aside"]),
            ]
            for split, variants in one["untrained"].items()
            for variant, v in variants.items()
        ],
    )
    steering = one["steering"].items()
    yield "steering", [[n, number(v["cosine"], 4), f"{v['rows']:,}"] for n, v in steering]
    hubs = one["hubness"]
    yield (
        "hubs",
        [
            *([str(source), f"{uses:,}"] for source, uses in hubs["most"]),
            ["mean", f"{hubs['mean']:.1f}"],
            ["most frequent 1%, slots", of(hubs["top"])],
            ["never used, sources", of(hubs["never"])],
        ],
    )


def test_every_number_of_the_tables_is_that_of_the_lint(published: Path, read: Page) -> None:
    """The tables of the page, and the JSON of the command lint on the same store."""
    lint = json.loads(json.dumps(lint_negatives(published).to_dict()))
    assert lint["of_generation"]["known_right"]["rows"]["count"] > 0
    left = {name: [*read.sections[name].tables.values()] for name in ORDER}
    for name, rows in expected(lint):
        table = left[name].pop(0)
        if all(len(row) == 1 for row in rows):
            assert [row[1:] for row in table.rows] == rows
        else:
            assert table.rows == rows, name
    sizes = [int(row[1]) for row in read.sections["clusters"].tables["Clusters"].rows]
    assert sum(sizes) == lint["of_store"]["pairs"]


def test_json_holds_the_lint_and_what_the_page_shows(content: Content, published: Path) -> None:
    """The same lint, and as many rows."""
    value = json.loads(json.dumps(content.to_dict(), allow_nan=False))
    assert value["lint"] == json.loads(json.dumps(lint_negatives(published).to_dict()))
    assert value["worst"][0]["above"] == content.worst[0].above
    assert [one["generation"] for one in value["generations"]] == [1, 2, 3]


def test_pictures_stand_in_order_and_can_be_read_without_seeing(read: Page, html: str) -> None:
    """Each has a title, a sentence and tables, and its SVG names both; no id occurs twice."""
    assert [*read.sections] == ORDER
    assert len(read.ids) == len(set(read.ids))
    for name in ORDER[2:]:
        section = read.sections[name]
        (svg,) = section.svgs
        assert svg["role"] == "img"
        assert svg["aria-labelledby"] == f"{name}-title"
        assert svg["aria-describedby"] == f"{name}-see"
        assert section.texts[f"{name}-title"]
        assert section.texts[f"{name}-see"].endswith(".")
        assert all(table.rows for table in section.tables.values())
    assert "nan" not in read.text
    assert "None" not in read.text
    # No colour but the page's own, which has a light and a dark one.
    assert "#0" not in html.partition("</style>")[2]


def test_page_needs_nothing_else(read: Page, html: str) -> None:
    """No script, no link to elsewhere, no font or picture to fetch; equal input, equal page."""
    assert {tag for tag, _ in read.tags} & {"script", "img", "iframe", "a", "form"} == set()
    for _, given in read.tags:
        assert not [key for key in given if key.startswith("on")]
        for key in ("href", "src", "xlink:href"):
            assert (given.get(key) or "#").startswith(("#", "data:,")), given
    assert "@import" not in html
    assert html.count("url(") == html.count("url(#")


def test_equal_numbers_give_equal_pictures(content: Content, html: str) -> None:
    """To the byte: the ids in them are deterministic, and there is no time in them."""
    for draw in (of_store.curriculum, of_store.cluster_map, of_rows.generations):
        svg = draw(content).svg
        assert svg is not None
        assert svg in html


def test_generations_tell_who_changed_what_and_why(read: Page) -> None:
    """Churn and lint as the history has them."""
    (table,) = read.sections["generations"].tables.values()
    assert [row[0] for row in table.rows] == ["1", "2", "3 (current)"]
    assert [row[3] for row in table.rows] == ["-", "note 2", "note 3"]
    assert [row[4] for row in table.rows] == ["-", "100 (33.3%)", "150 (50.0%)"]
    assert all("@" in row[2] for row in table.rows)
    assert table.rows[0][5] == "-"  # nobody linted it
    assert "were not linted" in read.sections["generations"].texts["generations-see"]


def test_nothing_in_a_store_gets_out_of_its_text(
    published: Path, tmp_path: Path, html: str
) -> None:
    """Notes, keys and values of the configuration, texts and the path, as they are written."""
    store = tmp_path / NASTY.replace("/", ":").replace("\x00", "")
    shutil.copytree(published, store)
    pointer = json.loads((store / "negatives/CURRENT.json").read_text())
    pointer["note"] = pointer["history"][-1]["note"] = pointer["by"] = NASTY
    pointer["history"][-1]["by"] = pointer["history"][0]["when"] = NASTY
    (store / "negatives/CURRENT.json").write_text(json.dumps(pointer))
    config = json.loads((store / "config.json").read_text())
    config |= {NASTY: NASTY, "<b>": {NASTY: [NASTY]}, "$x$": "\ud800"}
    (store / "config.json").write_text(json.dumps(config))
    sizes = content_of(published).lint.of_store
    metadata = {"n_questions": sizes.questions.count, "n_sources": sizes.sources.count}
    texts = {
        "metadata": {**metadata, "n_pairs": sizes.pairs},
        "questions": [{"id": n, "text": NASTY} for n in range(sizes.questions.count)],
        "sources": [{"id": n, "text": NASTY * 20} for n in range(sizes.sources.count)],
    }
    (store / "inspection.json").write_text(json.dumps(texts))

    content = content_of(store)
    text = page(content)
    read = Page(text)
    assert text.replace("\n", "").isprintable()
    assert text.encode().decode() == text
    # Elements and attributes are those of a page without such texts, but for more cells.
    plain = {(tag, *given) for tag, given in Page(html).tags}
    note = {("p", "class")}  # the configuration was edited
    assert {(tag, *given) for tag, given in read.tags} == plain | note
    (generations,) = read.sections["generations"].tables.values()
    assert generations.rows[-1][2:4] == [SHOWN, SHOWN]
    keys = {row[0]: row[1] for row in read.sections["store"].tables["config.json"].rows}
    assert keys[SHOWN] == SHOWN
    assert keys["$x$"] == "\\ud800"
    (worst,) = read.sections["worst"].tables.values()
    assert worst.rows[0][8] == SHOWN
    assert len(worst.rows[0][9]) < 400
    json.dumps(content.to_dict())
    # What is in a picture is a number, or a word of the package.
    for svg in text.split("<svg")[1:]:
        drawn = svg.partition("</svg>")[0]
        assert "$" not in drawn
        assert "script" not in drawn
    for command in read.commands:
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True
        ).stdout.decode("utf-8", "surrogateescape")
        assert words.split("\0")[0] == "jasper-mmap"
        assert words.split("\0")[2] == str(store)


def test_smallest_store_has_a_page(tiny: Callable[[], Path]) -> None:
    """10 pairs, one cluster, no val, one epoch, no lint yet, one generation."""
    content = content_of(tiny())
    read = Page(page(content))
    assert [*read.sections] == ORDER
    assert "val is empty." in read.text
    assert "One generation so far" in read.text
    assert [row[0] for row in _only(read, "curriculum").rows] == ["0", "1", "2"]
    assert [row[1] for row in _only(read, "curriculum").rows] == ["100.0%", "0.0%", "0.0%"]
    assert _only(read, "clusters").rows[0][:2] == ["0", "10"]
    assert not [row for row in _only(read, "similarity").rows if row[0].startswith("val")]
    assert "nan" not in read.text
    assert all(len(read.sections[name].svgs) == (name != "generations") for name in ORDER[2:])


def _only(read: Page, name: str) -> Table:
    (table,) = read.sections[name].tables.values()
    return table


def test_sample_is_said_and_counts_are_those_of_it(published: Path) -> None:
    """A sample is asked for, or taken of a store of millions of pairs."""
    content = content_of(published, sample=50, seed=3)
    assert "comes from 50 of 300 pairs, drawn by seed 3" in notes(content)[0]
    assert of_lint.similarity(content.lint).tables[0].rows[0][1] == "50"
    lint = lint_negatives(published, sample=50, seed=3)
    assert content.lint.of_generation == lint.of_generation
    assert sample_for(500_000) is None
    assert sample_for(3_000_000) == 200_000


def test_real_folder_is_judged(real_store: Path, tmp_path: Path) -> None:
    """Known right sources first, then the margin, then doubtful right sources."""
    content = content_of(shutil.copytree(real_store, tmp_path / "real"))
    assert [one.what.split()[0] for one in content.mend] == ["1,545", "2,979", "594"]
