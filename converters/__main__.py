"""The command `jasper-convert`.

What it needs of the package is imported when it is called: torch is not, for its help.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jasper_mmap.console import (
    PATH,
    Command,
    answering,
    debug_option,
    echo,
    echo_json,
    echo_table,
    echo_warning,
    json_option,
    run,
    shown_progress,
    verdict,
    version_option,
)
from jasper_mmap.printable import size
from jasper_mmap.rules.names import NARROW_DTYPES, SOURCE

if TYPE_CHECKING:
    from .conversion_report import ConversionReport


@click.command(cls=Command)
@click.argument("src", type=PATH)
@click.argument("dst", type=PATH, required=False)
@click.option(
    "--dtype",
    type=click.Choice([*NARROW_DTYPES, SOURCE]),
    help="Narrow questions, sources and steering to this dtype (the report states the cosine"
    " error); 'source' keeps the dtypes of SRC. Default: as in the last conversion into DST.",
)
@click.option("--force", is_flag=True, help="Write everything, even if it did not change.")
@click.option(
    "--allow-nonfinite", is_flag=True, help="Keep NaN, Inf and values too large for float32."
)
@click.option("--allow-equal", is_flag=True, help="Accept negatives and tiers of equal values.")
@click.option("--to-pt", is_flag=True, help="Convert back: SRC is a store, DST gets .pt files.")
@json_option("Print the report as JSON.")
@version_option("jasper-convert")
@debug_option
def command(
    src: Path,
    dst: Path | None,
    *,
    dtype: str | None,
    force: bool,
    allow_nonfinite: bool,
    allow_equal: bool,
    to_pt: bool,
    as_json: bool,
) -> None:
    """Convert SRC, a builder's folder of .pt files, into a store for jasper_mmap.

    The store is written to DST, or beside the .pt files. Everything is checked. Run it again after
    a change: only what changed is written, and an interrupted run is completed. An existing store
    stays in service until the new one is complete.

    \b
    Examples:
      jasper-convert data/built                     beside the .pt files
      jasper-convert data/built data/store          into another folder
      jasper-convert data/built data/store --dtype float16
      jasper-convert data/store data/back --to-pt   back to .pt files
    """
    if to_pt:
        if dst is None:
            raise click.UsageError("--to-pt needs DST, the folder for the .pt files.")
        if dtype or force or allow_nonfinite or allow_equal:
            raise click.UsageError(
                "--to-pt cannot be combined with --dtype, --force, --allow-nonfinite or"
                " --allow-equal."
            )
        from .export import export_pt

        paths = export_pt(src, dst)
        if as_json:
            echo_json({"files": [str(p) for p in paths]})
        else:
            echo(f"{dst}: {len(paths)} files written")
        return

    from jasper_mmap.store.lint import suspicion

    from .conversion import convert

    with answering(), shown_progress(each=True) as progress:
        report = convert(
            src,
            dst,
            embeddings_dtype=dtype,
            allow_nonfinite=allow_nonfinite,
            allow_equal=allow_equal,
            force=force,
            progress=progress,
        )
    warning = suspicion(report.shares)
    if as_json:
        echo_json({**report.to_dict(), "warning": warning})
        return
    if warning is not None:
        echo_warning(warning)
    _print(report)


def _print(report: ConversionReport) -> None:
    """Print what was computed, warnings and errors of narrowing, and a line that summarises."""
    from jasper_mmap.store.lint import sentences

    for name in report.derived:
        echo(f"computed {name}, since its .pt file is missing")
    for sentence in (*sentences(report.warnings, report.shares), *report.notes):
        echo_warning(sentence)
    if report.cosine_error:
        header = ("cosine error of", *next(iter(report.cosine_error.values())))
        rows = [
            (name, *(f"{value:.1e}" for value in error.values()))
            for name, error in report.cosine_error.items()
        ]
        echo_table(header, rows, right=range(1, len(header)))
    written, total = len(report.written), len(report.written) + len(report.left_alone)
    echo(
        f"{report.store}: ",
        verdict(f"{written} of {total} artifacts written", "good"),
        f" ({size(report.bytes_written)} in {report.seconds:.1f} s), {len(report.left_alone)}"
        f" unchanged; generation {report.generation} of negatives",
    )


def main() -> None:
    """Entry point of the console script."""
    run(command)


if __name__ == "__main__":
    main()
