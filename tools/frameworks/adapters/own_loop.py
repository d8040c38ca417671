"""A loop of one's own, under torchrun where there are several ranks."""

import torch.distributed as dist

from tools.frameworks.leg import Leg, loop_of_ones_own


def train(leg: Leg) -> None:
    """Train as the README's script does."""
    if leg.plan.world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    loader = leg.loader()
    loop_of_ones_own(leg, loader, loader)
