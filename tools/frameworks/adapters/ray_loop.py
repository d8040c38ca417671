"""Ray Train: a loop of one's own, in workers that Ray starts."""

import os
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader

from jasper_mmap import set_epoch
from tools.frameworks.leg import Leg, rank


def start(file: str, world: int) -> None:
    """Run the legs of a job in `world` workers of Ray."""
    ray.init(
        num_cpus=world + 1,
        include_dashboard=False,
        object_store_memory=100 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
    )
    TorchTrainer(
        in_worker,
        train_loop_config={"file": file},
        scaling_config=ScalingConfig(num_workers=world),
        run_config=RunConfig(storage_path=str(Path(file).parent), name="ray"),
    ).fit()
    ray.shutdown()


def in_worker(config: dict[str, Any]) -> None:
    """Be a rank."""
    from tools.frameworks.rank import run_legs

    if not run_legs(config["file"]):
        raise RuntimeError("a leg failed: its record says why")


def train(leg: Leg, *, prepares: bool = True) -> None:
    """Train as Ray's documentation does; the state is that of our own loader."""
    loader = own = leg.loader()
    if prepares:
        loader = prepare_data_loader(own)
    leg.serving(loader)
    first = 0
    if leg.plan.resumes:
        state = torch.load(leg.checkpoint)
        own.load_state_dict(state)
        first = state["epoch"]
    for epoch in range(first, leg.plan.epochs):
        set_epoch(loader, epoch)
        leg.epoch(epoch)
        for batch in loader:
            if leg.received(batch):
                if rank() == 0:
                    torch.save(own.state_dict(), leg.checkpoint)
                return
