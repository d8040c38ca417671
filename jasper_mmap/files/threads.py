"""A lock for threads that a forked process inherits unlocked, and work for a second core."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class ProcessLock:
    """A re-entrant lock; a process forked while another thread holds it starts with a free one.

    Create it when a module is imported, and never store it in an object that may be pickled.
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
    """An executor with one thread; if no thread can be started, it runs in the caller's."""
    pool = ThreadPoolExecutor(1, name)
    try:
        pool.submit(int).result()  # starts the thread now
    except RuntimeError:
        pool.shutdown(wait=False, cancel_futures=True)
        return _Here()
    return pool


class _Here(Executor):
    """Runs the work at once, in the calling thread."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*given, **options))
        return done
