"""Fabric: a loop of one's own over a loader that `setup_dataloaders` returned."""

import torch
from lightning.fabric import Fabric

from jasper_mmap import set_epoch
from tools.frameworks.leg import Leg


def train(leg: Leg) -> None:
    """Train as Fabric's documentation does; the state is that of our own loader."""
    world = leg.plan.world
    fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto")
    fabric.launch()
    own = leg.loader()
    loader = fabric.setup_dataloaders(own)
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
                if fabric.is_global_zero:
                    torch.save(own.state_dict(), leg.checkpoint)
                return
