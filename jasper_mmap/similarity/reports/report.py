"""What the lint says of a store and of one generation of its negatives.

Slots are the places of a table of negatives [N_p,N], rows its pairs; of a sample, those of the
pairs that were drawn. Tiers and splits are the keys of dicts; `all` is every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .jsonform import plain


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    of: int

    @property
    def share(self) -> float:
        """From 0 to 1; 0 of nothing."""
        return self.count / self.of if self.of else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"count": self.count, "of": self.of, "share": self.share}


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Of cosines, to 0.0005: each is the middle of a bin 0.001 wide. None where there are none."""

    count: int
    p5: float | None
    p25: float | None
    p50: float | None
    p75: float | None
    p95: float | None


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Cosines with the questions of some rows."""

    own: Quantiles
    """Of each pair's own right source."""
    tiers: dict[str, Quantiles]
    """Of the negatives."""


@dataclass(frozen=True, kw_only=True)
class TierOrder:
    """Whether the tiers are what they say."""

    by_median: tuple[int, ...]
    """The tiers that occur, the most similar first."""
    as_described: bool
    """Whether that is 3 (high similarity), 1 (in the cluster), 2 (adjacent), 4 (distant)."""
    in_cluster: dict[str, Share]
    """Slots whose source is in the pair's cluster, of those whose source is in any: the clusters of
    a source are those of the pairs for which it is right."""
    cluster_as_described: bool
    """Whether most of tier 1 is in the pair's cluster, and most of the others is not."""


@dataclass(frozen=True, kw_only=True)
class MarginFalse:
    """Negatives that are too similar by the margin."""

    slots: Share
    rows: Share
    tiers: dict[str, Share]
    """Slots."""
    splits: dict[str, Share]
    """Rows."""


@dataclass(frozen=True, kw_only=True)
class WeakRight:
    """Rows whose right source is hardly similar: it is suspect, not the negatives.

    `margin_false` are the slots of these rows, of all that are too similar by the margin.
    """

    below: float | None
    """The median similarity of tier 4: the own right source is below it."""
    rows: Share
    margin_false: Share
    lowest_below: float
    """The lowest right source of the question is below this."""
    lowest_rows: Share
    lowest_margin_false: Share


@dataclass(frozen=True, kw_only=True)
class KnownRight:
    """Negatives that are right sources of the question."""

    slots: Share
    rows: Share
    rows_by_number: Share
    slots_by_number: Share
    slots_by_content: Share
    """Equal to a right source, under another number."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSources:
    """Sources that are right for val or test pairs only, among the negatives of train pairs.

    Nothing is wrong with them, if they are as frequent as by chance.
    """

    sources: Share
    slots: Share
    rows: Share
    chance_slots: float
    chance_rows: float


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """What a model scores that adds the steering to the question and does nothing else."""

    nearest: Share
    """Rows where that is nearer to the right source than to every negative."""
    infonce: float | None
    """The mean loss."""
    nearest_known_aside: Share
    """The same without the negatives that are right sources of the question."""
    infonce_known_aside: float | None


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Where a kind of steering points."""

    cosine: float | None
    """The mean cosine with (right source - question)."""
    rows: int
    """Those where both have a direction."""


@dataclass(frozen=True, kw_only=True)
class Hubness:
    """How evenly the sources are used as negatives."""

    mean: float
    most: tuple[tuple[int, int], ...]
    """(source, how often) of the most frequent."""
    top: Share
    """Slots of the most frequent hundredth of the sources."""
    never: Share
    """Sources that are not used."""


@dataclass(frozen=True, kw_only=True)
class GenerationLint:
    """What the lint says of one generation."""

    rows: int
    slots: int
    without_cosine: int
    """Slots whose question or source is not finite."""
    similarity: dict[str, Similarity]
    tiers: TierOrder
    margin_false: MarginFalse
    """By the lowest right source of the question; known right sources set aside."""
    margin_false_own: MarginFalse
    """The same by the pair's own right source."""
    margin_false_with_known: MarginFalse
    weak_right: WeakRight
    known_right: KnownRight
    evaluation_sources: EvaluationSources
    untrained: dict[str, dict[str, Untrained]]
    """Split -> variant."""
    steering: dict[str, Direction]
    """Variant, but for zero."""
    hubness: Hubness


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the lint says of one table of embeddings."""

    count: int
    zero: int
    nonfinite: int
    far_from_one: int
    """Rows, not zero, whose norm is not 1 within the tolerance."""
    norms: tuple[float, float] | None
    """The smallest and largest, of rows that are neither zero nor not finite."""
    equal: int
    """Rows whose bytes equal those of an earlier row."""
    equal_examples: tuple[tuple[int, int], ...]
    """(earlier row, row)."""
    near: int | None
    """Rows almost equal to an earlier one, those of `equal` too; None where nobody asked."""
    near_examples: tuple[tuple[int, int], ...]
    unused: int
    """Rows in no pair."""


@dataclass(frozen=True, kw_only=True)
class StoreLint:
    """What the lint says of a store without its negatives."""

    questions: Rows
    sources: Rows
    pairs: int
    splits: dict[str, int]
    """Pairs, repeated ones counted once."""
    pairs_in_no_split: int
    questions_in_two_splits: int
    question_examples: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """The result of `lint_negatives`."""

    store: str
    store_id: str
    generation: int | None
    sha256: str | None
    """Of the generation's file; both are None of tables that are not published."""
    rule: int
    """The version of what the numbers mean."""
    thresholds: dict[str, float]
    sample: int | None
    """How many pairs were drawn; None: all."""
    seed: int | None
    near_duplicates: bool
    of_store: StoreLint
    of_generation: GenerationLint
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; every `Share` has its `share` too."""
        value: dict[str, Any] = plain(self)
        return value
