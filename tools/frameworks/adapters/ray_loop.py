"""Ray Train: a loop of one's own, in workers that Ray starts."""

import os
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader

from tools.frameworks.leg import Leg, loop_of_ones_own


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
    loop_of_ones_own(leg, loader, own)
