"""`manifest.json`: the content of a store. It is written last and so commits a conversion."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import (
    FormatError,
    MissingFileError,
    NewerFormatError,
    StoreChangedError,
    UnsafeFileError,
)
from ..files import atomic
from ..files.failures import STAGING as STAGING
from ..files.missing_paths import entries_of, must_be_folder
from ..files.safetensors import DTYPES
from ..rules.schema import EMBEDDING_DTYPES, STORED

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1

# At the top level, where older versions ignore unknown keys.
_SINCE_0_2 = ("config_sha256", "beyond_float32", "embeddings_dtype")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One artifact's file, as it was checked and written."""

    file: str
    dtype: str
    """By its safetensors name; of a ragged artifact, the dtype of the values."""
    shape: tuple[int, ...]
    """Of a ragged artifact (rows, values)."""
    bytes: int
    sha256: str
    mtime_ns: int
    source: dict[str, Any]
    """The `.pt` file (name, bytes, mtime_ns), or `derived_from` with a list of those."""
    ranges: tuple[tuple[float, float], ...] = ()
    """(smallest, largest) value of an integer or bounded table, one for each column if the columns
    refer to different tables; empty if the table is empty or has no bounds."""
    nonfinite: int = 0
    cosine_error: dict[str, float] | None = None
    """The error of narrowing (p50, p99, max), if the table was narrowed."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype in torch."""
        return DTYPES[self.dtype]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {k: v for k, v in asdict(self).items() if v is not None and v != ()}

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str) -> Entry:
        """Parse `value`, read from `where`; raises `FormatError` or `UnsafeFileError`."""
        wrong = wrong_keys(cls, value)
        try:
            entry = cls(**value)
            entry = replace(
                entry,
                shape=tuple(entry.shape),
                ranges=tuple((low, high) for low, high in entry.ranges),
            )
            numbers = [entry.bytes, entry.mtime_ns, *entry.shape]
            sound = all(isinstance(n, int) for n in numbers) and entry.dtype in DTYPES
        except (TypeError, ValueError) as error:
            raise FormatError(
                f"{where}: not a valid entry of an artifact ({wrong or str(error):.160}), so the"
                " file was edited or damaged. Convert again."
            ) from None
        if not sound:
            raise FormatError(
                f"{where}: bytes, mtime_ns and shape must be integers, and dtype one of"
                f" {', '.join(DTYPES)}. Convert again."
            )
        plain_name(entry.file, where)
        return entry


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The entries of all artifacts but the negatives, and counts over all of them."""

    artifacts: dict[str, Entry]
    warnings: dict[str, int]
    created: str
    """When the conversion ended (UTC, ISO 8601)."""
    converter: str
    # None, here and below: written by a version that did not know the field.
    config_sha256: str | None = None
    """SHA-256 of the converted `config.json`."""
    beyond_float32: dict[str, int] | None = None
    """Artifact -> count of its finite values that are infinite as float32, if it has any."""
    embeddings_dtype: str | None = None
    """The requested dtype of embeddings and steering; None also if none was requested."""

    @property
    def store_id(self) -> str:
        """The id of the content: equal for stores whose files are equal byte for byte."""
        lines = sorted(f"{name} {entry.sha256}" for name, entry in self.artifacts.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    @property
    def narrowed_to(self) -> str | None:
        """The requested `embeddings_dtype`; if it was not recorded, inferred from the files."""
        return self.embeddings_dtype or narrowed_to(self.artifacts.values())

    @property
    def nbytes(self) -> int:
        """Total bytes of its files."""
        return sum(entry.bytes for entry in self.artifacts.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Shape letter -> size."""
        shapes = {name: entry.shape for name, entry in self.artifacts.items()}
        return {
            "N_q": shapes["question_embs"][0],
            "N_s": shapes["source_embs"][0],
            "N_k": shapes["keyword_embs"][0],
            "N_c": shapes["centroid_embs"][0],
            "N_p": shapes["pair_index"][0],
            "D": shapes["question_embs"][1],
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "format_version": FORMAT_VERSION,
            "store_id": self.store_id,
            "created": self.created,
            "converter": self.converter,
            "warnings": self.warnings,
            **{name: value for name in _SINCE_0_2 if (value := getattr(self, name)) is not None},
            "artifacts": {name: entry.to_dict() for name, entry in self.artifacts.items()},
        }


def _since_0_2(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields that version 0.1.0 did not write; raise `FormatError` if invalid."""
    values = {name: value.get(name) for name in _SINCE_0_2}
    sha256, counts, dtype = values.values()
    sound = (
        (sha256 is None or isinstance(sha256, str))
        and (counts is None or isinstance(counts, dict))
        and all(type(n) is int and n > 0 for n in (counts or {}).values())
        and dtype in (None, *EMBEDDING_DTYPES)
    )
    if not sound:
        raise FormatError(
            f"{path}: {_SINCE_0_2[0]} must be a string, {_SINCE_0_2[1]} an object of integers > 0,"
            f" and {_SINCE_0_2[2]} one of {', '.join(EMBEDDING_DTYPES)}. Convert again."
        )
    return values


def narrowed_to(entries: Iterable[Entry]) -> str | None:
    """The `embeddings_dtype` to which tables were narrowed, if any was."""
    narrowed = {entry.torch_dtype for entry in entries if entry.cosine_error is not None}
    return next((name for name, dtype in EMBEDDING_DTYPES.items() if dtype in narrowed), None)


def wrong_keys(cls: type, value: dict[str, Any]) -> str | None:
    """Describe the first missing or unknown key of a JSON object for the dataclass `cls`."""
    known = {field.name: field.default is MISSING for field in fields(cls)}
    missing = [key for key, needed in known.items() if needed and key not in value]
    if missing:
        return f"the key {missing[0]!r} is missing"
    unknown = next((key for key in value if key not in known), None)
    return None if unknown is None else f"unknown key {unknown!r:.80}"


def plain_name(name: object, where: str) -> str:
    """Return `name` if it is a plain file name, without a folder part; else `UnsafeFileError`."""
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or "/" in name
        or "\\" in name
        or "\0" in name
    ):
        raise UnsafeFileError(
            f"{where}: {name!r:.80} must be a plain file name (no folder part), so the file was"
            " edited or damaged. Convert again."
        )
    return name


def _committed(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    # Twice, since a conversion may end between the check of its manifest and that of its folder.
    for _ in range(2):
        try:
            return atomic.read_json(path)
        except MissingFileError:
            if atomic.exists(folder / STAGING):
                raise StoreChangedError(
                    f"{folder}: a conversion of this store is running or was interrupted; wait for"
                    " it, or run jasper-convert again to complete it."
                ) from None
    what = f"{path} not found: {folder} is not a converted store"
    for below in entries_of(folder):
        if (below / MANIFEST_FILE).exists():
            raise MissingFileError(f"{what}, but {below} is; name that folder.")
    raise MissingFileError(
        f"{what}. If it holds the builder's .pt files, run: jasper-convert {folder}"
    )


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises `MissingFileError` if there is no store, `StoreChangedError` if a conversion is running
    or was interrupted, `FormatError` for a damaged or newer manifest.
    """
    path = folder / MANIFEST_FILE
    must_be_folder(folder)
    value = _committed(folder)
    version = value.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise FormatError(
            f"{path}: format_version must be an integer >= 1, found {version!r:.80}, so the file"
            " was edited or damaged. Convert the builder's folder again, or copy the store again."
        )
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{path}: the store was written by a newer version of this package. Its format version"
            f" is {version!r:.80}, this version reads up to {FORMAT_VERSION}; install a newer"
            " jasper-mmap."
        )
    entries = value.get("artifacts")
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise FormatError(
            f"{path}: 'artifacts' must be a JSON object with an object for each artifact, so the"
            " file was edited or damaged. Convert again."
        )
    for artifact in STORED:
        if artifact.name not in entries:
            raise FormatError(
                f"{path}: 'artifacts' has no entry for {artifact.name}. Convert again."
            )
    warnings = value.get("warnings") or {}
    if not isinstance(warnings, dict) or not all(type(n) is int for n in warnings.values()):
        raise FormatError(f"{path}: 'warnings' must be an object of integers. Convert again.")
    manifest = Manifest(
        artifacts={a.name: Entry.from_dict(entries[a.name], f"{path}: {a.name}") for a in STORED},
        warnings=warnings,
        created=str(value.get("created", "")),
        converter=str(value.get("converter", "")),
        **_since_0_2(value, path),
    )
    if value.get("store_id") != manifest.store_id:
        raise FormatError(
            f"{path}: its store_id does not match its checksums, so the file was edited or damaged."
            " Convert again."
        )
    return manifest
