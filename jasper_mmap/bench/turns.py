"""Processes that take turns at running, so that noise of the machine hits each of them alike.

The driver starts each contender in a process (and session) of its own and tells it through a pipe
to run for a while; the others wait. A process ends when the driver says so, or when the pipe closes
because the driver died.
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

    step: Callable[[], int]
    """Makes and consumes one batch; tells how many samples it held."""
    ahead: int
    """Batches that may lie ready from before a turn: not counted as made in it."""


class Started(NamedTuple):
    """What starting a contender took."""

    open_s: float
    first_batch_s: float


class Turns:
    """A contender in a process of its own, started and waiting for its turns.

    `opener` (picklable) opens it there. `load` runs before and is not counted: imports.
    Raises `ContenderError`.
    """

    def __init__(
        self, opener: Callable[[], Running], load: Callable[[], object] | None = None
    ) -> None:
        # Forked from a server that has imported torch and done nothing: quick, and all start alike.
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
        """The number of its process."""
        return int(self._process.pid or 0)

    def run(self, seconds: float) -> float:
        """Let it run for about `seconds`; the samples per second it made.

        Returns when its workers have prefetched all they may, or the next one's turn would suffer.
        """
        self._connection.send(seconds)
        rate: float = self._receive(seconds + _TURN_TIMEOUT_S)
        wait_until_idle(self.pid)
        return rate

    def _receive(self, timeout_s: float) -> Any:
        ready = connection.wait([self._connection, self._process.sentinel], timeout_s)
        if not ready:
            raise ContenderError(f"gave no answer in {timeout_s:.0f} s")
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(_END_TIMEOUT_S)
            raise ContenderError(f"its process ended, exit code {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise ContenderError(answer)
        return answer

    def close(self, patience_s: float = _END_TIMEOUT_S) -> None:
        """End the process and all it started, by force after `patience_s`."""
        self._connection.close()
        self._process.join(patience_s)
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # the whole session is its own
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
    """Run `work` to its end in a process of its own; raises `ContenderError` as it failed."""
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
    with Path(os.devnull).open("w") as nothing:  # libraries chat, and so do their workers
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    os.setsid()  # an interrupt at the terminal reaches the driver alone, which then ends us
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
    except Exception as error:  # noqa: BLE001 - the driver tells it
        with contextlib.suppress(OSError):
            driver.send(f"{type(error).__name__}: {error}")
    finally:
        running = _IDLE  # the loader goes, and with it the loader's workers
        for child in multiprocessing.active_children():
            child.terminate()
            child.join()


def _turn(running: Running, seconds: float) -> float:
    for _ in range(running.ahead):
        running.step()
    samples = 0
    began = now = time.perf_counter()
    while now - began < seconds:
        samples += running.step()
        now = time.perf_counter()
    return samples / (now - began)
