"""A lock for threads that no forked process inherits locked, and work for a second core."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


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


def second_core(name: str) -> Executor:
    """An executor with one thread; where the system starts no more threads, the caller's own."""
    pool = ThreadPoolExecutor(1, name)
    try:
        pool.submit(int).result()  # starts the thread now
    except RuntimeError:
        pool.shutdown(wait=False, cancel_futures=True)
        return _Here()
    return pool


class _Here(Executor):
    """Does what it is given at once."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*given, **options))
        return done
