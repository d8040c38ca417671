"""Run one cell in processes of its own, and collect what its ranks wrote."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tools.frameworks.leg import Plan
from tools.frameworks.ways import Cell

ROOT = Path(__file__).parents[2]
STOP_AT, PUBLISH_AT = (1, 5), (0, 3)
SPEED_BATCH, SPEED_WORKERS = 512, 2
TAIL = 15
"""Lines of stderr that are kept of a cell that failed."""


@dataclass(kw_only=True)
class Result:
    """What a cell's ranks wrote: the records of each leg by rank."""

    cell: Cell
    legs: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
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
    """Run the legs of a cell in a process, or in a group of ranks, for at most `limit_s`."""
    job = folder / "job.json"
    job.write_text(json.dumps({"way": cell.way.name, "legs": [plan.to_dict() for plan in plans]}))
    command = [sys.executable, "-m"]
    if cell.world > 1 and cell.way.torchrun:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={cell.world}", "-m"]
    # To a file: a pipe that a killed cell's children hold open would not end.
    with tempfile.TemporaryFile("w+") as stderr:
        started = subprocess.Popen(
            [*command, "tools.frameworks.rank", str(job)],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        timed_out = False
        try:
            started.wait(limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(started)
        stderr.seek(0)
        tail = "\n".join(stderr.read().splitlines()[-TAIL:])
    result = Result(cell=cell, stderr=tail, timed_out=timed_out)
    for plan in plans:
        ranks = {
            int(path.suffixes[0][1:]): json.loads(path.read_text())
            for path in sorted(folder.glob(f"{plan.name}.*.json"))
        }
        if ranks:
            result.legs[plan.name] = ranks
    return result


def _end(started: "subprocess.Popen[bytes]") -> None:
    """End all processes of the cell, which are in a session of their own."""
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
