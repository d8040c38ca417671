"""Run `python -m tools.frameworks` to see what every rank receives inside other tools.

Each cell is a way to train, a number of processes and a value of `distributed`; it runs in
processes of its own, on the CPU. It trains three epochs, trains again with a checkpoint in the
middle of the second one, resumes from that, and has new negatives published under way. What the
ranks received is compared with a single process of our own loader. Needs the extras `frameworks`
and `ray`; ways whose tool is missing are skipped. The whole matrix takes about half an hour.
"""

import json
import tempfile
import time
from pathlib import Path

import click

from jasper_mmap.console import PATH, Command, FiniteRange, debug_option, echo, integers, run
from jasper_mmap.errors import JasperError
from tools.bench.inputs import inputs_of
from tools.frameworks.launch import Result, import_once, plans_of, run_cell
from tools.frameworks.numbered_store import make_numbered_store
from tools.frameworks.report import markdown, print_plain, sentence, to_json, versions
from tools.frameworks.verdict import Verdict, judge, skipped
from tools.frameworks.ways import DISTRIBUTED, WAYS, Cell, Way, cells

FAST_PAIRS = 20_000


def tried(cell: Cell, store: Path, fast_store: Path | None, limit_s: float) -> Verdict:
    """Run a cell and judge it; its files are removed."""
    if cell.way.missing:
        return skipped(Result(cell=cell))
    measured = fast_store if cell.world == 1 and cell.distributed is False else None
    with tempfile.TemporaryDirectory(prefix="jasper-frameworks-") as name:
        folder = Path(name)
        plans = plans_of(cell, store, folder, fast_store=measured, measure_s=6.0)
        return judge(run_cell(cell, plans, folder, limit_s), plans)


def _ways(_context: click.Context, _option: click.Parameter, text: str | None) -> list[Way]:
    """The ways that have a name, or the beginning of it, of a comma-separated list."""
    if text is None:
        return list(WAYS.values())
    chosen = []
    for part in text.split(","):
        fitting = [w for w in WAYS.values() if w.name == part or w.name.startswith(f"{part}-")]
        if not fitting:
            raise click.BadParameter(f"unknown way {part!r}: choose from {', '.join(WAYS)}")
        chosen += fitting
    return [way for way in WAYS.values() if way in chosen]


@click.command(cls=Command, help=(__doc__ or "").partition("\n\n")[2])
@click.option("--only", "ways", callback=_ways, help=f"Some of {','.join(WAYS)}.")
@click.option("--processes", callback=integers(1), default="1,2", show_default=True, help="E.g. 2.")
@click.option(
    "--distributed", type=click.Choice([str(value) for value in DISTRIBUTED]), help="Only this one."
)
@click.option("--speed", is_flag=True, help="Compare the speed with our own loader's too.")
@click.option("--limit", type=FiniteRange(1), default=180, show_default=True, help="In s.")
@click.option("--json", "json_file", type=PATH, help="JSON file to write.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table as Markdown.")
@debug_option
def command(
    *,
    ways: list[Way],
    processes: tuple[int, ...],
    distributed: str | None,
    speed: bool,
    limit: float,
    json_file: Path | None,
    as_markdown: bool,
) -> None:
    """Run the cells, print the table, and write the requested file.

    A cell that serves otherwise than it should makes the exit status 1.
    """
    chosen = [
        cell
        for cell in cells(ways, processes)
        if distributed in (None, str(cell.distributed)) or not cell.way.takes_loader
    ]
    found, verdicts = versions(), []
    import_once(ways)
    with tempfile.TemporaryDirectory(prefix="jasper-frameworks-") as name:
        store = make_numbered_store(Path(name) / "numbered")
        fast_store = inputs_of(None, Path(name), FAST_PAIRS).store if speed else None
        for cell in chosen:
            began = time.monotonic()
            verdicts.append(tried(cell, store, fast_store, limit))
            told = f"{cell}: {verdicts[-1].word}"
            echo(f"{told} ({time.monotonic() - began:.0f} s) {verdicts[-1].text}", err=True)
            if json_file is not None:
                json_file.write_text(json.dumps(to_json(verdicts, found), indent=2))
    if as_markdown:
        click.echo(markdown(verdicts, found))
    else:
        print_plain(verdicts)
        echo(sentence(found))
    if wrong := [v for v in verdicts if v.word in ("wrong", "failed")]:
        raise JasperError(f"{len(wrong)} of {len(verdicts)} cells are not as they should be.")


if __name__ == "__main__":
    run(command)
