"""Signals to a trainer and its workers, and workers that are stuck: nobody waits for them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jasper_mmap.loader.passes.worker_process import ENDING, handled
from tests.publishing import IMPORTING, until
from tests.serving import CONTEXTS

LIMIT_S = 5.0
"""What a stuck worker may cost, be it at `close` or at the end of the interpreter."""

PROGRAM = '''
import multiprocessing, os, signal, subprocess, sys, time
from jasper_mmap import create_loader



def loader_of(init=None, workers=2, **options):
    """Return a loader with persistent workers, and its first iteration."""
    loader = create_loader(
        store, "train", 8, workers, multiprocessing_context=context, prefetch_factor=2, **options
    )
    loader.worker_init_fn = init
    return loader, iter(loader)


def say(*words):
    # No print: it is not reentrant, and a handler calls this too.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())


def handle(numbers):
    """Have this process record these signals."""
    for number in numbers:
        signal.signal(number, lambda got, _: say("handled", got, "by", os.getpid()))


def serves_on():
    """A trainer that handles some signals; every one of them comes to the whole group."""
    handle(int(n) for n in rest)
    loader, batches = loader_of()
    for _ in range(4):  # what a fork server starts is not safe before its first batch
        next(batches)
    say("ready", os.getpid(), *loader._pool.pids)
    for line in sys.stdin:
        say("epoch", sum(1 for _ in loader) == len(loader))


def tells_failures(worker):
    """What a worker's own children ended with."""
    codes = [subprocess.run(["false"]).returncode, subprocess.run(["true"]).returncode]
    say("codes", *codes, signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL)


def runs_programs():
    signal.signal(signal.SIGCHLD, lambda *_: say("a child ended", os.getpid()))
    handle([signal.SIGTERM])
    _, batches = loader_of(tells_failures, 1)
    next(batches)


KEPT = []


def sleeps(worker):
    time.sleep(1000)


def leaves_stuck():
    """Of four loaders one has a worker that is stopped, others one that is busy with its init."""
    handle([signal.SIGTERM])
    loaders = [loader_of(), *(loader_of(sleeps, 1) for _ in range(3))]
    KEPT.extend(loaders)
    next(loaders[0][1])
    pids = [pid for loader, _ in loaders for pid in loader._pool.pids]
    os.kill(pids[0], signal.SIGSTOP)
    say("workers", *pids)
    if rest[0] == "close":
        began = time.monotonic()
        for loader, _ in loaders:
            loader._pool.close()
            say("took", time.monotonic() - began)
            began = time.monotonic()
    say("end", time.time())


if __name__ == "__main__":
    act = sys.argv.pop(1)
    store, context, *rest = sys.argv[1:]
    if rest and rest[0] == "rank":
        rank = multiprocessing.get_context("fork").Process(target=leaves_stuck)
        rank.start()
        rank.join()
        say("left", rank.exitcode)
    else:
        globals()[act]()
'''


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a file, for spawn wants one."""
    path = tmp_path / "trainer.py"
    path.write_text(PROGRAM)
    return path


def start(program: Path, act: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a trainer in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(program), act, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=IMPORTING,
        start_new_session=True,
    )


@pytest.fixture
def trainers() -> Iterator[list[subprocess.Popen[str]]]:
    """Return a list of trainers, ended with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for trainer in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(trainer.pid, signal.SIGKILL)
        trainer.communicate()


def lives(pid: int) -> bool:
    """Whether there is such a process and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("context", CONTEXTS)
def test_signals_to_the_group_are_the_trainers_alone(
    context: str, program: Path, demo_store: Path, trainers: list[subprocess.Popen[str]]
) -> None:
    """Handled once each, by the trainer; its workers are the same ones before and after."""
    numbers = [int(n) for n in ENDING]
    trainer = start(program, "serves_on", demo_store, context, *numbers)
    trainers.append(trainer)
    assert trainer.stdout
    assert trainer.stdin
    _, pid, *workers = trainer.stdout.readline().split()
    assert int(pid) == trainer.pid
    for number in numbers:
        os.killpg(trainer.pid, number)
        assert trainer.stdout.readline().split() == ["handled", str(number), "by", pid]
    for _ in range(2):
        print("epoch", file=trainer.stdin, flush=True)
        assert trainer.stdout.readline() == "epoch True\n"
    assert all(lives(int(worker)) for worker in workers)
    output, _ = trainer.communicate(timeout=60)
    assert (output, trainer.returncode) == ("", 0)


def test_signals_that_the_trainer_does_not_handle_keep_their_effect(
    program: Path, demo_store: Path, trainers: list[subprocess.Popen[str]]
) -> None:
    """A worker ignores no more than it must."""
    trainer = start(program, "serves_on", demo_store, "fork", int(signal.SIGUSR1))
    trainers.append(trainer)
    assert trainer.stdout
    _, _, first, second = trainer.stdout.readline().split()
    os.kill(int(first), signal.SIGUSR1)
    os.kill(int(second), signal.SIGUSR2)
    until(lambda: not lives(int(second)))
    assert lives(int(first))


@pytest.mark.parametrize("context", CONTEXTS)
def test_children_of_a_worker_are_told_apart_as_ever(
    context: str, program: Path, demo_store: Path, trainers: list[subprocess.Popen[str]]
) -> None:
    """SIGCHLD is never ignored, nor does the trainer's handler of it run in a worker."""
    trainer = start(program, "runs_programs", demo_store, context)
    trainers.append(trainer)
    output, _ = trainer.communicate(timeout=120)
    ended = {int(pid) for pid in re.findall(r"a child ended (\d+)", output)}
    assert "codes 1 0 True" in output
    assert ended <= {trainer.pid}


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_signal_to_a_worker_that_is_starting_is_held_back(
    context: str, program: Path, demo_store: Path, trainers: list[subprocess.Popen[str]]
) -> None:
    """A spawned one imports for seconds before it can ignore anything."""
    source = program.read_text()
    program.write_text(source.replace("for _ in range(4)", "for _ in range(0)"))
    assert program.read_text() != source
    trainer = start(program, "serves_on", demo_store, context, int(signal.SIGUSR1))
    trainers.append(trainer)
    assert trainer.stdout
    assert trainer.stdin
    _, _, *workers = trainer.stdout.readline().split()
    for worker in workers:
        os.kill(int(worker), signal.SIGUSR1)
    print("epoch", file=trainer.stdin, flush=True)
    assert trainer.stdout.readline() == "epoch True\n"


@pytest.mark.parametrize(
    ("way", "context"),
    [
        *(("close", "fork"), ("exit", "fork"), ("rank", "fork")),
        *(("close", "spawn"), ("rank", "spawn"), ("exit", "forkserver")),
    ],
)
def test_stuck_workers_hold_up_neither_close_nor_exit(
    way: str, context: str, program: Path, demo_store: Path, trainers: list[subprocess.Popen[str]]
) -> None:
    """Stopped, or in a user's init, of one loader or several; also where the trainer is itself a
    process of multiprocessing."""
    trainer = start(program, "leaves_stuck", demo_store, context, way)
    trainers.append(trainer)
    output, _ = trainer.communicate(timeout=120)
    ended = time.time()
    assert trainer.returncode == 0
    lines = {line.split()[0]: line.split()[1:] for line in output.splitlines()}
    assert all(float(t) < LIMIT_S for t in re.findall(r"took (\S+)", output))
    assert ended - float(lines["end"][0]) < LIMIT_S
    until(lambda: not any(lives(int(pid)) for pid in lines["workers"]), 2)
    assert lines.get("left", ["0"]) == ["0"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_workers_end_with_a_killed_trainer(
    context: str, program: Path, demo_store: Path, trainers: list[subprocess.Popen[str]]
) -> None:
    """Idle ones see it at once."""
    trainer = start(program, "serves_on", demo_store, context, int(signal.SIGTERM))
    trainers.append(trainer)
    assert trainer.stdout
    _, _, *workers = trainer.stdout.readline().split()
    trainer.kill()
    until(lambda: not any(lives(int(worker)) for worker in workers), 5)


def test_what_a_process_handles_is_seen_whoever_installed_it() -> None:
    """A handler, being ignored, and a handler of another library; the default is none of them."""
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)}
    try:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        assert {signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT} <= {*handled()}
        assert signal.SIGXCPU not in handled()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
