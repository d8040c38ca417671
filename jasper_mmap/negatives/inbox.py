"""The inbox: a folder for pairs of files of a miner, published one after the other by a service.

A pair is complete when both files exist, their sizes and times no longer change, and they load. It
then becomes a generation and moves to `done/`, or to `failed/` beside the reason.

Errors are attributed by reading the files of the pair again. An error in the files refuses the
pair. Any other error, of the store, its lock, the disk or the system, leaves the pair where it is,
is logged once and retried at every look; other pairs do not wait for it.
"""

from __future__ import annotations

import errno
import logging
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from ..errors import (
    BusyError,
    ContentError,
    FormatError,
    JasperError,
    StorageError,
    StoreChangedError,
    UnsafeFileError,
)
from ..files.atomic import own_folder
from ..files.regular_files import open_regular
from ..printable import printable
from ..store.folder import Store
from ..store.pointer import read_pointer
from .candidate import take_in
from .dropped import Pair, Place, age_s, stamps_of
from .filing import DONE, FAILED, Filing, remove_expired

_NEVER_THE_PAIR: Final = (OSError, StoreChangedError, MemoryError)
_CLEARING_S: Final = 60.0
_OF_THE_FILE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM)
_MESSAGES: Final = 100
"""Limit of the logged messages that are remembered, so as not to repeat them."""

_log = logging.getLogger("jasper_mmap.inbox")


class Ending(Protocol):
    """What ends a service, for example a signal."""

    def came(self) -> bool:
        """Whether the service must end."""

    def wait(self, seconds: float) -> signal.Signals | None:
        """Wait up to `seconds`; return the signal that ends the service, or None."""


class Inbox:
    """Publishes the pairs in an inbox; call `look` regularly, from one thread.

    `publish(hard_negatives, negative_tiers, note=...)` takes paths and returns the generation: the
    current one if that has the same values. Files that did not change for `settle_s` seconds are
    tried. If they do not load, they may be incomplete, so they fail only after `patience_s`; with
    `by_age` also if they were last changed that long ago. Files older than `keep_days` are removed
    from `done/` and `failed/`. `refused` counts the pairs that failed, `stuck` has the error of
    each pair that the last look could not publish.
    """

    def __init__(
        self,
        store: Path,
        place: Place,
        publish: Callable[..., int],
        *,
        settle_s: float = 2.0,
        patience_s: float = 30.0,
        by_age: bool = False,
        keep_days: float | None = None,
    ) -> None:
        self._store = store
        self._place = place
        self._publish = publish
        self._settle_s = settle_s
        self._patience_s = patience_s
        self._by_age = by_age
        self._keep_days = keep_days
        self._pairs: dict[str, Pair] = {}
        self._next_clearing_s = 0.0
        self._said: set[str] = set()
        self.refused = 0
        self.stuck: dict[str, str] = {}

    def run(self, ending: Ending, interval_s: float) -> None:
        """Look every `interval_s` seconds until the end."""
        self._begin()
        self.look(ending.came)
        while (why := ending.wait(interval_s)) is None:
            self.look(ending.came)
        _say(logging.INFO, "ended", f"ended by {why.name}")

    def run_once(self, ending: Ending) -> None:
        """Publish complete pairs now; raise if one was refused or could not be published."""
        self._begin()
        self.look(ending.came)
        if ending.wait(self._settle_s) is None:  # files are settled by the second look
            self.look(ending.came)
        self._check()

    def _begin(self) -> None:
        """Create the inbox if it is missing, and log what is watched."""
        folder = self._place.folder
        if self._place.make():
            _say(logging.INFO, "created", f"created the inbox {folder}", inbox=str(folder))
        watched = " and ".join(self._place.patterns)
        _say(logging.INFO, "watching", f"watching {folder} for {watched}", inbox=str(folder))

    def _check(self) -> None:
        """Raise unless every complete pair was published, or equals the current generation."""
        folder = self._place.folder
        if self.stuck:
            raise StorageError(
                f"{folder}: {len(self.stuck)} of {len(self._pairs)} pairs could not be published:"
                f" {printable(next(iter(self.stuck.values())))}"
            )
        if self.refused:
            raise ContentError(
                f"{folder}: pairs refused: {self.refused}. The reasons are in files beside them in"
                f" {folder / FAILED}."
            )

    def look(self, ended: Callable[[], bool] = lambda: False) -> None:
        """Publish complete pairs, the oldest first; stop between two pairs once `ended()`."""
        self.stuck = {}
        self._clear_out()
        try:
            names = self._place.names()
        except OSError as error:
            self.stuck[str(self._place.folder)] = str(error)
            self._say_once(f"cannot read {self._place.folder}, will try again: {error}")
            return
        self._pairs = {name: self._pairs.get(name) or self._place.pair(name) for name in names}
        for pair in self._pairs.values():
            if ended():
                return
            try:
                self._see(pair)
            except BusyError as error:
                self._hindered(pair, error)
                return  # the lock is the same for all
            except Exception as error:  # noqa: BLE001 - no pair ends the service
                self._hindered(pair, error)

    def _clear_out(self) -> None:
        if self._keep_days is None or time.monotonic() < self._next_clearing_s:
            return
        self._next_clearing_s = time.monotonic() + _CLEARING_S
        try:
            for path in remove_expired(self._place.folder, self._keep_days):
                _say(logging.INFO, "removed", f"removed {path}", file=str(path))
        except (OSError, JasperError) as error:
            self._say_once(f"cannot remove files older than {self._keep_days:g} days: {error}")

    def _see(self, pair: Pair) -> None:
        """Publish a pair that no longer changes, and move away one that was handled before."""
        stamps = stamps_of(pair.paths)
        if stamps is None:
            self._say_once(
                f"waiting for {printable(pair.paths[1].name)} beside {pair.name}", pair, "waiting"
            )
            pair.stamps = None
            return
        if stamps != pair.stamps:
            pair.stamps, pair.since_s = stamps, time.monotonic()
        resting_s = time.monotonic() - pair.since_s
        if stamps == pair.settled:
            self._put_away(pair)
        elif resting_s >= self._settle_s:
            self._take(pair, resting_s)

    def _take(self, pair: Pair, resting_s: float) -> None:
        # Before publishing, since a pair that cannot be moved away would be published repeatedly.
        for name in (DONE, FAILED):
            own_folder(self._place.folder / name)
        before = _current_number(self._store)
        try:
            number = self._publish(*pair.paths, note=f"from {pair.name}")
        except Exception as error:  # `_fault_of` attributes it
            if stamps_of(pair.paths) != pair.stamps:
                return  # rewritten or removed
            fault = self._fault_of(pair, error)
            if fault is None:
                raise
            self._judge(pair, fault, resting_s)
            return
        self._said.clear()  # the errors are over; log them if they recur
        is_new = number != before
        _say(
            logging.INFO,
            "published" if is_new else "identical",
            f"published generation {number} from {pair.name}"
            if is_new
            else f"not published: {pair.name} has the values of generation {number}, which is"
            " already current",
            pair=pair.name,
            generation=number,
        )
        self._settle(pair, Filing.done(number))

    def _fault_of(self, pair: Pair, error: Exception) -> Exception | None:
        """The error in the pair's own files, found by reading them again; None if the `error` of
        publishing has another cause."""
        for path in pair.paths:
            try:
                open_regular(path).close()
            except JasperError as fault:
                return fault
            except OSError as fault:
                if fault.errno in _OF_THE_FILE:
                    return FormatError(f"{path}: cannot be read ({fault.strerror}).")
                return None
        if isinstance(error, _NEVER_THE_PAIR):
            return None
        try:
            store = Store(self._store)
        except Exception:  # noqa: BLE001 - any error here is the store's
            return None
        try:
            # Equal tables were refused before, unless they are allowed.
            take_in(store, *pair.paths, allow_equal=True)
        except _NEVER_THE_PAIR:
            return None
        except Exception as fault:  # noqa: BLE001 - caused by the files, as it recurs
            return fault
        # The files are sound: a limit was exceeded.
        return error if isinstance(error, ContentError) else None

    def _judge(self, pair: Pair, fault: Exception, resting_s: float) -> None:
        """Refuse the pair for its `fault`, unless it may still be incomplete."""
        growing = isinstance(fault, FormatError) and not isinstance(fault, UnsafeFileError)
        if self._by_age:
            resting_s = max(resting_s, age_s(pair.paths))
        if growing and resting_s < self._patience_s:
            self._say_once(f"{pair.name} is not complete yet: {fault}", pair, "incomplete")
            return
        reason = str(fault)
        if not isinstance(fault, JasperError):
            reason = f"unexpected {type(fault).__name__}: {fault}"
        self.refused += 1
        _say(logging.ERROR, "refused", f"refused {pair.name}: {reason}", pair=pair.name)
        if not isinstance(fault, JasperError):
            reason = "\n".join((reason, *traceback.format_exception(fault)))
        self._settle(pair, Filing.failed(reason))

    def _settle(self, pair: Pair, filing: Filing) -> None:
        pair.settled, pair.filing = pair.stamps, filing
        self._put_away(pair)

    def _put_away(self, pair: Pair) -> None:
        """Move the pair, unless it was rewritten meanwhile: then the next look handles it."""
        if pair.filing is None or stamps_of(pair.paths) != pair.settled:
            return
        try:
            pair.filing.move(pair.paths)
        except (OSError, JasperError) as error:
            self._say_once(f"cannot move {pair.name}, will try again: {error}", pair)
            self.stuck[pair.name] = str(error)

    def _hindered(self, pair: Pair, error: Exception) -> None:
        """Record an error that is not the pair's: it stays, and is tried again."""
        what = str(error)
        if not isinstance(error, JasperError | OSError):
            what = f"unexpected {type(error).__name__}: {error}"
        self.stuck[pair.name] = what
        self._say_once(f"cannot publish now, will try again: {what}")

    def _say_once(self, message: str, pair: Pair | None = None, event: str = "hindered") -> None:
        said = self._said if pair is None else pair.said
        if message not in said:
            if len(said) >= _MESSAGES:
                said.clear()
            said.add(message)
            names = {} if pair is None else {"pair": pair.name}
            _say(logging.WARNING, event, message, **names)


def _say(level: int, event: str, message: str, **fields: Any) -> None:
    """Log one event; `commands.service` writes it as a line of text or JSON."""
    _log.log(level, "%s", printable(message), extra={"event": event, "fields": fields})


def _current_number(store: Path) -> int:
    try:
        return read_pointer(store).generation
    except JasperError:
        return 0
