"""The lint of a store and one generation: taken from what is kept, or computed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..progress import Progress
from ..rules.names import MARGIN, SEED
from ..store.folder import Store
from .duplicates import SAME_COSINE
from .examine import LOW, Examination, Take
from .flag_file import writing_flags
from .of_store import NORM_TOLERANCE, lint_store, store_work
from .reports.kept import Key, read_kept
from .reports.report import GenerationLint, LintReport, StoreLint
from .reports.summary import RULE
from .untrained import TEMPERATURE


@dataclass(frozen=True, kw_only=True)
class LintOptions:
    """What changes the numbers of a lint."""

    margin: float = MARGIN
    sample: int | None = None
    seed: int = SEED
    near_duplicates: bool = False

    def of(self, n_pairs: int) -> LintOptions:
        """The same for a store of `n_pairs`: a sample of all of them is none."""
        if self.sample is None or self.sample >= n_pairs:
            return LintOptions(margin=self.margin, near_duplicates=self.near_duplicates)
        return self

    @property
    def of_generation(self) -> dict[str, Any]:
        """Those that concern a generation."""
        drawn = {} if self.sample is None else {"sample": self.sample, "seed": self.seed}
        return {"margin": self.margin, **drawn}

    @property
    def of_store(self) -> dict[str, Any]:
        """Those that concern the store alone."""
        return {"near_duplicates": self.near_duplicates}

    @property
    def thresholds(self) -> dict[str, float]:
        """Every threshold of the lint."""
        return {
            "margin": self.margin,
            "same_content_cosine": SAME_COSINE,
            "norm_tolerance": NORM_TOLERANCE,
            "doubtful_right_source": LOW,
            "infonce_temperature": TEMPERATURE,
        }


class Linting:
    """One lint of an open store; what both of its parts need is computed once, when it is needed.

    Ask for the generation first: then `progress` knows all that is to be read from the start.
    """

    def __init__(self, store: Store, options: LintOptions, progress: Progress) -> None:
        self.store = store
        self.options = options.of(store.manifest.sizes["N_p"])
        self._progress = progress

    def expect_store(self) -> None:
        """Count the lint of the store in the progress, unless it is kept."""
        if self._kept_store is None:
            embeddings, near = self._common.embeddings, self.options.near_duplicates
            self._progress.total += store_work(embeddings, near_duplicates=near)

    @cached_property
    def _kept_store(self) -> StoreLint | None:
        return read_kept(self.store.path, self.store_key, StoreLint)

    @cached_property
    def _common(self) -> Examination:
        return Examination(self.store, self._progress)

    def of_store(self) -> tuple[StoreLint, bool]:
        """Return the lint of the store without its negatives, and whether it was kept."""
        if self._kept_store is not None:
            return self._kept_store, True
        common, near = self._common, self.options.near_duplicates
        advance = self._progress.advance
        lint = lint_store(
            common.embeddings, common.relations, near_duplicates=near, advance=advance
        )
        return lint, False

    def of_generation(
        self,
        tables: Mapping[str, torch.Tensor],
        *,
        sha256: str | None = None,
        out: Path | None = None,
    ) -> tuple[GenerationLint, bool]:
        """Return the lint of a generation's tables [N_p,N], and whether it was kept.

        `sha256` is that of its file, if it has one. `out` is where to write the flags; then it is
        computed in any case.
        """
        if sha256 is not None and out is None:
            kept = read_kept(self.store.path, self.generation_key(sha256), GenerationLint)
            if kept is not None:
                return kept, True
        n_pairs, n_neg = tables["hard_negatives"].shape
        writing: AbstractContextManager[Take | None] = nullcontext()
        if out is not None:
            writing = writing_flags(out, (n_pairs, n_neg))
        options = self.options
        with writing as take:
            lint = self._common.lint(
                tables,
                margin=options.margin,
                sample=options.sample,
                seed=options.seed,
                take=take,
            )
        return lint, False

    @property
    def store_key(self) -> Key:
        """What a kept lint of the store depends on."""
        return Key(self.store.store_id, None, self.options.of_store)

    def generation_key(self, sha256: str) -> Key:
        """What a kept lint of a generation depends on."""
        return Key(self.store.store_id, sha256, self.options.of_generation)

    def report(
        self,
        of_store: StoreLint,
        of_generation: GenerationLint,
        *,
        generation: int | None,
        sha256: str | None,
        notes: tuple[str, ...] = (),
    ) -> LintReport:
        """Return both as one report."""
        options = self.options
        return LintReport(
            store=str(self.store.path),
            store_id=self.store.store_id,
            generation=generation,
            sha256=sha256,
            rule=RULE,
            thresholds=options.thresholds,
            sample=options.sample,
            seed=None if options.sample is None else options.seed,
            near_duplicates=options.near_duplicates,
            of_store=of_store,
            of_generation=of_generation,
            notes=notes,
        )
