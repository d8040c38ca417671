"""The lint of one generation: all of its pairs, or a sample, block by block.

Shape letters as in `schema`; `b` pairs of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..files.torch_modes import plain_tensors
from ..progress import Progress
from ..rules.permutation import permute
from ..rules.schema import TIERS
from ..store.folder import Store
from . import flags
from .block import Block, Blocks
from .cosines import Embeddings, pieces
from .distributions import BINS, Histograms, hubness, quantile, quantiles
from .flags import GROUPS, FlagCounts, groups_of, is_suspect, packed
from .known import KnownRight
from .margin import is_margin_false
from .relations import MARKS, Relations, at, marks_by_split
from .reports.report import GenerationLint, Share, Similarity, WeakRight
from .untrained import UntrainedScores

LOW: Final = 0.2
"""A right source of a lower similarity is doubtful."""
_STEP: Final = 8192
"""Pairs of a block."""
_TIERS: Final = TIERS[-1] + 1

Take = Callable[[torch.Tensor, torch.Tensor], None]
"""Called with the cosines and the flags [b,N] of each block."""


class Examination:
    """What is common to the lints of several generations of one store."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self.store = store
        self.progress = progress
        self.embeddings = Embeddings(store, advance=progress.advance)
        self.relations = Relations(store)
        progress.total += self.embeddings.questions.nbytes + self.embeddings.sources.nbytes

    def work(self, generation: Mapping[str, torch.Tensor]) -> int:
        """The bytes that `progress` counts for a lint of all pairs of a generation."""
        blocks = Blocks(self.store, self.embeddings, generation)
        return len(self.relations.question_of) * blocks.row_bytes + self.embeddings.own_bytes()

    @plain_tensors
    def lint(
        self,
        generation: Mapping[str, torch.Tensor],
        *,
        margin: float,
        sample: int | None = None,
        seed: int = 0,
        take: Take | None = None,
    ) -> GenerationLint:
        """Lint the tables [N_p,N] of a generation, which are checked.

        `sample` pairs are drawn by `seed`; None: all pairs. `take` gets what each block says.
        """
        n = len(self.relations.question_of)
        if sample is not None and sample < n:
            order = _sampled(self.relations, sample, seed)
        elif take is not None:
            order = _in_order(n)
        else:
            order = _by_question(self.relations)
        return _Lint(self, generation, margin, order).run(take)


@dataclass(frozen=True)
class _Order:
    """The pairs to look at, in blocks.

    A right source is compared with those of all pairs of its question. So a block has all pairs of
    its questions, or their own right sources are looked at before.
    """

    blocks: Sequence[torch.Tensor]
    before: torch.Tensor
    """[n] Pairs whose own right sources are looked at before, with all of their questions."""


def _in_order(n: int) -> _Order:
    every = torch.arange(n, device="cpu")
    return _Order(pieces(every, _STEP), every)


def drawn(relations: Relations, sample: int | None, seed: int) -> torch.Tensor:
    """The pairs that are linted, ascending: `sample` of them, drawn by `seed`, or all."""
    n = len(relations.question_of)
    if sample is None or sample >= n:
        return torch.arange(n, device="cpu")
    pairs = permute(np.arange(sample, dtype=np.int64), n, "lint", seed)
    return torch.from_numpy(np.sort(pairs))


def of_same_questions(relations: Relations, pairs: torch.Tensor) -> torch.Tensor:
    """The pairs of all questions of `pairs`, ascending."""
    asked = torch.zeros(len(relations.right_counts), dtype=torch.bool, device="cpu")
    asked[relations.question_of[pairs]] = True
    return asked[relations.question_of].nonzero()[:, 0]


def _sampled(relations: Relations, sample: int, seed: int) -> _Order:
    pairs = drawn(relations, sample, seed)
    return _Order(pieces(pairs, _STEP), of_same_questions(relations, pairs))


def _by_question(relations: Relations) -> _Order:
    """All pairs, those of a question together: then their rows are read once."""
    counts = np.bincount(relations.question_of.numpy())
    order = relations.by_question
    ends = counts[counts > 0].cumsum()
    blocks, begin = [], 0
    while begin < len(order):
        whole = ends[np.searchsorted(ends, begin + _STEP, side="right") - 1]
        # Where one question fills the block, it is cut.
        end = int(whole) if begin < whole <= begin + _STEP else min(begin + _STEP, len(order))
        blocks.append(order[begin:end])
        begin = end
    large = torch.from_numpy(counts > _STEP)
    return _Order(blocks, large[relations.question_of].nonzero()[:, 0])


class _Lint:
    """One run over the rows."""

    def __init__(
        self,
        common: Examination,
        generation: Mapping[str, torch.Tensor],
        margin: float,
        order: _Order,
    ) -> None:
        self._relations, embeddings = common.relations, common.embeddings
        self._margin, self._order = margin, order
        self._rows = torch.cat([*order.blocks])
        progress = common.progress
        self._blocks = Blocks(common.store, embeddings, generation, progress.advance)
        self._n_neg = generation["hard_negatives"].shape[1]
        progress.total += len(self._rows) * self._blocks.row_bytes
        progress.total += embeddings.own_bytes(order.before)
        self._own = embeddings.own(order.before)
        self._lowest = embeddings.lowest_right(self._own).nan_to_num_(torch.inf)
        """[N_q] Infinite as long as it is not known, or where there is none."""
        self._seen_before = torch.zeros(len(self._lowest), dtype=torch.bool, device="cpu")
        self._seen_before[self._relations.question_of[order.before]] = True
        self._known = KnownRight(embeddings, self._relations, self._own)
        self._counts = FlagCounts()
        self._cosines = Histograms(GROUPS)
        self._own_cosines = Histograms(MARKS)
        self._untrained = UntrainedScores()
        self._uses: NDArray[np.int64] = np.zeros(len(embeddings.sources), np.int64)
        self._suspects = [torch.empty(0, dtype=torch.int64, device="cpu")]
        self._of_source = packed(
            {
                flags.EVALUATION: self._relations.evaluation_only,
                flags.CLUSTERED: self._relations.clustered,
            }
        )
        """[N_s] The flags that a source has in every slot."""

    def run(self, take: Take | None) -> GenerationLint:
        for pairs in self._order.blocks:
            cosines, codes = self._one(pairs)
            if take is not None:
                take(cosines, codes)
        return self._report()

    def _one(self, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        block, relations = self._blocks.of(pairs), self._relations
        marks, numbers, cosines = at(relations.marks, pairs), block.numbers, block.cosines
        own, lowest = self._right(block)
        by_number, by_content = self._known.among(block.questions, numbers, cosines)
        codes = packed(
            {
                flags.LOWEST: is_margin_false(cosines, lowest.unsqueeze(1), self._margin),
                flags.OWN: is_margin_false(cosines, own.unsqueeze(1), self._margin),
                flags.NUMBER: by_number,
                flags.CONTENT: by_content,
                flags.IN_CLUSTER: relations.in_cluster(numbers, pairs),
            }
        )
        codes += at(self._of_source, numbers)
        groups = groups_of(marks, block.tiers)
        self._counts.add(marks, groups, codes)
        self._cosines.add(groups, cosines)
        self._own_cosines.add(marks, own)
        self._untrained.add(block, marks, by_number | by_content)
        np.add.at(self._uses, numbers.flatten().numpy(), 1)
        self._suspects.append(is_suspect(codes).sum(1))
        return cosines, codes

    def _right(self, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """The cosines [b] of the own and of the lowest right sources."""
        new = ~self._seen_before[block.questions]
        pairs, questions, own = block.pairs[new], block.questions[new], block.own[new]
        self._own[pairs] = own
        known = own.isfinite()
        self._lowest.scatter_reduce_(0, questions[known], own[known], "amin")
        lowest = self._lowest[block.questions]
        return self._own[block.pairs], lowest.masked_fill_(lowest.isinf(), torch.nan)

    def _report(self) -> GenerationLint:
        counts = self._counts
        by_tier = self._cosines.counts.reshape(MARKS, _TIERS, BINS)
        medians = {tier: quantile(by_tier[:, tier].sum(0), 0.5) for tier in TIERS}
        return GenerationLint(
            rows=counts.rows,
            slots=counts.slots,
            without_cosine=self._cosines.nan,
            similarity=self._similarity(by_tier),
            tiers=counts.tier_order(medians),
            margin_false=counts.margin_false(),
            margin_false_own=counts.margin_false_own(),
            margin_false_with_known=counts.margin_false_with_known(),
            weak_right=self._weak_right(medians[TIERS[-1]]),
            known_right=counts.known_right(),
            evaluation_sources=counts.evaluation_sources(
                self._relations.evaluation_only, self._n_neg
            ),
            untrained=self._untrained.by_split(),
            steering=self._untrained.steering(),
            hubness=hubness(self._uses),
        )

    def _similarity(self, by_tier: NDArray[np.int64]) -> dict[str, Similarity]:
        return {
            split: Similarity(
                own=quantiles(self._own_cosines.counts[which].sum(0)),
                tiers={str(tier): quantiles(by_tier[which, tier].sum(0)) for tier in TIERS},
            )
            for split, which in marks_by_split().items()
        }

    def _weak_right(self, below: float | None) -> WeakRight:
        suspects = torch.cat(self._suspects)
        own = self._own[self._rows]
        lowest = self._lowest[self._relations.question_of[self._rows]]

        def shares(weak: torch.Tensor) -> tuple[Share, Share]:
            return (
                Share(int(weak.sum()), len(weak)),
                Share(int(suspects[weak].sum()), int(suspects.sum())),
            )

        rows, slots = shares(own < (-torch.inf if below is None else below))
        lowest_rows, lowest_slots = shares(lowest < LOW)
        return WeakRight(
            below=below,
            rows=rows,
            margin_false=slots,
            lowest_below=LOW,
            lowest_rows=lowest_rows,
            lowest_margin_false=lowest_slots,
        )
