"""A loop of one's own, under torchrun where there are several ranks."""

import torch
import torch.distributed as dist

from jasper_mmap import set_epoch
from tools.frameworks.leg import Leg


def train(leg: Leg) -> None:
    """Train as the README's script does."""
    if leg.plan.world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    loader = leg.loader()
    leg.serving(loader)
    first = 0
    if leg.plan.resumes:
        state = torch.load(leg.checkpoint)
        loader.load_state_dict(state)
        first = state["epoch"]
    for epoch in range(first, leg.plan.epochs):
        set_epoch(loader, epoch)
        leg.epoch(epoch)
        for batch in loader:
            if leg.received(batch):
                if not dist.is_initialized() or dist.get_rank() == 0:
                    torch.save(loader.state_dict(), leg.checkpoint)
                return
