"""The builder's two files of negatives, which it saves one after the other.

Whoever reads them in between would make a generation of the negatives of one pair and the tiers of
another one. A file has changed as soon as `torch.save` opens it, so stamps are looked at until
they rest.
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
"""How long a file that changed alone must rest: a builder opens the second one sooner."""
BOTH_S: Final = 1.0
"""How long both must rest once the second one followed."""
PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.05

Stamps = dict[str, Any]
"""Artifact -> stamp of its `.pt` file, as `Pointer.source`."""

_log = logging.getLogger("jasper_mmap")


class PairWatch:
    """What a process has seen of builders' pairs, and since when: a file that rested before a call
    need not rest again. `clock` counts seconds, `sleep` waits for some."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._seen: dict[Path, tuple[Stamp, float]] = {}

    def settled(self, folder: Path, made: Mapping[str, Any]) -> Stamps:
        """The stamps of both files in `folder`, once they are one pair that rests.

        `made` has those from which a generation was last made. At once where neither differs, or
        where both do and are complete archives; else it waits until both have changed and rest for
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
        """Seconds since which this stamp was seen here; a file that is not there does not rest."""
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
"""Of this process."""


def warn_of_half(pointer: Pointer, made: Mapping[str, Any]) -> None:
    """Log that a generation just made of the builder's files took one of them as it was.

    `made` is the history's entry of the generation last made from them before.
    """
    same = [a for a in NEGATIVES if pointer.source.get(a.name) == made["source"].get(a.name)]
    if len(same) != 1:
        return
    (old,) = same
    (new,) = (a for a in NEGATIVES if a is not old)
    _log.warning(
        "generation %d was made of a new %s and of %s as it was for generation %d. If the builder"
        " was to write both, write %s too and do it again.",
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
