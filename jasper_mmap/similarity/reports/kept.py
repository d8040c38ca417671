"""Lints that are kept beside the generations: one file for the store, one for a generation.

Nothing that serves a dataset reads them. A name has a digest of what the numbers depend on, and
another of the options, so a file never stands for another store, generation, rule or sample.
Call what writes with the publishers' lock held.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from ...errors import JasperError
from ...files import atomic
from ...store.pointer import FOLDER
from .jsonform import parsed_as, plain
from .summary import RULE

_NAME: Final = re.compile(r"lint-(?:store|generation)-([0-9a-f]{16})-[0-9a-f]{16}\.json")
_MOST: Final = 16
"""Files of other options that stay."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Key:
    """What a kept lint depends on: the store, the SHA-256 of the generation's file if it is one of
    a generation, and every option that changes a number."""

    store_id: str
    sha256: str | None
    options: Mapping[str, Any]

    @property
    def subject(self) -> str:
        """A digest of all but the options."""
        return _digest([RULE, self.store_id, self.sha256])

    @property
    def name(self) -> str:
        """The name of the file."""
        kind = "store" if self.sha256 is None else "generation"
        return f"lint-{kind}-{self.subject}-{_digest(dict(self.options))}.json"

    def to_dict(self) -> dict[str, Any]:
        """The form in the file."""
        return {
            "rule": RULE,
            "store_id": self.store_id,
            "sha256": self.sha256,
            "options": dict(self.options),
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_kept(store: Path, key: Key, kind: type[_T]) -> _T | None:
    """Return the lint that is kept under `key`, or None: there is none, or it is damaged."""
    try:
        value = atomic.read_json(store / FOLDER / key.name)
        if value.get("depends_on") != key.to_dict():
            return None
        return parsed_as(kind, value.get("lint"))
    except (JasperError, ValueError):
        return None


def keep(store: Path, key: Key, lint: object) -> None:
    """Write a lint, durably."""
    value = {"depends_on": key.to_dict(), "lint": plain(lint)}
    atomic.write_json(store / FOLDER / key.name, value)


def forget_others(store: Path, store_id: str, generations: Iterable[str]) -> None:
    """Remove kept lints of other stores, and of generations whose SHA-256 is not given; of those
    that are left all but the latest few."""
    subjects = {Key(store_id, sha256, {}).subject for sha256 in (None, *generations)}
    dated = []
    with suppress(OSError):  # they harm nobody
        for path in (store / FOLDER).iterdir():
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            if match[1] in subjects:
                dated.append((path.lstat().st_mtime_ns, path))
            else:
                atomic.remove(path, missing_ok=True)
        for _, path in sorted(dated, reverse=True)[_MOST:]:
            atomic.remove(path, missing_ok=True)
