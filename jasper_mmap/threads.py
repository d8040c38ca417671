"""A lock for threads that no forked process inherits locked; work for another thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


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


def in_background(
    pool: Executor, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> Future[_T]:
    """Have `pool` do `work`; at the end of the interpreter (`atexit`), when no pool takes any more,
    it is done before this returns."""
    try:
        return pool.submit(work, *args, **kwargs)
    except RuntimeError:
        done: Future[_T] = Future()
        done.set_result(work(*args, **kwargs))
        return done
