"""A lock for threads that no forked process inherits locked."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class ProcessLock:
    """A re-entrant lock; a process forked while another thread holds it begins with a free one.

    Make one when a module is imported, and never keep it in what may be pickled.
    """

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
