"""Answers on a pseudo-terminal of 80 and 120 columns: what a reader sees there, read back."""

import contextlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import converters.__main__
import jasper_mmap.__main__
from jasper_mmap import publish_negatives
from jasper_mmap.bench.measure import Cell
from jasper_mmap.bench.report import table_of
from jasper_mmap.commands.main import command
from jasper_mmap.console import Column, echo, echo_table, verdict
from jasper_mmap.printable import size
from tests.oracle import Oracle
from tests.publishing import numbered, saved
from tests.terminal import ESCAPES, Shown, shown, terminal

COLUMNS = (80, 120)
HOSTILE = "\x1b]0;owned\x07\nforged <script>alert(1)</script> $HOME $(reboot) \r\x9b31m\u202e"
NOTE = f"mined at step 40,000 {HOSTILE} 日本語 {'word ' * 20}"

Jasper = Callable[..., Shown]


@pytest.fixture(params=COLUMNS)
def columns(request: pytest.FixtureRequest) -> int:
    """Return the width of a terminal."""
    width: int = request.param
    return width


def jasper(*arguments: object, columns: int = 80, **environment: str) -> Shown:
    return shown(
        jasper_mmap.__main__.main, "jasper-mmap", *arguments, columns=columns, **environment
    )


def answer_of(*arguments: object) -> Any:
    """Return what the command answers to a program."""
    return json.loads(CliRunner().invoke(command, [*map(str, arguments), "--json"]).output)


def printed(call: Callable[[], object], columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines that a call prints on a terminal."""
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with terminal(columns) as (stream, written), contextlib.redirect_stdout(stream):
        call()
    return ESCAPES.sub("", "".join(written)).splitlines()


def assert_fits(lines: list[str], columns: int) -> None:
    """Require that a line is too long only if it is one word, and that nothing is cut."""
    for line in lines:
        assert len(line) <= columns or re.fullmatch(r" *([a-zA-Z ()]+: )?\S+", line), line
        assert "…" not in line


def blocks_of(lines: list[str]) -> list[dict[str, str]]:
    """Return the rows of a table as title -> cell, also those that are shown below a row.

    Columns lie where their titles do: numbers end there, texts begin there.
    """
    titles = [(m.group(), m.start(), m.end()) for m in re.finditer(r"\S+(?: \S+)*", lines[0])]
    rows: list[dict[str, str]] = []
    for line in lines[2:]:
        if below := re.match(r" {4}(\S[^:]*): (.*)", line):
            rows[-1][below[1]] = below[2]
        elif re.match(r" {6}\S", line):
            last = [*rows[-1]][-1]
            rows[-1][last] = f"{rows[-1][last]} {line.strip()}".strip()
        else:
            cells = [(m.group(), m.start(), m.end()) for m in re.finditer(r"\S+(?: \S+)*", line)]
            row = {
                title: next((c for c, b, e in cells if b == begin or e == end), "")
                for title, begin, end in titles
            }
            if row[titles[0][0]]:
                rows.append(row)
            else:  # cells of the row above continue
                rows[-1] |= {k: f"{rows[-1][k]} {v}".strip() for k, v in row.items() if v}
    return rows


def test_generations_read_back_are_those_of_the_json(
    store: Path, oracle: Oracle, tmp_path: Path, columns: int
) -> None:
    """Each fact of each generation, in the table or below its row."""
    publish_negatives(store, *saved(numbered(oracle, 2), tmp_path / "mined"), note="short note")
    publish_negatives(store, *numbered(oracle, 3), keep=1, grace_s=0, note=NOTE)
    seen = jasper("generations", store, columns=columns)
    assert seen.status == 0
    *table, last = seen.lines
    assert_fits(seen.lines, columns)
    answer = answer_of("generations", store)
    assert [entry["on_disk"] for entry in answer] == [False, False, True]
    rows = blocks_of(table)
    assert len(rows) == len(answer)
    for row, entry in zip(rows, answer, strict=True):
        state = "current" if entry["in_force"] else "removed"
        changed = entry["changed_rows"]
        assert row["generation"] == str(entry["generation"])
        assert row["published (UTC)"] == entry["when"][:19].replace("T", " ")
        assert (row["state"], row["size"]) == (state, size(entry["bytes"]))
        kept = ("-", "-") if changed is None else (f"{entry['rows'] - changed}", f"{changed}")
        assert (row["rows kept"], row["rows replaced"]) == kept
        assert row["who"] == entry["who"]
        names = " ".join(Path(file).name for file in entry["files"]) or "tensors"
        assert " ".join(re.findall(r"[a-z_]+\.pt|tensors", row["from"])) == names
    assert rows[1]["note"] == "short note"
    assert rows[2]["note"].startswith(r"mined at step 40,000 \x1b]0;owned\x07\nforged <script>")
    assert "$HOME $(reboot)" in rows[2]["note"]
    assert last == f"3 generations, 2 removed; {size(answer[2]['bytes'])} on disk; current is 3"
    for raw in ("\x1b]", "\x07", "\x9b", "\u202e"):
        assert raw not in seen.raw


def cell_of(draw: random.Random) -> str:
    """Return some words."""
    return " ".join("w" * draw.randint(1, 9) for _ in range(draw.randint(1, 6)))


def test_tables_keep_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any width: each word of each cell whole, and dropped columns named."""
    draw = random.Random(5)
    for columns in (30, 50, 80, 120):
        for _ in range(6):
            header = [
                Column(f"title{n}", wrap=draw.random() < 0.5, rank=draw.randrange(3))
                for n in range(draw.randint(1, 7))
            ]
            rows = [[cell_of(draw) for _ in header] for _ in range(3)]
            lines = printed(lambda h=header, r=rows: echo_table(h, r), columns, monkeypatch)  # type: ignore[misc]
            assert_fits(lines, columns)
            words = Counter(re.findall(r"\bw+\b", " ".join(lines)))
            assert words == Counter(word for row in rows for cell in row for word in cell.split())
            for column in header:
                assert column.title in "\n".join(lines)


def test_columns_that_may_be_left_out_go_first_and_are_named(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark's: at 80 columns a time and its memory, at 120 none."""
    cells = [
        Cell(
            contender="ours",
            workers=workers,
            batch_size=512,
            windows=(123456.0, 134567.0, 145678.0),
            floor_windows=(234567.0,),
            open_s=1.5,
            first_batch_s=0.25,
            memory=(1 << 30, 2 << 30, 3 << 30),  # type: ignore[arg-type]
        )
        for workers in (0, 2)
    ]
    table = table_of(cells)
    lines = printed(
        lambda: echo_table(table.header, table.rows, table.right, drop=table.drop),
        columns,
        monkeypatch,
    )
    assert_fits(lines, columns)
    names = ["first ms", "parent", "workers PSS", "USS"] if columns == 80 else []
    assert lines[4:] == ([f"(not shown in 80 columns: {', '.join(names)})"] if names else [])
    numbers = [n for n, title in enumerate(table.header) if title not in names]
    for row, line in zip(table.rows, lines[2:4], strict=True):
        assert re.split(r" {2,}", line.strip()) == [row[n] for n in numbers if row[n]]


def test_lines_break_between_words_and_paths_stay_whole(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also around what is coloured, and of characters that take two columns."""
    path = "/data/" + "very_long_folder_name/" * 8 + "x"
    wide = "日本語 " * 40
    lines = printed(
        lambda: echo(f"{path}: ", verdict("3 problems", "bad"), f"; {'word ' * 40}{wide}"),
        columns,
        monkeypatch,
    )
    assert f"{path}:" in lines
    assert " ".join(" ".join(lines).split()) == " ".join(
        f"{path}: 3 problems; {'word ' * 40}{wide}".split()
    )
    for line in lines:
        width = len(line) + sum(ord(c) > 0x2E80 for c in line)
        assert width <= columns or " " not in line.strip()


def test_verdicts_are_coloured_where_the_user_wants_it(store: Path) -> None:
    """Green, yellow and red; never in a pipe, never with NO_COLOR."""
    green, yellow, red = "\x1b[32m", "\x1b[33m", "\x1b[31m"
    assert f"{green}sound\x1b[0m" in jasper("verify", store).raw
    assert f"{green}current\x1b[0m" in jasper("generations", store).raw
    assert f"{red}Error:\x1b[0m" in jasper("verify", store / "x").raw
    environments: tuple[dict[str, Any], ...] = {"NO_COLOR": "1"}, {"TERM": "dumb"}
    for environment in environments:
        seen = jasper("generations", store, **environment)
        assert "\x1b" not in seen.raw
        assert "current" in seen.raw
    assert yellow in printed_raw(lambda: echo(verdict("so so", "doubtful")))
    assert "\x1b" not in CliRunner().invoke(command, ["generations", str(store)]).output


def printed_raw(call: Callable[[], object]) -> str:
    with pytest.MonkeyPatch.context() as patch, terminal(80) as (stream, written):
        patch.setenv("TERM", "xterm")
        patch.delenv("NO_COLOR", raising=False)
        with contextlib.redirect_stdout(stream):
            call()
    return "".join(written)


def test_problems_and_errors_fit(store: Path, columns: int) -> None:
    """Those of verify in its table, and the line on stderr."""
    (store / "config.json").write_text("{}")
    seen = jasper("verify", store, columns=columns)
    assert seen.status == 1
    assert_fits(seen.lines, columns)
    plain = CliRunner().invoke(command, ["verify", str(store)])
    words = Counter(plain.output.split()) - Counter(" ".join(seen.lines).split())
    # The title of the column, where it is a label; the rule; the seconds.
    assert not {w for w in words if w != "problem" and "─" not in w and not w[0].isdigit()}


def test_inspect_and_convert_fit(
    demo_store: Path, demo_folder: Path, tmp_path: Path, columns: int
) -> None:
    """With the progress of the conversion, and one line that sums it up at its end."""
    assert_fits(jasper("inspect", demo_store, columns=columns).lines, columns)
    main = converters.__main__.main
    seen = shown(main, "jasper-convert", demo_folder, tmp_path / "s", columns=columns)
    assert seen.status == 0
    after = ESCAPES.sub("", seen.raw.rpartition("\x1b[2K")[2]).split()
    assert " ".join(after).endswith("0 unchanged; generation 1 of negatives")
    bars = re.findall(r"^\S.*?━.* of .*B .*$", ESCAPES.sub("", seen.raw.replace("\r", "\n")), re.M)
    assert bars
    assert len({bar.index("━") for bar in bars}) == 1
    assert all(len(bar) <= columns for bar in bars)


def test_commands_are_listed_in_groups() -> None:
    """Each once, under its heading."""
    text = CliRunner().invoke(command, ["--help"]).output
    sections = re.findall(r"^(\w+):\n((?:  \S.*\n)+)", text, re.MULTILINE)
    listed = {heading: re.findall(r"^  (\w+)", body, re.M) for heading, body in sections}
    del listed["Options"]
    assert [*listed] == ["Data", "Negatives", "Machine"]
    assert {"inspect", "verify"} <= {*listed["Data"]}
    assert {"publish", "rollback", "generations", "prune", "watch"} <= {*listed["Negatives"]}
    assert {"bench", "doctor"} <= {*listed["Machine"]}
    assert sorted(name for names in listed.values() for name in names) == sorted(command.commands)


@pytest.mark.parametrize("name", ["generations", "inspect", "verify"])
def test_full_disk_is_an_error_of_one_line(
    name: str,
    demo_store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no traceback."""
    monkeypatch.setattr("sys.argv", ["jasper-mmap", name, str(demo_store)])
    with (
        contextlib.suppress(OSError),  # of closing the file
        Path("/dev/full").open("w") as full,
        contextlib.redirect_stdout(full),
        pytest.raises(SystemExit, match="1"),
    ):
        jasper_mmap.__main__.main()
    assert re.fullmatch(r"Error: .*No space left on device.*\n", capsys.readouterr().err)
