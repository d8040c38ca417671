"""What is worth a word about a store, beside the counts: sentences, in one place."""

from __future__ import annotations

from ..rules.config import CONFIG_FILE, Config, default_curriculum
from ..rules.schema import ARTIFACTS
from .manifest import Manifest


def remarks(config: Config, manifest: Manifest) -> list[str]:
    """What reports, `inspect` and `verify` say of a store that is sound, a sentence each."""
    return [
        *_edited(config, manifest),
        *([defaults] if (defaults := default_curriculum(config)) else []),
        *_beyond(manifest),
        *_nonfinite(manifest),
        *_narrowed(manifest),
    ]


def _edited(config: Config, manifest: Manifest) -> list[str]:
    if manifest.config_sha256 in (None, config.sha256):
        return []
    return [
        f"{CONFIG_FILE} was edited since the conversion (that is allowed; jasper-convert checks it"
        " again and takes note of it)."
    ]


def _nonfinite(manifest: Manifest) -> list[str]:
    return [
        f"{name} holds {entry.nonfinite:,} NaN or infinite value{_s(entry.nonfinite)}, kept by"
        " --allow-nonfinite, and batches of these rows do too. Unless that is meant, correct the"
        " .pt file and convert again without it."
        for name, entry in manifest.artifacts.items()
        if entry.nonfinite
    ]


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _beyond(manifest: Manifest) -> list[str]:
    return [
        f"{name} holds {count:,} finite value{_s(count)} that {'is' if count == 1 else 'are'}"
        " infinite as float32, as batches are."
        for name, count in (manifest.beyond_float32 or {}).items()
        if name in ARTIFACTS
    ]


def _narrowed(manifest: Manifest) -> list[str]:
    """Tables that version 0.1.0 stored narrower and this one would not."""
    return [
        f"{name} is stored as {entry.dtype}, narrower than it came, by an earlier version;"
        " jasper-convert with --dtype or --force stores it as it came."
        for name, entry in manifest.artifacts.items()
        if entry.cosine_error is not None and not ARTIFACTS[name].narrow
    ]
