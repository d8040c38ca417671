"""Runs that are killed again and again serve, over all, what one that is not serves.

Resumed with other numbers of ranks and workers and other batch sizes, while generations are
published. With `JASPER_SOAK_S=30` it is killed 20 times.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jasper_mmap import create_loader, set_epoch, watch_negatives
from jasper_mmap.store.pointer import read_pointer
from tests.oracle import Oracle
from tests.publishing import LONG, Witness, own_copy, publish_numbered, until
from tests.serving import CONTEXTS, NamedOracle

pytestmark = pytest.mark.xdist_group("torchrun")
KILLS, EPOCHS = (20, 8) if LONG else (4, 3)
WORLDS = (1, 2, 3, 1)
SERVED_MOST = 150 if LONG else 330
"""Samples that a run may serve before it is killed."""
PATIENCE_S = 120

Row = tuple[int, int, int]
"""Pair, variant and generation of a sample."""


@dataclass(frozen=True)
class Run:
    """One run, from its start or a state until it is killed."""

    store: Path
    folder: Path
    """Of the builder's files."""
    out: Path
    world: int
    batch_size: int
    workers: int
    context: str
    drop_last: bool
    save_every: int
    state: dict[str, Any] | None
    kill_after: int | None
    """In batches of each rank; None if it may end."""


class Reader:
    """Tells the rows of batches."""

    def __init__(self, oracle: Oracle) -> None:
        self._witness = Witness(oracle, "train")
        self._position = {pair: i for i, pair in enumerate(oracle.splits["train"])}
        index = torch.tensor(oracle.pair_index)
        parts = [oracle.tables["question_embs"][index[:, 0]], oracle.tables["source_embs"]]
        parts[1] = parts[1][index[:, 1]]
        rows = torch.cat([part.to(torch.float32) for part in parts], 1)
        self._pair = {row.numpy().tobytes(): pair for pair, row in enumerate(rows)}
        assert len(self._pair) == len(rows)

    def rows(self, batch: Any) -> list[Row]:
        """Return its rows; the batch must be of one generation."""
        keys = torch.cat([batch["question_emb"], batch["target_source_emb"]], 1)
        pairs = [self._pair[key.numpy().tobytes()] for key in keys]
        positions = [self._position[pair] for pair in pairs]
        generation = self._witness.generation_of(batch, positions, 1)
        return [(p, v, generation) for p, v in zip(pairs, batch["steering_variant"].tolist())]  # noqa: B905


def train(rank: int, run: Run) -> None:
    """Train as a rank: record each batch, save states, and publish in the middle of each epoch."""
    torch.set_num_threads(1)
    if run.world > 1:
        group = f"file://{run.out}/group"
        dist.init_process_group("gloo", group, rank=rank, world_size=run.world)
    oracle = Oracle(run.folder)
    reader = Reader(oracle)
    loader: Any = create_loader(
        run.store,
        "train",
        run.batch_size,
        run.workers,
        distributed=run.world > 1,
        drop_last=run.drop_last,
        multiprocessing_context=run.context if run.workers else None,
    )
    next(iter(loader))  # workers start before anything is loaded
    with watch_negatives(loader, 0.02, adopt="epoch"):
        if run.state is not None:
            loader.load_state_dict(run.state)
        _train(rank, run, loader, reader, oracle)
    if run.world > 1:
        dist.barrier()
        dist.destroy_process_group()


def _train(rank: int, run: Run, loader: Any, reader: Reader, oracle: Oracle) -> None:
    steps = 0
    records = (run.out / f"records-{rank}").open("w", buffering=1)
    for epoch in range(run.state["epoch"] if run.state is not None else 0, EPOCHS):
        set_epoch(loader, epoch)
        for batch in loader:
            state = loader.state_dict()
            records.write(json.dumps([epoch, reader.rows(batch)]) + "\n")
            steps += 1
            half = state["consumed"] > len(loader.dataset_obj) // 2
            if rank == 0 and half and read_pointer(run.store).generation < epoch + 2:
                publish_numbered(run.store, oracle)
            if steps % run.save_every == 0:
                save(run.out / f"state-{rank}", steps, state)
            if steps == run.kill_after:
                (run.out / f"ready-{rank}").touch()
                time.sleep(PATIENCE_S)
        if rank == 0:  # the others follow
            adoption = loader.dataset_obj.adoption
            newest = read_pointer(run.store).generation
            until(lambda: newest in (adoption.number, *held(adoption)))  # noqa: B023
    save(run.out / f"state-{rank}", steps, loader.state_dict())


def held(adoption: Any) -> list[int]:
    """The generations that wait for the next epoch."""
    return [watch.held.number for watch in adoption._running() if watch.held is not None]


def save(path: Path, steps: int, state: dict[str, Any]) -> None:
    """Replace a checkpoint."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps([steps, state]))
    new.replace(path)


def killed(run: Run) -> tuple[list[tuple[int, Row]], dict[str, Any] | None]:
    """Start a run and kill it where it says; return what it served until its last state, in the
    order of the ranks, and that state. Where it ended by itself, the state is None."""
    run.out.mkdir()
    start = multiprocessing.get_context("forkserver")
    processes = [start.Process(target=train, args=(rank, run)) for rank in range(run.world)]
    for process in processes:
        process.start()
    ready = [run.out / f"ready-{rank}" for rank in range(run.world)]
    try:
        until(
            lambda: (
                all(path.exists() for path in ready)
                or not any(process.is_alive() for process in processes)
            ),
            PATIENCE_S,
        )
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
    ended = not any(path.exists() for path in ready)
    assert [p.exitcode for p in processes] == [0 if ended else -signal.SIGKILL] * run.world
    saved = [run.out / f"state-{rank}" for rank in range(run.world)]
    if not saved[0].exists():
        return [], run.state
    states = [json.loads(path.read_text()) for path in saved]
    assert states == [states[0]] * run.world, "ranks save different states"
    steps, state = states[0]
    files = [(run.out / f"records-{rank}").read_text().splitlines() for rank in range(run.world)]
    served = [
        (epoch, tuple(row))
        for lines in itertools.islice(zip(*files, strict=False), steps)
        for epoch, rows in map(json.loads, lines)
        for row in rows
    ]
    return served, None if ended else state


def of_epoch(served: list[tuple[int, Row]], epoch: int) -> list[Row]:
    """What was served in an epoch."""
    return [row for its, row in served if its == epoch]


@pytest.mark.parametrize("drop_last", [False, True])
def test_killed_runs_serve_what_an_unbroken_one_does(
    store: Path,
    demo_folder: Path,
    oracle_named: NamedOracle,
    tmp_path: Path,
    drop_last: bool,
) -> None:
    """As a sequence of pair, variant and generation, up to what `drop_last` drops."""
    draw = random.Random(5 + drop_last)
    other = own_copy(store, tmp_path / "other")
    common: dict[str, Any] = {"folder": demo_folder, "drop_last": drop_last}
    whole = Run(
        store=other,
        out=tmp_path / "whole",
        world=1,
        batch_size=16,
        workers=0,
        context="fork",
        save_every=1000,
        state=None,
        kill_after=None,
        **common,
    )
    expected, _ = killed(whole)
    served: list[tuple[int, Row]] = []
    state: dict[str, Any] | None = None
    most_dropped = 16
    runs = 0
    for number in itertools.count():
        world = WORLDS[number % len(WORLDS)]
        size = draw.choice((3, 5, 8, 16))
        most = max(1, SERVED_MOST // (world * size))
        run = Run(
            store=store,
            out=tmp_path / str(number),
            world=world,
            batch_size=size,
            workers=draw.choice((0, 1, 2)),
            context=draw.choice(CONTEXTS if LONG else ("fork",)),
            save_every=draw.choice((1, 2, 3)),
            state=state,
            kill_after=draw.randint(1, most) if number < KILLS else None,
            **common,
        )
        most_dropped = max(most_dropped, world * size)
        more, state = killed(run)
        served += more
        runs += 1
        if run.kill_after is None or (state is None and more):
            break
    print(f"{runs} runs, {len(served)} samples of {len(expected)}")
    assert runs > 1
    n = len(oracle_named("demo").splits["train"])
    for epoch in range(EPOCHS):
        one, many = of_epoch(expected, epoch), of_epoch(served, epoch)
        if not drop_last:
            assert len(one) == n
            assert many[:n] == one
            assert len(many) - n < 3  # repeats of a last run that is divided among ranks
            assert many[n:] == one[: len(many) - n]
        else:
            both = min(len(one), len(many))
            assert many[:both] == one[:both]
            assert n - len(many) < most_dropped
        assert {generation for *_, generation in many} == {epoch + 1}
