"""The pictures of a store without its negatives: splits, curriculum, clusters, histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..rules.names import VARIANTS
from . import marks
from .numbers.clusters import CELLS, Clusters
from .numbers.content import Content
from .numbers.histograms import Histogram
from .picture import NONE, Picture, Table, count, decimal, listed, percent
from .svg import BLUE, GREEN, INK, ORANGE, PAPER, PURPLE, SERIES, canvas

if TYPE_CHECKING:
    from matplotlib.ticker import MaxNLocator

_NAMED: Final = 40
"""Clusters that have a bar, and rows in the table."""
_POINTS: Final = 500
"""Clusters that are drawn at most."""
_HATCHES: Final = ("", "///", "...", "\\\\\\")


def splits(content: Content) -> Picture:
    """How many pairs each split has."""
    store = content.lint.of_store
    values = {**store.splits, "in no split": store.pairs_in_no_split}
    values = {n: v for n, v in values.items() if v or n != "in no split"}
    labels = [f"{count(v)} ({v / max(store.pairs, 1):.1%})" for v in values.values()]
    with canvas("splits", 1.7) as drawn:
        (axes,) = drawn.axes()
        marks.bars(axes, [*values], [*values.values()], labels, BLUE)
        axes.set_xlim(0, 1.5 * max(1, *values.values()))
        axes.xaxis.set_major_locator(_whole())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("pairs")
    empty = [name for name, pairs in values.items() if not pairs]
    both = store.questions_in_two_splits
    sentence = (
        "Enough pairs must be left to measure on. "
        + (f"{listed(empty)} {'is' if len(empty) == 1 else 'are'} empty. " if empty else "")
        + (
            f"{count(both)} question{' has' if both == 1 else 's have'} pairs in more than one"
            " split, so what is measured was partly trained on."
            if both
            else "No question has pairs in more than one split."
        )
    )
    rows = [(n, count(v), percent(v / max(store.pairs, 1))) for n, v in values.items()]
    rows += [("all", count(store.pairs), NONE), ("questions in two splits", count(both), NONE)]
    table = Table(title="Pairs", header=("split", "pairs", "share"), rows=tuple(rows))
    return Picture(id="splits", title="Splits", sentence=sentence, svg=drawn.svg, tables=(table,))


def curriculum(content: Content) -> Picture:
    """The probability of each variant over the epochs."""
    epochs = [epoch for epoch, _ in content.curriculum]
    series = [[shares[v] for _, shares in content.curriculum] for v in VARIANTS]
    with canvas("curriculum", 2.6) as drawn:
        (axes,) = drawn.axes()
        areas = axes.stackplot(epochs, series, colors=SERIES, edgecolor=PAPER, linewidth=1)
        for area, hatch in zip(areas, _HATCHES, strict=True):
            area.set_hatch(hatch)
        at = 0.0
        for variant, values in zip(VARIANTS, series, strict=True):
            if values[-1] >= 0.04:
                place = (1.02, at + values[-1] / 2)
                axes.annotate(variant, place, xycoords=("axes fraction", "data"), va="center")
            at += values[-1]
        axes.set_xlim(epochs[0], epochs[-1])
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(_whole())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("epoch")
    first, last = content.curriculum[0][1]["zero"], content.curriculum[-1][1]["zero"]
    change = (
        f"zero goes from {percent(first)} to {percent(last)}"
        if first != last
        else f"every epoch is alike, zero has {percent(first)}"
    )
    sentence = (
        "The height of an area at an epoch is the probability that a pair is served with that"
        f" steering: {change}."
    )
    rows = tuple(
        (str(epoch), *(percent(shares[v]) for v in VARIANTS))
        for epoch, shares in content.curriculum
    )
    table = Table(title="Probability", header=("epoch", *VARIANTS), rows=rows)
    return Picture(
        id="curriculum",
        title="Steering curriculum",
        sentence=sentence,
        svg=drawn.svg,
        tables=(table,),
    )


def _whole() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, integer=True)


def cluster_sizes(content: Content) -> Picture:
    """How many pairs each cluster has, the largest first."""
    clusters = content.clusters
    order = sorted(range(len(clusters.pairs)), key=lambda c: (-clusters.pairs[c], c))
    sizes = [clusters.pairs[c] for c in order]
    mean = sum(sizes) / len(sizes)
    with canvas("clusters", 2.3) as drawn:
        (axes,) = drawn.axes()
        width = 0.8 if len(sizes) <= _NAMED else 1.0
        if len(sizes) <= _NAMED:
            axes.bar(range(len(sizes)), sizes, width, color=BLUE, linewidth=0)
            axes.set_xticks(range(len(sizes)), [*map(str, order)], rotation=90, fontsize=8)
            axes.tick_params(axis="x", length=0)
            axes.set_xlabel("cluster")
        else:
            step = -(-len(sizes) // _POINTS)
            places = [*range(0, len(sizes), step)]
            axes.fill_between(places, sizes[::step], step="mid", color=BLUE, linewidth=0)
            axes.set_xlabel("clusters, largest first")
        axes.axhline(mean, color=INK, linestyle=":", linewidth=1.2)
        axes.set_ylabel("pairs (dotted: mean)")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_ylim(bottom=0)
    empty = sizes.count(0)
    sentence = (
        "A steep fall means that a few clusters dominate, and that tier 1 is drawn from few sources"
        f" in the small ones. {count(len(sizes))} cluster{'' if len(sizes) == 1 else 's'},"
        f" {count(sizes[-1])} to {count(sizes[0])} pairs, {mean:,.1f} in the mean"
        + (f"; {count(empty)} empty." if empty else ".")
    )
    return Picture(
        id="clusters",
        title="Sizes of the clusters",
        sentence=sentence,
        svg=drawn.svg,
        tables=(_clusters_table(clusters, order),),
    )


def _clusters_table(clusters: Clusters, order: Sequence[int]) -> Table:
    rows = []
    for cluster in order[:_NAMED]:
        place = clusters.centroids[cluster]
        x, y = (NONE, NONE) if place is None else (decimal(place[0]), decimal(place[1]))
        rows.append((str(cluster), count(clusters.pairs[cluster]), x, y))
    more = len(order) - len(rows)
    title = "Clusters" + (f" (the largest; {count(more)} more in --json)" if more else "")
    return Table(title=title, header=("cluster", "pairs", "map x", "map y"), rows=tuple(rows))


def cluster_map(content: Content) -> Picture:
    """Centroids and the density of the sources in the plane of two principal components."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    one = content.clusters
    largest = sorted(range(len(one.pairs)), key=lambda c: (-one.pairs[c], c))[:_POINTS]
    known = [place for c in largest if (place := one.centroids[c]) is not None]
    most = max(1, *(max(row) for row in one.density))
    width, height = (one.x[1] - one.x[0]) / CELLS, (one.y[1] - one.y[0]) / CELLS
    with canvas("map", 3.6) as drawn:
        (axes,) = drawn.axes()
        cells = [(r, c, n) for r, row in enumerate(one.density) for c, n in enumerate(row) if n]
        corners = [(one.x[0] + c * width, one.y[0] + r * height) for r, c, _ in cells]
        axes.add_collection(
            PolyCollection(
                [
                    ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
                    for x, y in corners
                ],
                facecolors=[to_rgba(BLUE, 0.1 + 0.6 * n / most) for _, _, n in cells],
                linewidths=0,
            )
        )
        axes.plot(
            [x for x, _ in known],
            [y for _, y in known],
            "o",
            color=ORANGE,
            markeredgecolor=INK,
            markersize=7 if len(known) <= _NAMED else 3,
        )
        axes.set_xlim(*one.x)
        axes.set_ylim(*one.y)
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second")
    fewer = len(one.pairs) > len(largest)
    drawn_centroids = f" of the {count(len(largest))} largest clusters" if fewer else ""
    drawn_of = "" if one.sources == one.of else f" (a sample of {count(one.of)})"
    sentence = (
        f"The fuller a square, the more of {count(one.sources)} sources{drawn_of} lie there; dots"
        f" are the centroids{drawn_centroids}. Full places without a dot are sources far from every"
        " cluster. This is a projection (PCA of the sources): it shows"
        f" {percent(one.variance)} of their variance,"
        " so near here need not be near."
    )
    steps = range(CELLS)
    header = ("y", *(decimal(one.x[0] + (c + 0.5) * width, 2) for c in steps))
    rows = tuple(
        (decimal(one.y[0] + (r + 0.5) * height, 2), *map(count, one.density[r]))
        for r in reversed(steps)
    )
    table = Table(title="Sources by square; columns are x", header=header, rows=rows)
    return Picture(
        id="map",
        title="Map of the clusters",
        sentence=sentence,
        svg=drawn.svg if one.sources else None,
        tables=(table,),
    )


def relevance(content: Content) -> Picture:
    """How relevant the right sources are."""
    one = content.histograms["relevance"]
    sentence = "A heap near 0 is pairs whose right source the builder itself rates as irrelevant."
    return _histogram("relevance", "Relevance of pairs", sentence, {"pairs": one}, GREEN)


def centroid_distance(content: Content) -> Picture:
    """How far questions are from the centroids of their clusters."""
    one = content.histograms["centroid_distance"]
    sentence = (
        "Cosine distance of question and centroid: above 1 the steering to the centroid leads away"
        " from the question."
    )
    return _histogram("distance", "Centroid distance", sentence, {"pairs": one}, PURPLE)


def norms(content: Content) -> Picture:
    """The norms of the embeddings."""
    values = {f"{n}s": content.histograms[f"{n}_norm"] for n in ("question", "source")}
    sentence = (
        "One bar at 1 means normalised embeddings, so that products are cosines. Far from 1, a"
        " model sees lengths too."
    )
    return _histogram("norms", "Norms of embeddings", sentence, values, BLUE, ORANGE)


def _histogram(
    name: str, title: str, sentence: str, values: dict[str, Histogram], *colours: str
) -> Picture:
    first = next(iter(values.values()))
    step = (first.high - first.low) / len(first.counts)
    edges = [first.low + step * n for n in range(len(first.counts) + 1)]
    with canvas(name, 1.7 * len(values) ** 0.6 + 0.3) as drawn:
        every = drawn.axes(*[1.0] * len(values))
        for row, (axes, (label, one)) in enumerate(zip(every, values.items(), strict=True)):
            axes.bar(edges[:-1], one.counts, step, align="edge", color=colours[row])
            axes.set_ylabel(label)
            axes.yaxis.set_major_locator(_whole())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.set_xlim(edges[0], edges[-1])
            if row < len(values) - 1:
                axes.tick_params(axis="x", labelbottom=False)
    for label, one in values.items():
        if one.left_out:
            sentence += f" {count(one.left_out)} values of {label} are NaN or infinite."
        if one.rows != one.of:
            sentence += f" A sample of {count(one.rows)} of {count(one.of)} {label}."
    rows = tuple(
        (
            f"{edges[n]:.4g} to {edges[n + 1]:.4g}",
            *(count(o.counts[n]) for o in values.values()),
        )
        for n in range(len(first.counts))
    )
    table = Table(title="Counts", header=("from, to", *values), rows=rows)
    return Picture(id=name, title=title, sentence=sentence, svg=drawn.svg, tables=(table,))
