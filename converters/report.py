"""What a conversion did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What was written, what was left alone, and what is worth knowing about the data."""

    store: Path
    store_id: str
    generation: int
    """The generation of hard negatives in force."""
    written: tuple[str, ...]
    """Artifacts whose files were written, those of a new generation too."""
    left_alone: tuple[str, ...]
    """Artifacts whose files already held the same content."""
    derived: tuple[str, ...]
    """Artifacts whose `.pt` file is missing and that were computed."""
    bytes_written: int
    seconds: float
    warnings: dict[str, int]
    """Name -> count; `jasper_mmap.lint.MEANING` says what each one counts. 0 is all well."""
    shares: dict[str, float]
    """The counts of rows of negatives, as shares of the pairs."""
    cosine_error: dict[str, dict[str, float]]
    """Artifact -> p50, p99, max of 1 - cos, of those stored narrower than they came."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return {**asdict(self), "store": str(self.store)}
