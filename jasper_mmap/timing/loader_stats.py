"""What a loader has measured, as numbers and as a line of text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .histogram import Histogram


@dataclass(frozen=True, kw_only=True)
class Times:
    """Durations in seconds; quantiles are within 3.2 %, and None where nothing was measured yet."""

    count: int
    p50_s: float | None
    p99_s: float | None
    longest_s: float | None
    total_s: float

    @classmethod
    def of(cls, histogram: Histogram) -> Times:
        """The durations that a histogram has counted."""
        count, p50, p99 = histogram.count, histogram.quantile(0.5), histogram.quantile(0.99)
        return cls(
            count=count,
            p50_s=None if p50 is None else p50 / 1e9,
            p99_s=None if p99 is None else p99 / 1e9,
            longest_s=histogram.longest / 1e9 if count else None,
            total_s=histogram.total / 1e9,
        )


@dataclass(frozen=True, kw_only=True)
class LoaderStats:
    """What was measured of the latest pass of a loader, so far.

    Where batches do not come from this package's loader, they are those made since the latest
    `set_epoch`, and what only the loader can measure is None; `note` says why.
    """

    split: str
    """Its name; several with commas."""
    epoch: int | None
    """None where several datasets differ."""
    workers: int | None = None
    """Number of worker processes; None where the loader is not this package's."""
    batches: int
    """Batches that were returned; of another loader, those made, including queued ones."""
    samples: int
    samples_per_s: float | None = None
    """Samples over the time between requests; None until there is such a time."""
    ready_share: float | None = None
    """Share of batches that were ready when they were requested; None without workers."""
    waited_share: float | None = None
    """Share of the time between requests that is waiting for data; None until there is such a time.
    """
    waits: Times | None = None
    """From the request for a batch to its return; without workers, the time of the gather."""
    steps: Times | None = None
    """From one request to the next: the wait, and what the trainer did with the batch."""
    first_wait_s: float | None = None
    """The wait for the first batch, in which workers start."""
    slot_fallbacks: int
    """How often no slot was free, since the trainer keeps batches."""
    generation: int | None
    """The generation of hard negatives that is served; None where several datasets differ."""
    batches_since_change: int
    """Batches since that generation came into service, in earlier passes too; the first of them may
    have been queued before."""
    note: str = ""
    """Why something is not measured; else empty."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    def __str__(self) -> str:
        where = self.split if self.epoch is None else f"{self.split} epoch {self.epoch}"
        made = f"{_count(self.batches, 'batch', 'es')}, {_count(self.samples, 'sample')}"
        if self.samples_per_s is not None:
            made += f", {self.samples_per_s:,.0f} samples/s"
        parts = [made, *self._waiting(), _count(self.slot_fallbacks, "slot fallback")]
        if self.generation is not None:
            since = _count(self.batches_since_change, "batch", "es")
            parts.append(f"generation {self.generation}, {since} since it changed")
        if self.note:
            parts.append(self.note)
        return f"{where}: {'; '.join(parts)}"

    def _waiting(self) -> list[str]:
        waits, steps = self.waits, self.steps
        if waits is None or steps is None or not waits.count:
            return []
        waited = f"waited {_duration(waits.total_s)}"
        if self.waited_share is not None:
            waited += f" of {_duration(steps.total_s)} for data ({self.waited_share:.1%})"
        waited += f", the first batch {_duration(self.first_wait_s)}"
        if self.ready_share is not None:
            waited += f", {self.ready_share:.1%} of batches were ready"
        parts = [waited, f"wait {_quantiles(waits)}"]
        if steps.count:
            parts.append(f"step {_quantiles(steps)}")
        return parts


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{'' if number == 1 else plural}"


def _duration(seconds: float | None) -> str:
    seconds = seconds or 0.0
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _quantiles(times: Times) -> str:
    return f"p50 {_duration(times.p50_s)}, p99 {_duration(times.p99_s)}"
