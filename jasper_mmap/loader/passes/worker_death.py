"""The trainer's view of a worker process, and ending all of them.

The kernel reports whether a worker lives, by a descriptor of the process (pidfd): with a fork
server, `multiprocessing` considers it dead as soon as the server is, and a signal to the whole
process group ends the server. Without pidfd (Linux before 5.3, some sandboxes) `multiprocessing`
must do.

Workers are ended by force with SIGKILL: one that is stopped, or busy in a user's init, may ignore
any other signal.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
import weakref
from multiprocessing import process as bookkeeping
from multiprocessing import util
from typing import Any, Final

from ...files.shared_memory import Descriptor, process_descriptor
from .worker_process import STOP

_REAP_S: Final = 1.0
_PATIENCE_S: Final = 2.0
"""How long workers may take to end by themselves; at interpreter exit, those of all pools."""
_FIRST, _SECOND = 101, 100
"""Priorities of `multiprocessing`'s finalizers: from 0 on they run before it sends SIGTERM, which
workers may ignore, to all children and waits for them without limit."""

_started: weakref.WeakSet[Any] = weakref.WeakSet()
"""The worker processes that this one started."""


def _disown() -> None:
    """Forget the parent's workers after a bare `os.fork`: at exit, `multiprocessing` would take
    them for children of this process and send them SIGTERM."""
    bookkeeping._children.difference_update(_started)  # type: ignore[attr-defined]
    _started.clear()


os.register_at_fork(after_in_child=_disown)


class Child:
    """One started process, with the required part of `multiprocessing`'s interface."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid
        self._descriptor = process_descriptor(self.pid)
        _started.add(process)

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable once the process has ended."""
        return int(self._process.sentinel) if self._descriptor is None else self._descriptor.fd

    def is_alive(self) -> bool:
        """Return whether it is running."""
        return not self._ended(0.0)

    def join(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for its end."""
        if self._ended(timeout_s):
            self._process.join(_REAP_S)

    def _ended(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self.sentinel, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    @property
    def exitcode(self) -> int | None:
        """The exit code from `multiprocessing`; 255 if the fork server was lost."""
        self._process.join(_REAP_S)
        code: int | None = self._process.exitcode
        return code

    def kill(self) -> None:
        """End it by SIGKILL, even if it is stopped."""
        with contextlib.suppress(OSError):
            if self._descriptor is None:
                self._process.kill()
            else:
                signal.pidfd_send_signal(self._descriptor.fd, signal.SIGKILL)


def end_with(
    pool: object,
    children: list[Child],
    requests: tuple[Descriptor, ...],
    replies: Descriptor,
) -> util.Finalize:
    """Return a finalizer that ends `children` within 5 s, when it is called, `pool` is collected or
    the interpreter ends.

    `requests` are the pipes for the request to end. At exit, the workers of all pools get it before
    any is waited for.
    """
    owner = os.getpid()
    util.Finalize(pool, _stop, (owner, requests), exitpriority=_FIRST)
    return util.Finalize(pool, _close, (owner, children, requests, replies), exitpriority=_SECOND)


def _stop(owner: int, requests: tuple[Descriptor, ...]) -> None:
    """Request all workers to end, without waiting for them."""
    if os.getpid() != owner:
        return  # a forked copy of the pool: the workers are not its children
    for end in requests:
        if end.fd >= 0:
            with contextlib.suppress(OSError):
                os.set_blocking(end.fd, False)  # the pipe of a stuck worker may be full
                os.write(end.fd, STOP)
        end.close()


def _close(
    owner: int, children: list[Child], requests: tuple[Descriptor, ...], replies: Descriptor
) -> None:
    if os.getpid() != owner:
        return
    _stop(owner, requests)
    deadline = _deadline()
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    for child in children:
        if child.is_alive():
            child.kill()
    for child in children:
        child.join(_REAP_S)
    replies.close()


_exit_deadline = math.inf


def _deadline() -> float:
    global _exit_deadline
    deadline = time.monotonic() + _PATIENCE_S
    if util.is_exiting():
        deadline = _exit_deadline = min(deadline, _exit_deadline)
    return deadline
