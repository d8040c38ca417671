"""The results of the demonstration, and its failures.

Shape letters: `N` n_neg.
"""

import math
from dataclasses import dataclass

from jasper_mmap.console import echo_table

LOSS_MUST_FALL_TO = 0.8
"""Limit of the last epoch's loss as a share of the first one's."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The report of one epoch; `loss` is the mean over its batches."""

    number: int
    zero_share: float
    generation: int
    loss: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How well a split's targets are ranked among their own negatives."""

    accuracy: float
    """Share of pairs whose target is nearer to the prediction than all N negatives."""
    mean_rank: float
    """1 is best, N + 1 worst."""


def print_training(epochs: list[Epoch]) -> None:
    """Print the zero steering, negatives and loss of each epoch."""
    rows = [
        (
            str(epoch.number),
            f"{epoch.zero_share:.0%}",
            f"generation {epoch.generation}",
            f"{epoch.loss:.3f}",
            f"{epoch.seconds:.1f}",
        )
        for epoch in epochs
    ]
    header = ("epoch", "zero steering", "negatives", "loss", "seconds")
    echo_table(header, rows, title="Training")


def print_retrieval(results: dict[str, Retrieval], split: str, n_neg: int) -> None:
    """Print the accuracy and mean rank of each forced steering, and those of chance."""
    chance = Retrieval(accuracy=1 / (n_neg + 1), mean_rank=(n_neg + 2) / 2)
    rows = [
        (name, f"{result.accuracy:.1%}", f"{result.mean_rank:.2f}")
        for name, result in {**results, "(chance)": chance}.items()
    ]
    title = f"Target among {n_neg} negatives, {split}"
    echo_table(("steering", "ranked first", "mean rank"), rows, title=title)


def shortcomings(epochs: list[Epoch], results: dict[str, Retrieval], n_neg: int) -> list[str]:
    """Return the failures of the demonstration; [] on success."""
    first, last = epochs[0].loss, epochs[-1].loss
    chance = 1 / (n_neg + 1)
    least = min(3 * chance, (1 + chance) / 2)
    failed = no_numbers(epochs)
    if not failed and not last <= LOSS_MUST_FALL_TO * first:
        failed.append(f"the loss went from {first:.3f} to {last:.3f}, but should fall by a fifth")
    failed += [
        f"{name} steering: {result.accuracy:.1%} ranked first, at least {least:.1%} expected"
        for name, result in results.items()
        if not result.accuracy >= least
    ]
    return failed


def no_numbers(epochs: list[Epoch]) -> list[str]:
    """Return messages about the epochs whose loss is not finite."""
    return [
        f"the loss of epoch {epoch.number} is {epoch.loss}"
        for epoch in epochs
        if not math.isfinite(epoch.loss)
    ]
