"""Run `python -m tools.docs.pictures STORE [DIR]` to draw the pictures of the documents.

Two pictures of the report of a store are written as SVG files: the documents show those of a real
folder. Needs the extra `report`.
"""

from collections.abc import Iterator
from pathlib import Path

import click

from jasper_mmap.console import PATH, Command, debug_option, run
from jasper_mmap.negatives.lint import lint_negatives
from jasper_mmap.report import of_lint
from jasper_mmap.report.svg import check_libraries
from jasper_mmap.report.svg_file import svg_file
from jasper_mmap.similarity.reports.report import LintReport

FOLDER = Path("jasper_mmap/report")


def drawn(lint: LintReport) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file."""
    for picture in (of_lint.similarity(lint), of_lint.false_negatives(lint)):
        yield f"{picture.id}.svg", svg_file(picture)


@click.command(cls=Command)
@click.argument("store", metavar="STORE", type=PATH)
@click.argument("folder", metavar="[DIR]", type=PATH, default=FOLDER)
@debug_option
def command(store: Path, folder: Path) -> None:
    """Write the pictures that the documents show into DIR (jasper_mmap/report by default)."""
    check_libraries()
    for name, text in drawn(lint_negatives(store)):
        (folder / name).write_text(text)
        click.echo(folder / name)


if __name__ == "__main__":
    run(command)
