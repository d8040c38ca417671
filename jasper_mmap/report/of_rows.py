"""The pictures of generations over time, hubs and the worst rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..printable import printable
from ..similarity.reports.report import Share
from . import marks
from .numbers.content import Content
from .numbers.history import Generation
from .picture import NONE, Picture, Table, count, counted, decimal, percent
from .svg import BLUE, GREEN, INK, ORANGE, PAPER, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONG: Final = 200
"""Characters of a text that are shown."""
_SECONDS: Final = len("2026-12-31T23:59:59")


def cut(text: str) -> str:
    """A text of the store: its beginning, without control characters."""
    return printable(text if len(text) <= _LONG else f"{text[: _LONG - 1]}…")


def generations(content: Content) -> Picture:
    """Churn and lint from generation to generation."""
    shown = content.generations
    changed = [one for one in shown if one.changed is not None]
    sentence = _of_generations(shown)
    svg = None
    if len(shown) > 1:
        from matplotlib.ticker import MaxNLocator

        with canvas("generations", 3.0) as drawn:
            top, below = drawn.axes(1, 1)
            places = [one.generation for one in changed]
            top.bar(places, [o.changed.share for o in changed if o.changed], 0.6, color=BLUE)
            top.set_ylabel("rows changed")
            top.tick_params(axis="x", labelbottom=False)
            above = {one.generation: one.margin_false for one in shown}
            right = {one.generation: one.known_right for one in shown}
            _line(below, above, "o", ORANGE, "above the margin")
            _line(below, right, "D", GREEN, "known right")
            below.set_ylabel("rows")
            below.set_xlabel("generation")
            numbers = [one.generation for one in shown]
            for axes in (top, below):
                axes.set_xlim(numbers[0] - 0.6, numbers[-1] + 0.6)
                axes.set_ylim(0, 1.05)
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
                marks.grid(axes, "y")
            drawn.figure.legend(loc="outside lower left", ncols=2, borderpad=0)
        svg = drawn.svg
    header = ("generation", "when", "by", "note", "rows changed", "above the margin", "known right")
    rows = tuple(
        (
            f"{one.generation}{' (current)' if one.current else ''}",
            cut(one.when[:_SECONDS]),
            cut(one.by),
            cut(one.note) or NONE,
            counted(one.changed),
            counted(one.margin_false),
            counted(one.known_right),
            "yes" if one.on_disk else "no",
        )
        for one in shown
    )
    table = Table(title="Generations", header=(*header, "on disk"), rows=rows, text=(2, 3))
    return Picture(
        id="generations",
        title="Generations over time",
        sentence=sentence,
        svg=svg,
        tables=(table,),
    )


def _of_generations(shown: tuple[Generation, ...]) -> str:
    if len(shown) < 2:
        return "One generation so far: there is nothing to compare it with."
    changed = shown[-1].changed
    sentence = (
        "Bars are churn, the rows that a generation changed; rising lines mean that the negatives"
        " get worse from one to the next."
    )
    if changed is not None:
        sentence += f" The latest changed {percent(changed)} of the rows."
    missing = sum(one.margin_false is None for one in shown)
    if missing:
        sentence += (
            f" {count(missing)} of {count(len(shown))} were not linted; jasper-mmap lint with"
            " --generation does it while their files are there."
        )
    return sentence


def _line(
    axes: Axes, points: dict[int, Share | None], marker: str, colour: str, label: str
) -> None:
    known = {number: share.share for number, share in points.items() if share is not None}
    axes.plot(
        [*known],
        [*known.values()],
        marker=marker,
        color=colour,
        markerfacecolor=colour if marker == "o" else PAPER,
        label=label,
    )


def hubs(content: Content) -> Picture:
    """The sources that are used most as negatives."""
    one = content.lint.of_generation.hubness
    svg = None
    if one.most:
        with canvas("hubs", 0.9 + 0.24 * len(one.most)) as drawn:
            (axes,) = drawn.axes()
            uses = [uses for _, uses in one.most]
            names = [str(source) for source, _ in one.most]
            marks.bars(axes, names, uses, [*map(count, uses)], ORANGE)
            marks.upright(axes, one.mean, INK, ":")
            axes.set_xlim(0, 1.15 * max(uses))
            axes.set_xlabel("slots (dotted: the mean of all sources)")
            axes.set_ylabel("source")
        svg = drawn.svg
    sentence = (
        "Long bars are hubs: sources that stand among the negatives of many questions. The mean is"
        f" {one.mean:.1f} slots; the most frequent 1% of the sources fill {percent(one.top)} of"
        f" all slots, and {counted(one.never)} sources are never used."
    )
    rows = (
        *((str(source), count(uses)) for source, uses in one.most),
        ("mean", f"{one.mean:.1f}"),
        ("most frequent 1%, slots", counted(one.top)),
        ("never used, sources", counted(one.never)),
    )
    return Picture(
        id="hubs",
        title="Hubs: the most frequent negatives",
        sentence=sentence,
        svg=svg,
        tables=(Table(title="Slots", header=("source", "slots"), rows=rows),),
    )


def worst(content: Content) -> Picture:
    """The rows of largest s - p."""
    rows = content.worst
    svg = None
    if rows:
        with canvas("worst", 0.9 + 0.2 * len(rows)) as drawn:
            (axes,) = drawn.axes()
            marks.row_lines(axes, [str(row.pair) for row in rows])
            places = [*range(len(rows))]
            p, s = [r.lowest_right for r in rows], [r.similarity for r in rows]
            axes.hlines(places, p, s, color=ORANGE, linewidth=2)
            axes.plot(s, places, "o", color=ORANGE, label="negative (s)")
            axes.plot(
                p, places, "D", color=GREEN, markerfacecolor=PAPER, label="lowest right source (p)"
            )
            axes.axvline(0, color=INK, linewidth=0.6)
            axes.set_xlabel("cosine with the question")
            axes.set_ylabel("pair")
            drawn.figure.legend(loc="outside upper left", ncols=2, handletextpad=0.2, borderpad=0)
        svg = drawn.svg
    sentence = (
        f"The {len(rows)} rows, of {len({row.question for row in rows})} questions, whose most"
        " similar negative lies farthest above the question's lowest right source p (known right"
        " sources set aside). Where the diamond is far left, doubt"
        " the right source; where the dot is far right, the negative."
        if rows
        else "No row has a negative that can be compared with a right source."
    )
    texts = bool(content.questions or content.sources)
    numbers = (
        "pair",
        "question",
        "lowest right (p)",
        "own right",
        "negative",
        "tier",
        "s",
        "s - p",
    )
    header = (*numbers, *(("question's text", "negative's text") if texts else ()))
    cells = tuple(
        (
            str(row.pair),
            str(row.question),
            decimal(row.lowest_right),
            decimal(row.own),
            str(row.negative),
            str(row.tier),
            decimal(row.similarity),
            decimal(row.above),
            *_texts(content, row.question, row.negative, shown=texts),
        )
        for row in rows
    )
    table = Table(title="Worst rows", header=header, rows=cells, text=(8, 9))
    return Picture(
        id="worst",
        title="The worst rows",
        sentence=sentence,
        svg=svg,
        tables=(table,),
    )


def _texts(content: Content, question: int, negative: int, *, shown: bool) -> tuple[str, ...]:
    if not shown:
        return ()
    known = (content.questions.get(question), content.sources.get(negative))
    return tuple(NONE if text is None else cut(text) for text in known)
