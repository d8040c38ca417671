"""The pictures of what the lint says of the negatives."""

from __future__ import annotations

from typing import Final

from ..rules.names import SPLITS, VARIANTS
from ..similarity.reports.report import (
    Direction,
    GenerationLint,
    LintReport,
    MarginFalse,
    Quantiles,
    Untrained,
)
from . import marks
from .picture import NONE, Picture, Table, count, counted, decimal, listed, percent
from .svg import BAD, BLUE, GREEN, INK, ORANGE, PAPER, PURPLE, canvas

ALL: Final = "all"
"""The rows of every split."""


def similarity(report: LintReport) -> Picture:
    """Similarity of negatives to the question by tier, against the right source."""
    lint, margin = report.of_generation, report.thresholds["margin"]
    shown = lint.similarity[ALL]
    rows = [("right source", shown.own)]
    rows += [(f"tier {tier}", values) for tier, values in shown.tiers.items()]
    rows = [(name, values) for name, values in rows if values.p50 is not None]
    p = shown.own.p50
    edge = None if p is None else p - margin * abs(p)
    svg = _boxes(rows, edge)
    nearest = max(
        (one for one in rows[1:]), key=lambda one: one[1].p50 or 0.0, default=("", shown.own)
    )
    above = [
        name for name, q in rows[1:] if edge is not None and q.p95 is not None and q.p95 > edge
    ]
    sentence = (
        "The farther a tier's box lies left of the dashed line, the surer its negatives are wrong."
        " The line is the margin of the median right source"
        + ("" if edge is None else f" ({decimal(edge)})")
        + ". Boxes hold the middle half, thin lines 5% to 95%, the mark is the median."
    )
    if nearest[0]:
        sentence += (
            f" Most similar is {nearest[0]} with a median of {decimal(nearest[1].p50)}, against"
            f" {decimal(p)} of the right sources; "
            + (
                f"{listed(above)} reach{'es' if len(above) == 1 else ''} beyond the line."
                if above
                else "none reaches the line."
            )
        )
    return Picture(
        id="similarity",
        title="Similarity of negatives to the question, by tier",
        sentence=sentence,
        svg=svg if rows else None,
        tables=(_similarity_table(lint),),
    )


def _boxes(rows: list[tuple[str, Quantiles]], edge: float | None) -> str:
    with canvas("similarity", 2.6) as drawn:
        (axes,) = drawn.axes()
        marks.row_lines(axes, [name for name, _ in rows])
        for place, (name, q) in enumerate(rows):
            colour = GREEN if name == "right source" else BLUE
            low, first, middle, third, high = (
                v if v is not None else 0.0 for v in (q.p5, q.p25, q.p50, q.p75, q.p95)
            )
            axes.hlines(place, low, high, color=colour, linewidth=1.6)
            axes.barh(place, third - first, 0.5, first, color=colour, linewidth=0)
            axes.plot([middle], [place], "|", color=PAPER, markersize=14, markeredgewidth=2.2)
        if edge is not None:
            marks.upright(axes, edge, BAD)
            axes.annotate(
                "margin",
                (edge, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=BAD,
            )
        marks.zero(axes)
        axes.set_xlabel("cosine with the question")
    return drawn.svg


def _similarity_table(lint: GenerationLint) -> Table:
    rows = []
    for split, values in lint.similarity.items():
        named = [("right source", values.own)]
        named += [(f"tier {tier}", q) for tier, q in values.tiers.items()]
        rows += [
            (f"{split}, {name}", count(q.count), *map(decimal, (q.p5, q.p25, q.p50, q.p75, q.p95)))
            for name, q in named
            if q.count
        ]
    header = ("rows", "count", "5%", "25%", "median", "75%", "95%")
    return Table(title="Cosine with the question", header=header, rows=tuple(rows))


def false_negatives(report: LintReport) -> Picture:
    """Negatives that are too similar by the margin, by tier and split."""
    lint, margin = report.of_generation, report.thresholds["margin"]
    one = lint.margin_false
    tiers = {tier: share for tier, share in one.tiers.items() if share.of}
    splits = {split: share for split, share in one.splits.items() if share.of}
    with canvas("false", 3.3) as drawn:
        named = {f"tier {tier}": share for tier, share in tiers.items()}
        above, below = drawn.axes(max(1, len(tiers)), max(1, len(splits)))
        for axes, values, colour, label in (
            (above, named, ORANGE, "slots of a tier"),
            (below, splits, PURPLE, "rows of a split with at least one"),
        ):
            shares = [share.share for share in values.values()]
            marks.bars(axes, [*values], shares, [*map(percent, values.values())], colour)
            marks.shares(axes, label, 1.15)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    worst = max(tiers.items(), key=lambda item: item[1].share, default=None)
    sentence = (
        f"Negatives more similar than {1 - margin:.0%} of the question's lowest right source may be"
        " right sources that nobody labelled (known right sources are set aside)."
        f" They are {counted(one.slots)} slots in {counted(one.rows)} rows"
        + (f"; tier {worst[0]} has most, {percent(worst[1])} of its slots." if worst else ".")
        + f" Known right sources are in {counted(lint.known_right.rows)} rows."
    )
    return Picture(
        id="false",
        title="False negatives, by tier and split",
        sentence=sentence,
        svg=drawn.svg,
        tables=(_margin_table(lint), _known_table(lint)),
    )


def _margin_table(lint: GenerationLint) -> Table:
    rules: tuple[tuple[str, MarginFalse], ...] = (
        ("lowest right source", lint.margin_false),
        ("lowest, known ones too", lint.margin_false_with_known),
        ("own right source", lint.margin_false_own),
    )
    rows = []
    for name, one in rules:
        cells = (one.slots, one.rows, *one.tiers.values(), *one.splits.values())
        rows.append((name, *map(counted, cells)))
    header = ("margin of", "slots", "rows", *(f"tier {t}" for t in lint.margin_false.tiers))
    header += tuple(f"{split}, rows" for split in lint.margin_false.splits)
    return Table(title="Above the margin", header=header, rows=tuple(rows))


def _known_table(lint: GenerationLint) -> Table:
    known, weak, evaluation = lint.known_right, lint.weak_right, lint.evaluation_sources
    rows = (
        ("slots with a known right source", counted(known.slots)),
        ("of these by number", counted(known.slots_by_number)),
        ("of these by content", counted(known.slots_by_content)),
        ("rows with a known right source", counted(known.rows)),
        ("rows whose own right source is below the median of tier 4", counted(weak.rows)),
        ("their share of the slots above the margin", counted(weak.margin_false)),
        (
            f"rows whose lowest right source is below {weak.lowest_below:g}",
            counted(weak.lowest_rows),
        ),
        ("their share of the slots above the margin ", counted(weak.lowest_margin_false)),
        ("slots of train right for val or test only", counted(evaluation.slots)),
        ("by chance", percent(evaluation.chance_slots) if evaluation.slots.of else NONE),
    )
    return Table(title="Known and doubtful right sources", header=("what", "count"), rows=rows)


def untrained(report: LintReport) -> Picture:
    """What a model scores that does nothing but add the steering."""
    lint = report.of_generation
    scores = lint.untrained[ALL]
    n_neg = lint.slots // max(lint.rows, 1)
    with canvas("untrained", 2.5) as drawn:
        (axes,) = drawn.axes()
        marks.row_lines(axes, VARIANTS)
        places = [*range(len(VARIANTS))]
        plain = [scores[variant].nearest.share for variant in VARIANTS]
        aside = [scores[variant].nearest_known_aside.share for variant in VARIANTS]
        axes.hlines(places, plain, aside, color=BLUE, linewidth=2)
        axes.plot(plain, places, "o", color=BLUE, label="all negatives", markersize=8)
        axes.plot(
            aside,
            places,
            "D",
            color=BLUE,
            label="known right set aside",
            markerfacecolor=PAPER,
            markeredgewidth=2,
            markersize=8,
        )
        marks.upright(axes, 1 / (1 + n_neg), INK, ":")
        marks.shares(axes, "rows with the right source nearest")
        drawn.figure.legend(loc="outside upper left", ncols=2, handletextpad=0.2, borderpad=0)
    best = max(VARIANTS, key=lambda variant: scores[variant].nearest.share)
    sentence = (
        "A trained model must beat these marks: they are what question + steering scores with"
        f" nothing learned, out of {1 + n_neg} sources (dotted: by chance). Without steering it is"
        f" {percent(scores[VARIANTS[0]].nearest)}; best is {best} with"
        f" {percent(scores[best].nearest)}."
    )
    leaky = [v for v in VARIANTS[1:] if scores[v].nearest.share > 0.95]
    if leaky:
        sentence += f" Steering that alone finds the source leaves nothing to learn: {leaky[0]}."
    return Picture(
        id="untrained",
        title="What a model that does nothing scores, by variant",
        sentence=sentence,
        svg=drawn.svg if lint.rows else None,
        tables=(_untrained_table(lint.untrained, report.thresholds["infonce_temperature"]),),
    )


def _untrained_table(splits: dict[str, dict[str, Untrained]], temperature: float) -> Table:
    rows = tuple(
        (
            f"{split}, {variant}",
            counted(one.nearest),
            counted(one.nearest_known_aside),
            decimal(one.infonce),
            decimal(one.infonce_known_aside),
        )
        for split in (ALL, *SPLITS)
        for variant, one in splits[split].items()
        if one.nearest.of
    )
    header = ("rows, steering", "nearest", "known set aside", "InfoNCE", "known set aside ")
    title = f"Question + steering, nothing learned (InfoNCE at temperature {temperature:g})"
    return Table(title=title, header=header, rows=rows)


def steering(report: LintReport) -> Picture:
    """Where steering points."""
    directions: dict[str, Direction] = report.of_generation.steering
    known = {name: d.cosine for name, d in directions.items() if d.cosine is not None}
    svg = None
    if known:
        with canvas("steering", 1.7) as drawn:
            (axes,) = drawn.axes()
            values = [*known.values()]
            marks.bars(axes, [*known], values, [f"{v:+.3f}" for v in values], GREEN)
            marks.zero(axes)
            axes.set_xlim(-1.3, 1.3)
            axes.set_xticks([-1, -0.5, 0, 0.5, 1])
            axes.set_xlabel("mean cosine with (right source - question)")
        svg = drawn.svg
    away = [name for name, value in known.items() if value < -0.05]
    sentence = (
        "Right of 0 the steering points from the question towards its right source, left of 0 away"
        " from it; near 0 it says little. "
        + (f"Pointing away: {', '.join(away)}." if away else "None points away.")
    )
    rows = tuple((n, decimal(d.cosine, 4), count(d.rows)) for n, d in directions.items())
    table = Table(title="Direction", header=("steering", "mean cosine", "rows"), rows=rows)
    return Picture(
        id="steering",
        title="Where steering points",
        sentence=sentence,
        svg=svg,
        tables=(table,),
    )
