"""One process of a cell: a rank, or the one that has the tool start its ranks.

Its job is a JSON file: the name of the way, and the plans of its legs.
"""

import json
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tools.frameworks.leg import Leg, Plan
from tools.frameworks.ways import WAYS


def train(leg: Leg, *, adapter: str, **options: Any) -> None:
    """Import the adapter, which imports its tool, and train."""
    import_module(f"tools.frameworks.adapters.{adapter}").train(leg, **options)


def run_legs(file: str) -> bool:
    """Run the legs in order, until one fails; return whether none did."""
    job = json.loads(Path(file).read_text())
    way = WAYS[job["way"]]
    torch.set_num_threads(1)
    for values in job["legs"]:
        leg = Leg(plan=Plan.from_dict(values))
        if not leg.run(partial(train, adapter=way.adapter, **way.options)):
            return False
        if dist.is_initialized():
            dist.barrier()  # a checkpoint is written by one rank
    return True


def main(file: str, environment: dict[str, str], log: str) -> None:
    """Be a rank, or have the tool start its ranks; what is printed goes to `log`."""
    os.setsid()  # so that its workers can be ended with it
    with Path(log).open("a") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.environ.update(environment)
    os.chdir(Path(file).parent)
    job = json.loads(Path(file).read_text())
    if not WAYS[job["way"]].torchrun:
        import_module("tools.frameworks.adapters.ray_loop").start(file, job["legs"][0]["world"])
        return
    if not run_legs(file):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # other ranks may wait for this one
    if dist.is_initialized():
        dist.destroy_process_group()
