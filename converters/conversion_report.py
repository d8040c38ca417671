"""What a conversion did, for its caller to show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.manifest import Manifest


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
    """Name -> count; `jasper_mmap.store.lint.MEANING` says what each one counts. 0 is all well."""
    shares: dict[str, float]
    """The counts of rows of negatives, as shares of the pairs."""
    notes: tuple[str, ...]
    """What else is worth a warning, a sentence each."""
    cosine_error: dict[str, dict[str, float]]
    """Artifact -> p50, p99, max of 1 - cos, of those stored narrower than they came."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return {**asdict(self), "store": str(self.store)}


def narrowing_notes(asked: str | None, old: Manifest | None, new: Manifest) -> list[str]:
    """What there is to say of tables stored narrower than they came, or no longer so.

    `asked` is the `embeddings_dtype` of this conversion, `old` what was there before it.
    """
    notes = []
    dtype = new.embeddings_dtype
    kept = [name for name in _narrowed(new) if ARTIFACTS[name].narrow]
    if asked is None and kept:
        notes.append(
            f"{', '.join(kept)}: stored as {dtype}, as asked for in an earlier conversion; --dtype"
            " source (embeddings_dtype='source') goes back."
        )
    back = [n for n in _narrowed(old) if n not in _narrowed(new)] if old is not None else []
    if back and old is not None and old.store_id != new.store_id:
        notes.append(
            f"{', '.join(back)}: stored as they came again, and no longer narrower, so the store's"
            f" id changed ({old.store_id} before, {new.store_id} now): running trainings have to be"
            " started again."
        )
    return notes


def _narrowed(manifest: Manifest) -> list[str]:
    return [name for name, e in manifest.artifacts.items() if e.cosine_error is not None]
