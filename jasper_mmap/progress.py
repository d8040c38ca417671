"""The progress of a long call, reported to a function of the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import UsageError

Show = Callable[[str, int, int], None]
"""Called with the current artifact or file, the bytes done so far, and the total bytes."""


class Progress:
    """Counts the bytes of one call; `show` is the caller's function, or None."""

    def __init__(self, show: Any) -> None:
        if show is not None and not callable(show):
            raise UsageError(f"progress must be a function, or None, not {show!r:.80}")
        self._show: Show | None = show
        self._done = 0
        self.total = 0

    def advance(self, name: str, n_bytes: int) -> None:
        """Count bytes of `name` and report them."""
        self._done += n_bytes
        if self._show is None:
            return
        try:
            self._show(name, self._done, self.total)
        except OSError as error:
            raise _Raised(error) from None

    @contextmanager
    def through(self, name: str, n_bytes: int) -> Iterator[None]:
        """Report `name` as the current one, and count its bytes at the end of the block."""
        self.advance(name, 0)
        yield
        self.advance(name, n_bytes)


class _Raised(Exception):  # noqa: N818 - never seen outside
    """Carries an `OSError` of the caller's function past handlers for errors of our files."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error


@contextmanager
def errors_of_show_passed_on() -> Iterator[None]:
    """Re-raise an error of the caller's function unchanged."""
    try:
        yield
    except _Raised as raised:
        raise raised.error from None
