"""The builder's two files of negatives, which it saves one after the other.

A reader in between would combine the negatives of one pair with the tiers of another. A file
changes as soon as `torch.save` opens it, so this waits until the stamps no longer change.
"""

from __future__ import annotations

import logging
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ..errors import FormatError, MissingFileError
from ..files.stamp import Stamp
from ..rules.schema import NEGATIVES
from ..store.pointer import Pointer

ALONE_S: Final = 5.0
"""How long a file that changed alone must be stable: a builder opens the second one sooner."""
BOTH_S: Final = 1.0
"""How long both must be stable once both have changed."""
PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.05

Stamps = dict[str, Any]
"""Artifact -> stamp of its `.pt` file, as in `Pointer.source`."""

_log = logging.getLogger("jasper_mmap")


class PairWatch:
    """The stamps of builders' pairs that a process has seen, and since when: a file that was stable
    before a call is not waited for. `clock` counts seconds, `sleep` waits for some."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._seen: dict[Path, tuple[Stamp, float]] = {}

    def settled(self, folder: Path, made: Mapping[str, Any]) -> Stamps:
        """Wait until both files in `folder` are a stable pair; return their stamps.

        `made` has those from which a generation was last made. Returns at once if neither differs,
        or if both do and are complete archives; else when both have changed and are stable for
        `BOTH_S`, or one alone for `ALONE_S`. Call it without any lock held. Raises `FormatError`
        after `PATIENCE_S`.
        """
        end = self._clock() + PATIENCE_S
        paths = {a.name: folder / a.source for a in NEGATIVES}
        waited = False
        while True:
            stamps = {name: _stamp(path) for name, path in paths.items()}
            as_source = {name: stamp.to_dict() for name, stamp in stamps.items() if stamp}
            changed = [name for name in paths if as_source.get(name) != made.get(name)]
            rests_s = [self._rests_s(paths[name], stamps[name]) for name in changed]
            both = len(changed) == len(paths)
            if not changed or min(rests_s) >= (BOTH_S if both else ALONE_S):
                return as_source
            if both and not waited and all(zipfile.is_zipfile(paths[name]) for name in changed):
                return as_source
            if self._clock() >= end:
                moving = " and ".join(str(paths[name]) for name in changed)
                raise FormatError(
                    f"{moving}: still being written after {PATIENCE_S:g} s; run it again when the"
                    " builder is done."
                )
            waited = True
            self._sleep(_LOOK_S)

    def _rests_s(self, path: Path, stamp: Stamp | None) -> float:
        """Seconds since this stamp was first seen here; 0 for a missing file."""
        now = self._clock()
        if stamp is None:
            self._seen.pop(path, None)
            return 0.0
        known, since = self._seen.get(path, (None, now))
        if known != stamp:
            since = now
            self._seen[path] = stamp, since
        return now - since


PAIRS: Final = PairWatch()
"""The watch of this process."""


def warn_of_half(pointer: Pointer, made: Mapping[str, Any]) -> None:
    """Log a warning if only one of the builder's files of the new generation had changed.

    `made` is the history's entry of the previous generation made from them.
    """
    same = [a for a in NEGATIVES if pointer.source.get(a.name) == made["source"].get(a.name)]
    if len(same) != 1:
        return
    (old,) = same
    (new,) = (a for a in NEGATIVES if a is not old)
    _log.warning(
        "generation %d was made from a new %s and from %s as it was for generation %d. If the"
        " builder should have written both, write %s too and run it again.",
        pointer.generation,
        new.source,
        old.source,
        made["generation"],
        old.source,
    )


def _stamp(path: Path) -> Stamp | None:
    try:
        return Stamp.of(path)
    except MissingFileError:
        return None
