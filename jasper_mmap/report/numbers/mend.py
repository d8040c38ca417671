"""What is most worth mending in a store, from its lint, each with a command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...similarity.reports.report import LintReport, Rows, Share, TierOrder
from .shell import command
from .worst import WorstRow

MOST: Final = 3
FLAGS_FILE: Final = "flags.safetensors"
_KNOWN_LEAST, _MARGIN_LEAST, _WEAK_LEAST = 0.001, 0.1, 0.05
"""Shares of rows from which these are worth a word: some rows always look like it."""
_BY_CHANCE: Final = 1.5
"""How many times the share by chance."""
_EVEN: Final = 0.25
"""Share of the slots that the most frequent hundredth of the sources fill."""
_WRONG, _SPOILT, _DOUBTFUL, _WASTEFUL = 6.0, 4.0, 2.0, 1.0
"""How bad it is where it is; times its share of what it concerns."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """One thing to mend."""

    what: str
    """What is wrong, with its numbers."""
    why: str
    """What it does to a training, and how to mend it."""
    command: str
    """Where to begin."""


_Ranked = tuple[float, Remedy]


def worth_mending(lint: LintReport, worst: Sequence[WorstRow]) -> tuple[Remedy, ...]:
    """Return at most three, the worst first."""
    store = Path(lint.store)
    ranked = [*_of_tables(lint, store), *_of_negatives(lint, store, worst)]
    return tuple(remedy for _, remedy in sorted(ranked, key=lambda one: -one[0])[:MOST])


def _of_tables(lint: LintReport, store: Path) -> Iterator[_Ranked]:
    of_store = lint.of_store
    twice = of_store.questions_in_two_splits
    if twice:
        yield (
            _WRONG * (1 + twice / max(of_store.questions.count, 1)),
            Remedy(
                what=f"{twice:,} question{' has' if twice == 1 else 's have'} pairs in more than"
                " one split.",
                why="Val and test then measure what was trained on. Divide the pairs by question"
                " in the builder, and convert again.",
                command=command(
                    "jasper-mmap", "show", store, "--question", of_store.question_examples[0]
                ),
            ),
        )
    for name, rows in (("question", of_store.questions), ("source", of_store.sources)):
        yield from _of_rows(name, rows, store)
    if of_store.pairs_in_no_split:
        share = Share(of_store.pairs_in_no_split, of_store.pairs)
        yield (
            _WASTEFUL * share.share,
            Remedy(
                what=f"{_of(share)} pairs are in no split.",
                why="Nothing reads them. Give them a split in the builder, and convert again.",
                command=command("jasper-mmap", "inspect", store),
            ),
        )


def _of_rows(name: str, rows: Rows, store: Path) -> Iterator[_Ranked]:
    spoilt = Share(rows.zero + rows.nonfinite, rows.count)
    if spoilt.count:
        yield (
            _WRONG * (1 + spoilt.share),
            Remedy(
                what=f"{_of(spoilt)} {name}s are zero, NaN or infinite.",
                why="They have no direction to learn from. Embed them again, and convert again.",
                command=command("jasper-mmap", "verify", store),
            ),
        )
    equal = Share(rows.equal, rows.count)
    if equal.count:
        row = rows.equal_examples[0][1]
        yield (
            _DOUBTFUL * equal.share,
            Remedy(
                what=f"{_of(equal)} {name}s equal an earlier one byte for byte.",
                why="A copy of a right source is a false negative under another number. Merge"
                " equal texts in the builder, and convert again.",
                command=command("jasper-mmap", "show", store, f"--{name}", row),
            ),
        )


def _of_negatives(lint: LintReport, store: Path, worst: Sequence[WorstRow]) -> Iterator[_Ranked]:
    one = lint.of_generation
    flags = command("jasper-mmap", "lint", store, "--out", FLAGS_FILE)
    known = one.known_right.rows
    if known.share > _KNOWN_LEAST:
        yield (
            _SPOILT * known.share,
            Remedy(
                what=f"{_of(known)} rows have a known right source of the question among their"
                " negatives.",
                why="The loss pushes a right answer away. The command writes known_right for every"
                " slot: mine these again, or mask them in the loss.",
                command=flags,
            ),
        )
    margin = one.margin_false.rows
    if margin.share > _MARGIN_LEAST:
        yield (
            _DOUBTFUL * margin.share,
            Remedy(
                what=f"{_of(margin)} rows have a negative above the margin"
                f" ({1 - lint.thresholds['margin']:.0%} of the lowest right source).",
                why="Many of these may be right sources that nobody labelled. The command writes"
                " margin_false for every slot: mine below the margin, or mask them in the loss.",
                command=flags,
            ),
        )
    weak = one.weak_right.lowest_rows
    if weak.share > _WEAK_LEAST and worst:
        yield (
            _DOUBTFUL * weak.share,
            Remedy(
                what=f"{_of(weak)} rows have a right source below a similarity of"
                f" {one.weak_right.lowest_below:g}; {one.weak_right.lowest_margin_false.share:.1%}"
                " of the slots above the margin are theirs.",
                why="There the right source is suspect, not the negatives. Look at the worst row,"
                " and correct or drop such pairs in the builder.",
                command=command("jasper-mmap", "show", store, "--pair", worst[0].pair),
            ),
        )
    if not (one.tiers.as_described and one.tiers.cluster_as_described):
        yield (
            _DOUBTFUL,
            Remedy(
                what=f"The tiers are not as described: {_of_tiers(one.tiers)}.",
                why="What is expected of a tier does not hold here. Check that the tiers belong to"
                " these negatives.",
                command=command("jasper-mmap", "lint", store),
            ),
        )
    evaluation = one.evaluation_sources
    if evaluation.slots.share > _BY_CHANCE * evaluation.chance_slots > 0:
        yield (
            _SPOILT * evaluation.slots.share,
            Remedy(
                what=f"{_of(evaluation.slots)} slots of train hold sources that are right for val"
                f" or test only; by chance it would be {evaluation.chance_slots:.1%}.",
                why="The training learns to avoid what the evaluation asks for. Mine from all"
                " sources alike.",
                command=command("jasper-mmap", "lint", store),
            ),
        )
    hubs = one.hubness
    if hubs.top.share > _EVEN and hubs.most:
        yield (
            _WASTEFUL * hubs.top.share,
            Remedy(
                what=f"The most frequent 1 % of the sources fill {hubs.top.share:.1%} of the"
                " slots.",
                why="A few hubs then teach most of what a negative is. Limit how often a source is"
                " mined.",
                command=command("jasper-mmap", "show", store, "--source", hubs.most[0][0]),
            ),
        )


def _of_tiers(tiers: TierOrder) -> str:
    if not tiers.as_described:
        order = ", ".join(map(str, tiers.by_median))
        return f"the most similar first, they are {order} and not 3, 1, 2, 4"
    shares = ", ".join(f"{tier}: {s.share:.1%}" for tier, s in tiers.in_cluster.items() if s.of)
    return f"in the pair's cluster should be most of tier 1 and of no other, but are {shares}"


def _of(share: Share) -> str:
    return f"{share.count:,} of {share.of:,} ({share.share:.1%})"
