"""Output and end of a command that runs as a service: log lines on stdout, and signals."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TextIO

from ..printable import printable


@contextmanager
def logged_to_stdout(*, as_json: bool) -> Iterator[None]:
    """Print the package's log, a line per event: time (UTC), level and message, or JSON."""
    log = logging.getLogger("jasper_mmap")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = _Lines(sys.stdout)
    handler.setFormatter(_Json() if as_json else _Text())
    handler.addFilter(_not_said_by_inbox)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        try:
            sys.stdout.flush()
        except OSError:  # no reader, or a full disk: Python would try again and exit with 120
            with Path(os.devnull).open("w") as nothing:
                os.dup2(nothing.fileno(), sys.stdout.fileno())


def _not_said_by_inbox(record: logging.LogRecord) -> bool:
    """Return False for what the inbox logs itself, with the names of the files."""
    about_result = record.levelno <= logging.INFO or getattr(record, "event", "") == "unchanged"
    return record.module != "publish" or not about_result


class _Lines(logging.StreamHandler[TextIO]):
    """A handler that survives a closed pipe or a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore the error."""


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatTime(  # noqa: N802 - logging's name
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z"

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Json(_Text):
    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            **getattr(record, "fields", {}),
            "message": record.getMessage(),
        }
        return json.dumps(event)


class Signals:
    """Collects SIGINT and SIGTERM until a loop handles them."""

    def __init__(self) -> None:
        # A SimpleQueue, which a signal handler may use at any time.
        self._came: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()

    def came(self) -> bool:
        """Return whether one has arrived."""
        return not self._came.empty()

    def wait(self, seconds: float) -> signal.Signals | None:
        """Return the first one, waiting up to `seconds` for it; None if none arrives."""
        try:
            return self._came.get(timeout=seconds)
        except queue.Empty:
            return None

    def put(self, number: int, _: FrameType | None) -> None:
        """Record a signal; this is the handler."""
        self._came.put(signal.Signals(number))


@contextmanager
def signals_held() -> Iterator[Signals]:
    """Within the block, record SIGINT and SIGTERM and ignore SIGHUP."""
    signals = Signals()
    handlers = {signal.SIGINT: signals.put, signal.SIGTERM: signals.put}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
