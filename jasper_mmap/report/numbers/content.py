"""All numbers of the report, gathered from the lint and the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...files.locks import now
from ...negatives.lint import lint_negatives
from ...progress import Progress, Show, errors_of_show_passed_on
from ...rules.config import Config
from ...rules.curriculum import steering_probabilities
from ...rules.names import SEED, Variant
from ...similarity.reports.jsonform import plain
from ...similarity.reports.report import LintReport
from ...store.folder import Store
from ...store.summary import summarise
from ...store.texts import Texts, read_inspection
from .clusters import Clusters, clusters_of
from .histograms import Histogram, histograms_of
from .history import Generation, generations_of
from .mend import Remedy, worth_mending
from .worst import WorstRow, worst_rows

WHOLE: Final = 500_000
"""Pairs up to which all are read; of more a sample is drawn."""
SAMPLE: Final = 200_000
_STEPS: Final = 20
"""Steps of a curriculum that are shown."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the page shows, in its order."""

    made: str
    """When, UTC."""
    pairs: int
    """All pairs; `lint.sample` says how many were drawn."""
    summary: dict[str, Any]
    """As of `jasper-mmap inspect --json`."""
    config: dict[str, Any]
    """The whole of config.json."""
    mend: tuple[Remedy, ...]
    lint: LintReport
    """As of `jasper-mmap lint --json`."""
    curriculum: tuple[tuple[int, dict[Variant, float]], ...]
    """Epochs, each with the probability of every variant."""
    clusters: Clusters
    histograms: dict[str, Histogram]
    generations: tuple[Generation, ...]
    worst: tuple[WorstRow, ...]
    questions: dict[int, str]
    """Texts of the worst rows, where they are known."""
    sources: dict[int, str]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        value: dict[str, Any] = plain(self)
        return value


def sample_for(n_pairs: int) -> int | None:
    """Return how many of the pairs of a store to draw; None: take all."""
    return None if n_pairs <= WHOLE else SAMPLE


def content_of(
    dataset_dir: str | Path,
    *,
    sample: int | None = None,
    seed: int = SEED,
    progress: Show | None = None,
) -> Content:
    """Gather what the report shows of a store and its current generation.

    The lint is taken from what is kept, or computed and kept. `sample` pairs are drawn by `seed`;
    with None all are taken, of more than 500,000 a sample of 200,000. Raises what opening the store
    and linting it raises.
    """
    store = Store(dataset_dir)
    n_pairs = store.manifest.sizes["N_p"]
    lint = lint_negatives(
        store.path,
        sample=sample_for(n_pairs) if sample is None else sample,
        seed=seed,
        progress=progress,
    )
    _, opened = store.generation(lint.generation)
    with errors_of_show_passed_on():
        worst = worst_rows(
            store, opened.tables, sample=lint.sample, seed=seed, progress=Progress(progress)
        )
    texts = read_inspection(store.path, store.manifest.sizes)
    return Content(
        made=now(),
        pairs=n_pairs,
        summary=summarise(store.path),
        config=store.config.raw,
        mend=worth_mending(lint, worst),
        lint=lint,
        curriculum=_curriculum(store.config),
        clusters=clusters_of(store, seed),
        histograms=histograms_of(store, seed),
        generations=generations_of(store, lint),
        worst=worst,
        questions=_known(texts, "questions", {row.question for row in worst}),
        sources=_known(texts, "sources", {row.negative for row in worst}),
    )


def _curriculum(config: Config) -> tuple[tuple[int, dict[Variant, float]], ...]:
    """From the first epoch to a tenth after the last that differs; without a curriculum two."""
    last = 1 if config.curriculum is None else config.curriculum.epochs_total
    epochs = sorted({last * step // _STEPS for step in range(_STEPS + 1)} | {last + -(-last // 10)})
    return tuple((epoch, dict(steering_probabilities(config, epoch))) for epoch in epochs)


def _known(texts: Texts, kind: str, rows: set[int]) -> dict[int, str]:
    known = texts.questions if kind == "questions" else texts.sources
    return {row: text for row, text in known.items() if row in rows}
