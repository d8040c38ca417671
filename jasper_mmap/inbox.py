"""A folder into which a miner drops pairs of `.pt` files, published one after the other.

A pair is complete when both files are there, their size and time rest, and they load. It then
becomes a generation and moves to `done/`, or to `failed/` with the reason beside.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .atomic import storage_errors
from .errors import ContentError, FormatError, IndexRangeError, JasperError, UsageError
from .locks import now
from .ptfile import Stamp
from .schema import NEGATIVES

FOLDER: Final = "inbox"
DONE: Final = "done"
FAILED: Final = "failed"

_NAMES: Final = tuple(a.name for a in NEGATIVES)

_log = logging.getLogger("jasper_mmap")


def inbox_pattern(store: Path, given: str | None) -> Path:
    """The pattern of the files of hard negatives: `given`, `*hard_negatives*.pt` in the folder
    `given`, or that in the store's folder `inbox` (which is made)."""
    name = f"*{_NAMES[0]}*.pt"
    if given is None:
        folder = store / FOLDER
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        return folder.absolute() / name
    pattern = Path(given).absolute()
    if pattern.is_dir():
        return pattern / name
    if _NAMES[0] not in pattern.name:
        raise UsageError(
            f"{given}: must be a folder, or a pattern with {_NAMES[0]!r} in its last part (the"
            f" tiers' file has {_NAMES[1]!r} there instead)."
        )
    return pattern


@dataclass
class _Pair:
    """Two files that were seen, and since when they rest."""

    paths: tuple[Path, Path]
    stamps: tuple[Stamp, Stamp] | None = None
    since_s: float = 0.0
    settled: tuple[Stamp, Stamp] | None = None
    """As they were when they were published or refused: not to be tried again, even where they
    could not be moved away."""
    told: set[str] = field(default_factory=set)

    @property
    def is_settled(self) -> bool:
        return self.stamps is not None and self.stamps == self.settled


class Inbox:
    """Publishes what lies in an inbox; `look` once in a while, from one thread.

    `publish(hard_negatives, negative_tiers, note=...)` takes paths and returns the generation.
    Files that rest for `settle_s` seconds are tried. Those that do not load then may still be
    being written, so they fail only after `patience_s`.
    """

    def __init__(
        self,
        pattern: Path,
        publish: Callable[..., int],
        *,
        settle_s: float = 2.0,
        patience_s: float = 30.0,
    ) -> None:
        self._pattern = pattern
        self._publish = publish
        self._settle_s = settle_s
        self._patience_s = patience_s
        self._pairs: dict[Path, _Pair] = {}

    def look(self) -> None:
        """Publish what is complete, the oldest first; what goes wrong is logged."""
        try:
            found = sorted(
                (path.stat().st_mtime_ns, path)
                for path in self._pattern.parent.glob(self._pattern.name)
            )
        except OSError as error:
            _log.warning("cannot look into %s: %s", self._pattern.parent, error)
            return
        paths = [path for _, path in found]
        self._pairs = {p: self._pairs.get(p) or _Pair((p, _partner(p))) for p in paths}
        for pair in self._pairs.values():
            resting_s = self._resting_s(pair)
            if resting_s is not None and resting_s >= self._settle_s and not pair.is_settled:
                self._take(pair, resting_s)

    def _resting_s(self, pair: _Pair) -> float | None:
        """Seconds for which both files were seen unchanged; None where one is missing."""
        stamps = _stamps(pair.paths)
        if stamps is None:
            self._tell_once(pair, f"waiting for {pair.paths[1].name} beside {pair.paths[0]}")
            pair.stamps = None
            return None
        if stamps != pair.stamps:
            pair.stamps, pair.since_s = stamps, time.monotonic()
        return time.monotonic() - pair.since_s

    def _take(self, pair: _Pair, resting_s: float) -> None:
        folder = pair.paths[0].parent
        try:
            # Before publishing: what cannot be moved away would be published again and again.
            for name in (DONE, FAILED):
                (folder / name).mkdir(exist_ok=True)
            generation = self._publish(*pair.paths, note=f"from {pair.paths[0].name}")
        except FormatError as error:
            if resting_s >= self._patience_s:
                self._fail(pair, error)
            else:
                self._tell_once(pair, f"not complete yet: {error}")
        except (ContentError, IndexRangeError) as error:
            self._fail(pair, error)
        except (JasperError, OSError) as error:
            # Not for what is in the files: the store, the lock, the disk.
            self._tell_once(pair, f"will try again: {error}")
        else:
            self._move(pair, DONE, f"{generation:06d}")

    def _fail(self, pair: _Pair, error: JasperError) -> None:
        _log.error("refused %s: %s", pair.paths[0], error)
        mark = now().replace(":", "").replace("+0000", "")
        self._move(pair, FAILED, mark, reason=str(error))

    def _move(self, pair: _Pair, folder: str, mark: str, reason: str | None = None) -> None:
        """Put the pair away, unless it was written anew meanwhile: that is for the next look."""
        pair.settled = pair.stamps
        if _stamps(pair.paths) != pair.stamps:
            return
        try:
            for path in pair.paths:
                target = path.parent / folder / f"{mark}-{path.name}"
                path.replace(target)
                if reason is not None:
                    target.with_suffix(".reason.txt").write_text(f"{reason}\n")
        except OSError as error:
            _log.warning("cannot move %s to %s: %s", pair.paths[0], folder, error)

    def _tell_once(self, pair: _Pair, message: str) -> None:
        if message not in pair.told:
            pair.told.add(message)
            _log.warning("%s", message)


def _stamps(paths: tuple[Path, Path]) -> tuple[Stamp, Stamp] | None:
    """As both files are now; None where one is missing."""
    try:
        return Stamp.of(paths[0]), Stamp.of(paths[1])
    except JasperError:
        return None


def _partner(path: Path) -> Path:
    return path.with_name(path.name.replace(_NAMES[0], _NAMES[1]))
