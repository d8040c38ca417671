"""A sampler of batches of positions that was given to a loader."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from .plan import PassPlan


class GivenSampler:
    """A sampler of batches that was given, without the first `plan.start` positions of a resumed
    pass; without a plan, the sampler itself gives the rest."""

    def __init__(self, batches: Iterable[Any], plan: PassPlan | None) -> None:
        self._batches = batches
        self.plan = plan
        self.largest = 0
        """Most positions of a batch so far."""
        self.sizes: deque[int] = deque()
        """Of the batches that the latest iteration gave, for who takes them off."""

    def __iter__(self) -> Iterator[Any]:
        sizes: deque[int] = deque()
        self.sizes = sizes
        return _without(self.plan.start if self.plan else 0, self._batches, sizes)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # raises what torch's loader raises

    @property
    def rows(self) -> int:
        """The most rows that its batches may be expected to have."""
        size = getattr(self._batches, "batch_size", None)
        return max(self.largest, size if isinstance(size, int) else 0)


def _without(start: int, batches: Iterable[Any], sizes: deque[int]) -> Iterator[Any]:
    for batch in batches:
        size = len(batch)
        if not start or start < size:
            sizes.append(size - start)
            yield batch[start:] if start else batch
        start = max(0, start - size)
