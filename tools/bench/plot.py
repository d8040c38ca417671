"""The ratios of a benchmark as grouped bars, drawn by matplotlib (extra `bench`)."""

from collections.abc import Sequence
from pathlib import Path

from jasper_mmap.bench.measure import Cell, ratio_text
from jasper_mmap.errors import UsageError

LEGEND_COLUMNS = 3


def check_plotting() -> None:
    """Raise `UsageError` if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--plot needs matplotlib ({error}): pip install -e '.[bench]'") from None


def plot(cells: Sequence[Cell], names: dict[str, str], title: str, path: Path) -> None:
    """Write an SVG file: groups of (workers, batch size), a bar for each contender; `names` are for
    the legend."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    contenders = list(dict.fromkeys(cell.contender for cell in cells))
    groups = sorted({(cell.workers, cell.batch_size) for cell in cells})
    figure = Figure(figsize=(3 + 0.25 * len(contenders) * len(groups), 6), layout="constrained")
    axes = figure.add_subplot(
        title=title, ylabel="samples per second as a share of the floor (dashed)"
    )
    width = 0.8 / len(contenders)
    for place, contender in enumerate(contenders):
        own = [cell for cell in cells if cell.contender == contender]
        left = [groups.index((cell.workers, cell.batch_size)) + width * place for cell in own]
        label = names.get(contender, contender)
        bars = axes.bar(left, [cell.ratio for cell in own], width * 0.85, align="edge", label=label)
        labels = [ratio_text(cell.ratio) for cell in own]
        axes.bar_label(bars, labels, rotation=90, padding=3, fontsize="small")
    axes.set_xticks(
        [number + 0.4 for number in range(len(groups))],
        [f"B={size}\n{workers or 'no'} workers" for workers, size in groups],
    )
    axes.axhline(1.0, color="black", linestyle="--", linewidth=1)
    axes.margins(y=0.1)
    figure.legend(loc="outside upper center", ncols=LEGEND_COLUMNS, fontsize="small")
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(path, format="svg")
