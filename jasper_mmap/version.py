"""The version of this package, for those who ask and for what it writes."""

from __future__ import annotations

from importlib import metadata


def installed_version() -> str:
    """As pip knows it; "(checkout)" where the package was not installed."""
    try:
        return metadata.version("jasper-mmap")
    except metadata.PackageNotFoundError:
        return "(checkout)"
