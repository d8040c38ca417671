"""A worker process as its trainer sees it, and how all of them end.

Whether it lives is asked of the kernel, by a descriptor of the process (pidfd): where a fork
server started it, `multiprocessing` takes it for dead as soon as the server is, and a signal to
the whole process group ends that one. Without pidfd (Linux before 5.3, some sandboxes) it is asked
of `multiprocessing`.

What ends a worker by force is SIGKILL: one that is stopped, or busy with a user's init, answers to
nothing milder.
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

from ..files.shared_memory import Descriptor, process_descriptor
from .worker_process import STOP

_REAP_S: Final = 1.0
_PATIENCE_S: Final = 2.0
"""How long workers may take to end by themselves; at the interpreter's exit those of all pools."""
_FIRST, _SECOND = 101, 100
"""Priorities among `multiprocessing`'s finalizers: from 0 on they run before it sends SIGTERM to
all that is left, which workers may ignore, and waits for them without limit."""

_started: weakref.WeakSet[Any] = weakref.WeakSet()
"""The worker processes that this one started."""


def _disown() -> None:
    """In a process made by a bare `os.fork`: at its exit `multiprocessing`, which still takes its
    parent's workers for its own children, would send them SIGTERM."""
    bookkeeping._children.difference_update(_started)  # type: ignore[attr-defined]
    _started.clear()


os.register_at_fork(after_in_child=_disown)


class Child:
    """One started process; as much of `multiprocessing`'s interface as is needed of it."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid
        self._descriptor = process_descriptor(self.pid)
        _started.add(process)

    @property
    def sentinel(self) -> int:
        """What can be read from once the process has ended."""
        return int(self._process.sentinel) if self._descriptor is None else self._descriptor.fd

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return not self._ended(0.0)

    def join(self, timeout_s: float) -> None:
        """Wait for its end, at most so long."""
        if self._ended(timeout_s):
            self._process.join(_REAP_S)

    def _ended(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self.sentinel, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    @property
    def exitcode(self) -> int | None:
        """As `multiprocessing` has it; what a lost fork server knew is lost (255)."""
        self._process.join(_REAP_S)
        code: int | None = self._process.exitcode
        return code

    def kill(self) -> None:
        """End it by SIGKILL, also where it is stopped."""
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
    """What ends `children`, called or when `pool` is gone or the interpreter ends; within 5 s.

    `requests` are the pipes by which they are told to. Of several pools all are told at exit before
    the first is waited for.
    """
    owner = os.getpid()
    util.Finalize(pool, _stop, (owner, requests), exitpriority=_FIRST)
    return util.Finalize(pool, _close, (owner, children, requests, replies), exitpriority=_SECOND)


def _stop(owner: int, requests: tuple[Descriptor, ...]) -> None:
    """Tell all workers to end; they are not waited for."""
    if os.getpid() != owner:
        return  # a forked copy of the pool: the workers are not its children
    for end in requests:
        if end.fd >= 0:
            with contextlib.suppress(OSError):
                os.set_blocking(end.fd, False)  # a stuck worker may have let the pipe fill
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
