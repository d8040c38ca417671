"""Signals in worker processes: the trainer's handlers are the trainer's alone.

A scheduler signals whole process groups. Were the handler of a trainer (save a checkpoint, leave)
inherited, each worker would run it too; were the default restored, a worker would die and end the
training. So a worker ignores those of `ENDING` that the trainer handles when it starts, and ends
with the trainer. Between its start and that moment they are blocked, as far as a start method
hands down what is blocked: fork and spawn do, a fork server does not.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Final

ENDING: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGXCPU,
)
"""What ends a process by default, and what a trainer may want to be told of instead. Not SIGCHLD:
with it ignored, `subprocess` reports 0 for every failure."""
_FAULTS: Final = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGTRAP,
}


def handled() -> tuple[int, ...]:
    """Those of `ENDING` for which this process has a handler, or which it ignores."""
    # None is a handler that is not Python's.
    return tuple(n for n in ENDING if signal.getsignal(n) != signal.SIG_DFL)


@contextmanager
def held_back(numbers: tuple[int, ...], start_method: str) -> Iterator[None]:
    """Block these signals in this thread, and so in the processes that the block starts."""
    if start_method == "forkserver":
        # It is started at first use, and would hand down what is blocked to all that it ever forks.
        yield
        return
    if start_method == "spawn":
        resource_tracker.ensure_running()  # which unblocks some of them when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_trainer(numbers: tuple[int, ...]) -> None:
    """In a worker's main thread: ignore these, and run no handler that came with a fork."""
    signal.set_wakeup_fd(-1)  # it would write to an event loop of the trainer
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN if number in numbers else signal.SIG_DFL)
    for number in signal.valid_signals() - {*ENDING} - _FAULTS:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
