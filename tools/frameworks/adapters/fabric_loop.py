"""Fabric: a loop of one's own over a loader that `setup_dataloaders` returned."""

from lightning.fabric import Fabric

from tools.frameworks.leg import Leg, loop_of_ones_own


def train(leg: Leg) -> None:
    """Train as Fabric's documentation does; the state is that of our own loader."""
    world = leg.plan.world
    fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto")
    fabric.launch()
    own = leg.loader()
    loader = fabric.setup_dataloaders(own)
    loop_of_ones_own(leg, loader, own)
