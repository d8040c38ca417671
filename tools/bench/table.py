"""Run `python -m tools.bench.table FILE` to print the README's table of a benchmark's JSON.

Samples per second, and in brackets the ratio to the floor of the same run.
"""

import json
from pathlib import Path
from typing import Any

import click

from jasper_mmap.bench.measure import Windows, ratio_text
from jasper_mmap.bench.report import windows_text
from jasper_mmap.console import PATH, Command, debug_option, echo, run


def markdown(answer: dict[str, Any]) -> str:
    """A table with a row per contender and number of workers, a column per batch size, the fastest
    in bold."""
    cells = answer["cells"]
    sizes = sorted({cell["batch_size"] for cell in cells})
    rates = {(c["workers"], c["contender"], c["batch_size"]): c for c in cells}
    rows = dict.fromkeys((c["workers"], c["contender"]) for c in cells)
    lines = [
        f"| workers | loader |{''.join(f' B={size} |' for size in sizes)}",
        f"|---:|---|{'---:|' * len(sizes)}",
    ]
    for workers, contender in sorted(rows, key=lambda row: row[0]):
        figures = []
        for size in sizes:
            cell = rates.get((workers, contender, size))
            figures.append("" if cell is None else _figure(cell, cells))
        lines.append(f"| {workers} | {contender} |{''.join(f' {figure} |' for figure in figures)}")
    return "\n".join(lines)


def _figure(cell: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    figure = f"{cell['samples_per_s']:,.0f} ({ratio_text(cell['ratio'])})"
    rivals = [
        c["samples_per_s"]
        for c in cells
        if (c["workers"], c["batch_size"]) == (cell["workers"], cell["batch_size"])
        and not c["contender"].startswith("floor")
    ]
    fastest = cell["samples_per_s"] == max(rivals, default=0)
    return f"**{figure}**" if fastest else figure


@click.command(cls=Command)
@click.argument("file", type=PATH)
@debug_option
def command(file: Path) -> None:
    """Print the README's table of a benchmark's JSON.

    The machine and the method follow below it.
    """
    answer = json.loads(file.read_text())
    machine, windows = answer["machine"], Windows(**answer["windows"])
    click.echo(markdown(answer))
    echo("")
    echo(
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']};"
        f" {windows_text(windows)};"
        f" {'quiet' if answer['quiet'] else 'not quiet, so compare ratios'}."
    )


if __name__ == "__main__":
    run(command)
