"""The report of a conversion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What was written, what was unchanged, and counts and warnings about the data."""

    store: Path
    store_id: str
    generation: int
    """The current generation of hard negatives."""
    written: tuple[str, ...]
    """Artifacts whose files were written, including those of a new generation."""
    left_alone: tuple[str, ...]
    """Artifacts whose files already held the same content."""
    derived: tuple[str, ...]
    """Artifacts that were computed, since their `.pt` file is missing."""
    bytes_written: int
    seconds: float
    warnings: dict[str, int]
    """Name -> count, described by `jasper_mmap.store.lint.MEANING`; 0 is good."""
    shares: dict[str, float]
    """The counts of rows of negatives, as shares of the pairs."""
    notes: tuple[str, ...]
    """Other warnings, a sentence each."""
    cosine_error: dict[str, dict[str, float]]
    """Narrowed artifact -> p50, p99, max of 1 - cos."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "store": str(self.store)}


def narrowing_notes(asked: str | None, old: Manifest | None, new: Manifest) -> list[str]:
    """Notes about tables that stay narrowed, or no longer are.

    `asked` is the `embeddings_dtype` of this conversion, `old` the manifest before it.
    """
    notes = []
    dtype = new.embeddings_dtype
    kept = [name for name in _narrowed(new) if ARTIFACTS[name].narrow]
    if asked is None and kept:
        notes.append(
            f"{', '.join(kept)}: stored as {dtype}, as in an earlier conversion; --dtype source"
            " (embeddings_dtype='source') restores the original dtype."
        )
    back = [n for n in _narrowed(old) if n not in _narrowed(new)] if old is not None else []
    if back and old is not None and old.store_id != new.store_id:
        notes.append(
            f"{', '.join(back)}: no longer narrowed, so the store's id changed ({old.store_id}"
            f" before, {new.store_id} now): restart running trainings."
        )
    return notes


def _narrowed(manifest: Manifest) -> list[str]:
    return [name for name, e in manifest.artifacts.items() if e.cosine_error is not None]
