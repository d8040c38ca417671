"""The matrix as a table, plain and in Markdown, with versions.

Run `python -m tools.frameworks.report FILE` to print the Markdown of a run's JSON.
"""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from jasper_mmap.console import PATH, Command, debug_option, echo, echo_table, run
from tools.frameworks.verdict import Verdict
from tools.frameworks.ways import DISTRIBUTED, WAYS, WORLDS

PACKAGES = ("jasper-mmap", "torch", "lightning", "accelerate", "transformers", "ray", "torchdata")
HEADER = (
    *("way", "ranks", "distributed", "answer", "once", "repeated", "missed", "epochs", "order"),
    *("device", "resume", "new from", "speed"),
)
LONGEST, SHORT = 60, 8
"""Of a text in the Markdown and in the plain table, in characters."""


def versions() -> dict[str, str]:
    """Return the version of each package; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def sentence(found: dict[str, str]) -> str:
    """Return versions as a line of text."""
    return ", ".join(f"{package} {number}" for package, number in found.items())


def print_plain(verdicts: Sequence[Verdict]) -> None:
    """Print a row a cell, then the texts of errors."""
    echo_table(HEADER, [_row(verdict) for verdict in verdicts], right=(1, 4, 5, 6, 12))
    for text, places in _texts(verdicts).items():
        echo(f"{', '.join(places)}:")
        for line in text.splitlines():
            echo(f"    {line}")


def _row(verdict: Verdict) -> list[str]:
    counted = bool(verdict.epochs)
    return [
        verdict.way,
        str(verdict.world),
        str(verdict.distributed),
        verdict.word,
        *(str(n) if counted else "" for n in (verdict.once, verdict.repeated, verdict.missed)),
        " ".join("mixed" if e is None else str(e) for e in verdict.epochs),
        "" if verdict.in_order is None else "same" if verdict.in_order else "other",
        ", ".join(verdict.devices),
        _short(verdict.resume, "exact"),
        verdict.reload if len(verdict.reload) <= SHORT else "error",
        "" if verdict.speed is None else f"{verdict.speed:.2f}",
    ]


def _short(text: str, right: str) -> str:
    if text in ("", right):
        return text
    return "differs" if text.startswith("epoch") else "error"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def _texts(verdicts: Iterable[Verdict]) -> dict[str, list[str]]:
    """Text of an error -> the cells that gave it."""
    places: dict[str, list[str]] = {}
    for verdict in verdicts:
        for text in (verdict.text, verdict.resume, verdict.reload):
            if ":" in text or (verdict.word in ("error", "failed") and text):
                cell = f"{verdict.way} {verdict.world} {verdict.distributed}"
                places.setdefault(text, []).append(cell)
    return places


def markdown(verdicts: Sequence[Verdict], found: dict[str, str]) -> str:
    """Return a table with a row a way, and below it the versions."""
    heads = [f"{_ranks(world)}, {_value(value)}" for world in WORLDS for value in DISTRIBUTED]
    heads += ["order", "resume", "new negatives"]
    measured = any(verdict.speed is not None for verdict in verdicts)
    heads += ["speed"] if measured else []
    lines = [f"| you write | {' | '.join(heads)} |", f"|---{'|---' * len(heads)}|"]
    cells = {(v.way, v.world, v.distributed): v for v in verdicts}
    for name in dict.fromkeys(v.way for v in verdicts):
        way = WAYS[name]
        row = [
            _answer(cells.get((name, world, value)) or _same(cells, name, world))
            for world in WORLDS
            for value in DISTRIBUTED
        ]
        right = [v for v in verdicts if v.way == name and v.word in ("once", "each")]
        row += [
            _together({True: "same", False: "other", None: ""}[v.in_order] for v in right),
            _together(v.resume for v in right),
            _together(v.reload and f"batch {v.reload}" for v in right),
        ]
        if measured:
            row.append(_together(f"{v.speed:.2f}" for v in right if v.speed is not None))
        tool = f"{way.package.capitalize()}: " if way.package else ""
        lines.append(f"| {tool}{way.what} | {' | '.join(row)} |")
    return "\n".join([*lines, "", f"{sentence(found)}."])


def _same(cells: dict[tuple[Any, ...], Verdict], name: str, world: int) -> Verdict | None:
    """The cell of a way that takes no loader, which stands for every value of `distributed`."""
    return None if WAYS[name].takes_loader else cells.get((name, world, False))


def _ranks(world: int) -> str:
    return "1 process" if world == 1 else f"{world} ranks"


def _value(value: bool | str) -> str:
    return f"`{value!r}`".replace("'", '"')


def _answer(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    if verdict.word == "each":
        return "each rank all"
    return verdict.word if verdict.word in ("once", "error", "skipped") else f"**{verdict.text}**"


def _together(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(_cut(text) for text in texts if text))


def to_json(verdicts: Sequence[Verdict], found: dict[str, str]) -> dict[str, Any]:
    """Return a run as plain values."""
    return {"versions": found, "cells": [asdict(verdict) for verdict in verdicts]}


@click.command(cls=Command)
@click.argument("file", type=PATH)
@debug_option
def command(file: Path) -> None:
    """Print the Markdown table of a run's JSON."""
    answer = json.loads(file.read_text())
    click.echo(markdown([Verdict(**cell) for cell in answer["cells"]], answer["versions"]))


if __name__ == "__main__":
    run(command)
