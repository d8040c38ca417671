"""What all commands have in common: sizes, lists of integers, and how far a long one is."""

import contextlib
import io
import re

import click
import pytest
from click.testing import CliRunner

from jasper_mmap.console import integers, progress, shown_progress
from jasper_mmap.printable import size
from tests.terminal import ESCAPES


class Terminal(io.StringIO):
    """What takes itself for one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_sizes_are_told_in_binary_units(n_bytes: int, text: str) -> None:
    """The largest unit below the size, GiB at most."""
    assert size(n_bytes) == text


@click.command()
@click.option("--workers", callback=integers(0))
def count(workers: tuple[int, ...] | None) -> None:
    """Print what was understood."""
    click.echo(repr(workers))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 0, "None"),
        (["--workers", "0,2"], 0, "(0, 2)"),
        (["--workers", "4"], 0, "(4,)"),
        (["--workers", "two"], 2, "expected comma-separated integers, e.g. 0,2, not 'two'"),
        (["--workers", "1,"], 2, "expected comma-separated integers"),
        (["--workers", "2,-1"], 2, "integers must be >= 0, not -1"),
    ],
)
def test_lists_of_integers_are_separated_by_commas(
    arguments: list[str], status: int, words: str
) -> None:
    """Whatever else is given is wrong usage."""
    ran = CliRunner().invoke(count, arguments)
    assert (ran.exit_code, words in ran.output) == (status, True), ran.output


def test_a_short_command_shows_no_progress_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor at its end; with `each` every name gets one line."""
    for each in (False, True):
        with shown_progress(each=each) as show:
            for done, name in enumerate(("one", "one", "two", "two"), start=1):
                show(name, done << 20, 4 << 20)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" MiB")[0] for line in lines] == [" 25% of 4.0", " 75% of 4.0"]
    assert [line.rpartition("/s: ")[2] for line in lines] == ["one", "two"]


def test_a_long_command_shows_its_progress_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line each time that the interval is over, in characters that are harmless."""
    monkeypatch.setattr(progress, "_LINE_INTERVAL_S", 0.0)
    with shown_progress() as show:
        show("a\x1b[31m", 0, 0)
        show("b", 1, 2)
    first, second = capsys.readouterr().err.splitlines()
    assert (first[:4], second[:4]) == ("  0%", " 50%")
    assert first.endswith(r"/s: a\x1b[31m")


def test_progress_may_count_other_things_than_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal and in a log."""
    monkeypatch.setattr(progress, "_LINE_INTERVAL_S", 0.0)
    with shown_progress(unit="windows") as show:
        show("ours, 2 workers", 3, 12)
    assert capsys.readouterr().err == " 25%,  3 of 12 windows: ours, 2 workers\n"
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.redirect_stderr(Terminal()) as terminal, shown_progress(unit="windows") as show:
        show("ours, 2 workers", 3, 12)
    assert " 25%  3 of 12 windows " in ESCAPES.sub("", terminal.getvalue())


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, with how far it is and of what, steady at any width, and gone at the end."""
    monkeypatch.setenv("TERM", "xterm")
    names = ("[b]_embs", "steering_keyword_weighted", "negatives/000001.safetensors")
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        with contextlib.redirect_stderr(Terminal()) as terminal, shown_progress() as show:
            for done, name in enumerate(names, start=1):
                show(name, done << 27, 12 << 27)
        shown = ESCAPES.sub("", terminal.getvalue())
        assert terminal.getvalue().endswith("\x1b[2K")
        lines = [line for line in re.split(r"[\r\n]+", shown) if "GiB" in line]
        assert all(len(line) <= columns for line in lines), lines
        last = lines[-1]
        assert last.startswith("negatives/000001          ━")
        assert " 25% 0.4 of 1.5 GiB " in last
