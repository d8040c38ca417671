"""Run one cell in processes of its own, and collect what its ranks wrote."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tools.frameworks.leg import Plan
from tools.frameworks.rank import main
from tools.frameworks.ways import Cell, Way

ROOT = Path(__file__).parents[2]
STOP_AT, PUBLISH_AT = (1, 5), (0, 3)
SPEED_BATCH, SPEED_WORKERS = 512, 2
PATIENCE_S = 3.0
"""How long the other ranks may go on after one has failed: they may fail too, and say why."""
TAIL = 15
"""Lines of stderr that are kept of a cell that failed."""

Records = dict[int, dict[str, Any]]
"""What each rank wrote of a leg."""

_FORKING = get_context("forkserver")


@dataclass(kw_only=True)
class Result:
    """What a cell's ranks wrote: the records of each leg by rank."""

    cell: Cell
    legs: dict[str, Records] = field(default_factory=dict)
    stderr: str = ""
    timed_out: bool = False


def plans_of(
    cell: Cell, store: Path, folder: Path, *, fast_store: Path | None, measure_s: float
) -> list[Plan]:
    """Return the legs of a cell; its speed is measured where there is a `fast_store`."""
    way = cell.way
    whole = Plan(
        name="whole",
        store=str(store),
        folder=str(folder),
        world=cell.world,
        distributed=cell.distributed,
        drop_last=way.drop_last,
    )
    if way.serves == "evaluation":
        return [replace(whole, split="val", batch_size=4, epochs=1)]
    plans = [whole]
    if way.serves == "same batches":
        return plans
    own = folder / "store"
    shutil.copytree(store, own, ignore=shutil.ignore_patterns("*.pt"))
    reload = replace(whole, store=str(own), epochs=1, publish_at=PUBLISH_AT)
    plans += [replace(reload, name="reload")]
    if fast_store is not None:
        plans.append(
            replace(
                whole,
                name="speed",
                store=str(fast_store),
                batch_size=SPEED_BATCH,
                workers=SPEED_WORKERS,
                measure_s=measure_s,
            )
        )
    plans += [
        replace(whole, name="first", stop_at=STOP_AT),
        replace(whole, name="second", stop_at=STOP_AT, resumes=True),
    ]
    return plans


def run_cell(cell: Cell, plans: list[Plan], folder: Path, limit_s: float) -> Result:
    """Run the legs of a cell in processes of its own for at most `limit_s`.

    They are forked from a server that has imported the tools, and get the environment that
    torchrun gives to its ranks; a rank that fails ends the others, as there.
    """
    job = folder / "job.json"
    job.write_text(json.dumps({"way": cell.way.name, "legs": [plan.to_dict() for plan in plans]}))
    log = folder / "stderr.txt"
    log.touch()
    ranks = cell.world if cell.way.torchrun else 1
    port = _free_port()
    processes = [
        _FORKING.Process(target=main, args=(str(job), _environment(rank, ranks, port), str(log)))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    timed_out = not _ended(processes, time.monotonic() + limit_s)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
    return Result(cell=cell, legs=records_in(folder, plans), stderr=tail, timed_out=timed_out)


def records_in(folder: Path, plans: list[Plan]) -> dict[str, Records]:
    """Return what the ranks have written of each leg."""
    legs = {
        plan.name: {
            int(path.suffixes[0][1:]): json.loads(path.read_text())
            for path in sorted(folder.glob(f"{plan.name}.*.json"))
        }
        for plan in plans
    }
    return {name: records for name, records in legs.items() if records}


def import_once(ways: Iterable[Way]) -> None:
    """Have the tools of these ways imported once, by the server that the cells are forked from.

    Call it before the first cell.
    """
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", PYTHONPATH=str(ROOT))
    adapters = {f"tools.frameworks.adapters.{way.adapter}" for way in ways if not way.missing}
    _FORKING.set_forkserver_preload(["tools.frameworks.rank", *sorted(adapters)])


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    if ranks == 1:
        return {}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
        return port


def _ended(processes: list[ForkServerProcess], deadline_s: float) -> bool:
    """Wait until all have ended, or one has failed; end the others. Return False if too late."""
    try:
        while time.monotonic() < deadline_s:
            waiting = [process.sentinel for process in processes if process.is_alive()]
            if not waiting:
                return True
            if any(process.exitcode for process in processes):
                deadline_s = min(deadline_s, time.monotonic() + PATIENCE_S)
            wait(waiting, timeout=0.2)
        return any(process.exitcode for process in processes)
    finally:
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.killpg(process.pid, signal.SIGKILL)  # with its workers: see `rank.main`
            process.join()
