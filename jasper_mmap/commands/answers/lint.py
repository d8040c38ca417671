"""A lint as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator

from ...console import echo, echo_table
from ...similarity.reports.report import (
    GenerationLint,
    LintReport,
    MarginFalse,
    Quantiles,
    Rows,
    Share,
    StoreLint,
)


def print_lint(report: LintReport) -> None:
    """Print tables and sentences of a lint, with its thresholds."""
    lint, limits = report.of_generation, report.thresholds
    drawn = "" if report.sample is None else f" (a sample, seed {report.seed})"
    echo(f"store {report.store}")
    echo(
        f"generation {report.generation}: {lint.rows:,} pairs{drawn},"
        f" {lint.slots // max(lint.rows, 1)} negatives each"
    )
    echo("")
    echo("Similarity (cosine) with the question")
    _print_similarity(lint)
    for line in _of_tiers(lint):
        echo(line)
    echo("")
    echo(f"Too similar: s > p - {limits['margin']:g} * |p|, where p is the similarity of")
    _print_margin(lint)
    echo("")
    for line in _of_negatives(lint, limits["same_content_cosine"]):
        echo(line)
    echo("")
    echo("Untrained: question + steering, nothing learned")
    _print_untrained(lint, limits["infonce_temperature"])
    for line in _of_steering(lint):
        echo(line)
    echo("")
    for line in _of_store(report.of_store, limits):
        echo(line)
    for note in report.notes:
        echo(f"note: {note}")


def _print_similarity(lint: GenerationLint) -> None:
    rows = []
    for split, similarity in lint.similarity.items():
        if not similarity.own.count:
            continue
        rows.append((split, "right", *_quantiles(similarity.own)))
        rows += [("", f"tier {tier}", *_quantiles(q)) for tier, q in similarity.tiers.items()]
    header = ("split", "source", "count", "5 %", "25 %", "median", "75 %", "95 %")
    echo_table(header, rows, right=range(2, 8))


def _quantiles(quantiles: Quantiles) -> tuple[str, ...]:
    values = (quantiles.p5, quantiles.p25, quantiles.p50, quantiles.p75, quantiles.p95)
    return (f"{quantiles.count:,}", *("-" if v is None else f"{v:.3f}" for v in values))


def _of_tiers(lint: GenerationLint) -> Iterator[str]:
    tiers = lint.tiers
    order = ", ".join(map(str, tiers.by_median))
    yield f"tiers by median, most similar first: {order} ({_as(tiers.as_described)}: 3, 1, 2, 4)"
    shares = ", ".join(f"{tier}: {_percent(s)}" for tier, s in tiers.in_cluster.items() if s.of)
    if shares:
        described = _as(tiers.cluster_as_described)
        yield f"in the pair's cluster, by tier: {shares} ({described}: tier 1 is, others are not)"
    if lint.without_cosine:
        yield f"{lint.without_cosine:,} slots have no similarity: a row is NaN or infinite"


def _as(described: bool) -> str:
    return "as described" if described else "NOT as described"


def _print_margin(lint: GenerationLint) -> None:
    rows = [
        ("lowest right source", *_margin(lint.margin_false)),
        ("  known ones too", *_margin(lint.margin_false_with_known)),
        ("own right source", *_margin(lint.margin_false_own)),
    ]
    tiers = [f"tier {tier}" for tier in lint.margin_false.tiers]
    echo_table(("p", "slots", "rows", *tiers), rows, right=range(1, 7))
    splits = lint.margin_false.splits
    shares = ", ".join(f"{split} {_percent(s)}" for split, s in splits.items() if s.of)
    echo(
        f"{lint.margin_false.slots.count:,} of {lint.margin_false.slots.of:,} slots,"
        f" {_of(lint.margin_false.rows)} rows: {shares}; known right sources set aside"
    )


def _margin(counts: MarginFalse) -> tuple[str, ...]:
    return tuple(map(_percent, (counts.slots, counts.rows, *counts.tiers.values())))


def _of_negatives(lint: GenerationLint, same: float) -> Iterator[str]:
    known, weak, evaluation = lint.known_right, lint.weak_right, lint.evaluation_sources
    yield (
        f"known right sources among the negatives: {_of(known.slots)} slots in {_of(known.rows)}"
        f" rows; by number {known.slots_by_number.count:,} slots, by content (cosine >= {same:g})"
        f" {known.slots_by_content.count:,}"
    )
    if weak.below is not None:
        yield (
            f"own right source below the median of tier 4 ({weak.below:.4f}): {_of(weak.rows)}"
            f" rows, with {_of(weak.margin_false)} of the slots that are too similar"
        )
    yield (
        f"lowest right source below {weak.lowest_below:g}: {_of(weak.lowest_rows)} rows, with"
        f" {_of(weak.lowest_margin_false)} of those slots"
    )
    if evaluation.slots.of:
        yield (
            "sources that are right for val or test only, among the negatives of train:"
            f" {_of(evaluation.slots)} slots ({evaluation.chance_slots:.1%} by chance),"
            f" {_of(evaluation.rows)} rows ({evaluation.chance_rows:.1%} by chance)"
        )
    hubs = lint.hubness
    most = ", ".join(f"{source} ({count:,})" for source, count in hubs.most[:5])
    yield (
        f"most frequent negatives: {most}; the mean is {hubs.mean:.1f}. The top 1 % of the sources"
        f" fill {_percent(hubs.top)} of the slots, {_of(hubs.never)} sources are never used"
    )


def _print_untrained(lint: GenerationLint, temperature: float) -> None:
    rows = []
    for split, variants in lint.untrained.items():
        if not any(scores.nearest.of for scores in variants.values()):
            continue
        for number, (variant, scores) in enumerate(variants.items()):
            rows.append(
                (
                    "" if number else split,
                    variant,
                    _percent(scores.nearest),
                    _percent(scores.nearest_known_aside),
                    "-" if scores.infonce is None else f"{scores.infonce:.3f}",
                    "-"
                    if scores.infonce_known_aside is None
                    else f"{scores.infonce_known_aside:.3f}",
                )
            )
    header = ("split", "steering", "nearest", "known aside", "InfoNCE", "known aside")
    echo_table(header, rows, right=range(2, 6))
    echo(
        "nearest: rows whose right source is nearer than every negative; InfoNCE at temperature"
        f" {temperature:g}; known aside: without negatives that are known right sources"
    )


def _of_steering(lint: GenerationLint) -> Iterator[str]:
    directions = ", ".join(
        f"{variant} {'-' if d.cosine is None else f'{d.cosine:+.3f}'}"
        for variant, d in lint.steering.items()
    )
    yield f"mean cosine of steering and (right source - question): {directions}"


def _of_store(lint: StoreLint, limits: dict[str, float]) -> Iterator[str]:
    for name, rows in (("questions", lint.questions), ("sources", lint.sources)):
        yield f"{name}: {'; '.join(_of_rows(rows, limits))}"
    splits = ", ".join(f"{split} {count:,}" for split, count in lint.splits.items())
    yield f"pairs: {lint.pairs:,}; {splits}, in no split {lint.pairs_in_no_split:,}"
    examples = ", ".join(map(str, lint.question_examples[:5]))
    where = f" ({examples})" if examples else ""
    yield f"questions with pairs in two splits: {lint.questions_in_two_splits:,}{where}"


def _of_rows(rows: Rows, limits: dict[str, float]) -> Iterator[str]:
    yield f"{rows.count:,}"
    yield f"{rows.zero:,} zero"
    if rows.nonfinite:
        yield f"{rows.nonfinite:,} with NaN or infinity"
    yield f"{rows.far_from_one:,} of a norm other than 1 (+-{limits['norm_tolerance']:g})"
    yield f"{rows.equal:,} equal to another{_examples(rows.equal_examples)}"
    if rows.near is not None:
        near = limits["same_content_cosine"]
        yield f"{rows.near:,} near another (cosine >= {near:g}){_examples(rows.near_examples)}"
    yield f"{rows.unused:,} in no pair"


def _examples(pairs: tuple[tuple[int, int], ...]) -> str:
    shown = ", ".join(f"{a} = {b}" for a, b in pairs[:3])
    return f" ({shown})" if shown else ""


def _of(share: Share) -> str:
    return f"{share.count:,} ({share.share:.2%})"


def _percent(share: Share) -> str:
    return f"{share.share:.2%}"
