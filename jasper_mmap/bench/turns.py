"""Processes that run in turns, so that noise of the machine affects all of them alike.

The driver starts each contender in its own process (and session) and lets it run for a while by a
message through a pipe; the others wait. A process ends when the driver closes the pipe or dies.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from ..errors import JasperError
from .processes import wait_until_idle

_START_TIMEOUT_S: Final = 600.0
_TURN_TIMEOUT_S: Final = 120.0
_END_TIMEOUT_S: Final = 10.0
_ABORT_TIMEOUT_S: Final = 2.0


class ContenderError(JasperError, RuntimeError):
    """A contender could not be started, or failed while it ran."""


class Running(NamedTuple):
    """An opened contender."""

    step: Callable[[], float]
    """Makes and consumes one batch; returns what is measured, mostly its number of samples."""
    ahead: int
    """Batches that may be ready before a turn, and so are not counted in it."""


class Started(NamedTuple):
    """The times of starting a contender."""

    open_s: float
    first_batch_s: float


class Turns:
    """A contender in its own process, started and waiting for its turns.

    `opener` (picklable) opens it there. `load`, for imports, runs before and is not counted.
    Raises `ContenderError`.
    """

    def __init__(
        self, opener: Callable[[], Running], load: Callable[[], object] | None = None
    ) -> None:
        # Forked from a server that has only imported torch: quick, and the same start for all.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        self._connection, there = context.Pipe()
        method = multiprocessing.get_start_method()  # its workers start as they would in ours
        self._process = context.Process(target=_serve, args=(there, method, load, opener))
        self._process.start()
        there.close()
        try:
            self.started = Started(*self._receive(_START_TIMEOUT_S))
            wait_until_idle(self.pid)
        except BaseException:
            self.close(_ABORT_TIMEOUT_S)
            raise

    @property
    def pid(self) -> int:
        """The id of its process."""
        return int(self._process.pid or 0)

    def run(self, seconds: float) -> float:
        """Let it run for about `seconds`; return its samples (or what it measures) per second.

        Returns after its workers have finished prefetching, so as not to disturb the next turn.
        """
        self._connection.send(seconds)
        rate: float = self._receive(seconds + _TURN_TIMEOUT_S)
        wait_until_idle(self.pid)
        return rate

    def _receive(self, timeout_s: float) -> Any:
        ready = connection.wait([self._connection, self._process.sentinel], timeout_s)
        if not ready:
            raise ContenderError(f"no answer within {timeout_s:.0f} s")
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(_END_TIMEOUT_S)
            code = self._process.exitcode
            raise ContenderError(f"its process ended with exit code {code}") from None
        if isinstance(answer, str):
            raise ContenderError(answer)
        return answer

    def close(self, patience_s: float = _END_TIMEOUT_S) -> None:
        """End the process and its descendants, by force after `patience_s`."""
        self._connection.close()
        self._process.join(patience_s)
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # its own session
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def in_own_process(work: Callable[[], object]) -> None:
    """Run `work` to its end in its own process; raises `ContenderError` if it fails."""
    Turns(_Once(work)).close()


@dataclass(frozen=True)
class _Once:
    work: Callable[[], object]

    def __call__(self) -> Running:
        self.work()
        return _IDLE


def _no_batch() -> int:
    return 0


_IDLE: Final = Running(_no_batch, 0)


def _serve(
    driver: connection.Connection,
    start_method: str,
    load: Callable[[], object] | None,
    opener: Callable[[], Running],
) -> None:
    multiprocessing.set_start_method(start_method, force=True)
    with Path(os.devnull).open("w") as nothing:  # silences libraries and their workers
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    os.setsid()  # so that Ctrl-C reaches only the driver, which then ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        if load is not None:
            load()
        began = time.perf_counter()
        running = opener()
        opened = time.perf_counter()
        running.step()
        driver.send((opened - began, time.perf_counter() - opened))
        while True:
            driver.send(_turn(running, driver.recv()))
    except (EOFError, ConnectionError):
        pass
    except Exception as error:  # noqa: BLE001 - the driver reports it
        with contextlib.suppress(OSError):
            driver.send(f"{type(error).__name__}: {error}")
    finally:
        running = _IDLE  # drops the loader and so its workers
        for child in multiprocessing.active_children():
            child.terminate()
            child.join()


def _turn(running: Running, seconds: float) -> float:
    for _ in range(running.ahead):
        running.step()
    samples = 0.0
    began = now = time.perf_counter()
    while now - began < seconds:
        samples += running.step()
        now = time.perf_counter()
    return samples / (now - began)
