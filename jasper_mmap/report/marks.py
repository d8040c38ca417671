"""The forms that pictures are made of: bars with their numbers, dots, lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .svg import INK, LINE, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    labels: Sequence[str],
    colour: str,
) -> None:
    """Horizontal bars from the top, each with its number at its end."""
    places = range(len(names))
    axes.barh(places, values, 0.62, color=colour, linewidth=0)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    for place, value, label in zip(places, values, labels, strict=True):
        right = value >= 0
        axes.annotate(
            label,
            (value, place),
            xytext=(4 if right else -4, 0),
            textcoords="offset points",
            va="center",
            ha="left" if right else "right",
        )


def shares(axes: Axes, label: str, high: float = 1.0) -> None:
    """An x axis of shares from 0 to `high`, with room for the numbers of bars."""
    axes.set_xlim(0, high)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(label)


def grid(axes: Axes, axis: str = "x") -> None:
    """Faint lines behind the marks."""
    axes.set_axisbelow(True)
    axes.grid(axis=axis, color=LINE, linewidth=0.6)  # type: ignore[arg-type]


def row_lines(axes: Axes, names: Sequence[str]) -> None:
    """Rows for dots: their names, a faint line through each, from the top."""
    places = range(len(names))
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.hlines(places, 0, 1, transform=axes.get_yaxis_transform(), color=LINE, linewidth=0.6)


def upright(axes: Axes, x: float, colour: str = INK, style: str = "--") -> None:
    """A vertical line at `x`."""
    axes.axvline(x, color=colour, linestyle=style, linewidth=1.2)


def zero(axes: Axes) -> None:
    """A vertical line at 0."""
    axes.axvline(0, color=MUTED, linewidth=0.8)
