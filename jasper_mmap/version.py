"""The version of this package."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("jasper-mmap")
    """As pip knows it; "(checkout)" where the package was not installed."""
except metadata.PackageNotFoundError:
    __version__ = "(checkout)"
