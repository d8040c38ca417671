"""A picture of the page: what it shows, as SVG, in a sentence and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..similarity.reports.report import Share

NONE = "-"
"""In a table: there is no such number."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers as text; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: tuple[int, ...] = ()
    """The columns, but for the first, that hold text and no numbers."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture; without `svg` there is nothing to draw, and `sentence` says why."""

    id: str
    title: str
    sentence: str
    svg: str | None
    """Safe: matplotlib wrote it, and no text of the store is in it."""
    tables: tuple[Table, ...]


def count(number: int) -> str:
    """A number of things."""
    return f"{number:,}"


def percent(share: float | Share | None) -> str:
    """A share, 0 to 1; one of nothing is none."""
    if isinstance(share, Share):
        share = share.share if share.of else None
    return NONE if share is None else _tenths(share)


def counted(share: Share | None) -> str:
    """A share with its count."""
    return NONE if share is None or not share.of else f"{share.count:,} ({_tenths(share.share)})"


def _tenths(share: float) -> str:
    """A share in percent; only nothing is 0.0%, and only all is 100.0%."""
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A cosine, or another number about 1."""
    return NONE if value is None else f"{value:.{digits}f}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
