"""Durations counted in fixed, logarithmic buckets: however many, they take the same memory."""

from __future__ import annotations

from typing import Final

_BITS: Final = 4
_LINEAR: Final = 1 << _BITS
"""Buckets of 1 ns each, and buckets of each later power of two: they are 1/16 to 1/32 wide."""
_BUCKETS: Final = (64 - _BITS) * _LINEAR
"""Enough for 2**63 ns."""


class Histogram:
    """Counts of durations in nanoseconds; one thread adds, any thread reads."""

    __slots__ = ("_counts", "longest", "total")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.total = 0
        """The sum of all durations, exact."""
        self.longest = 0
        """The longest duration, exact."""

    def add(self, duration: int) -> None:
        """Count one duration (>= 0 ns)."""
        shift = duration.bit_length() - _BITS - 1
        # The bits below the first five are dropped; the shift says which power of two they began.
        bucket = (shift << _BITS) + (duration >> shift) if shift > 0 else duration
        self._counts[bucket] += 1
        self.total += duration
        if duration > self.longest:
            self.longest = duration

    @property
    def count(self) -> int:
        """How many durations were added."""
        return sum(self._counts)

    def quantile(self, share: float) -> float | None:
        """The duration in ns that `share` of the durations do not exceed, within 3.2 %; None
        without any."""
        counts = self._counts.copy()
        rank = max(1, -int(-share * sum(counts) // 1))
        below = 0
        for bucket, count in enumerate(counts):
            below += count
            if below >= rank:
                return min(_middle(bucket), float(self.longest))
        return None


def _middle(bucket: int) -> float:
    if bucket < 2 * _LINEAR:
        return float(bucket)
    shift = (bucket >> _BITS) - 1
    begin = (bucket - (shift << _BITS)) << shift
    return begin + ((1 << shift) - 1) / 2
