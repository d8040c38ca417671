"""Accelerate: a loop of one's own over a loader that was prepared, or not.

A prepared loader resumes by `skip_first_batches`, one with a state by `load_state`; a loader that
is not prepared is registered for checkpointing.
"""

from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration

from jasper_mmap import set_epoch
from tools.frameworks.leg import Leg


def train(leg: Leg, *, prepares: bool = True, **options: Any) -> None:
    """Train as Accelerate's documentation does."""
    if options.get("split_batches"):
        options["split_batches"] = leg.plan.world > 1
    configuration = DataLoaderConfiguration(**options)
    accelerator = Accelerator(cpu=True, dataloader_config=configuration)
    model = torch.nn.Linear(1, 1)
    loader = own = leg.loader()
    model = accelerator.prepare(model)
    if prepares:
        loader = accelerator.prepare(own)
    else:
        accelerator.register_for_checkpointing(own)
    leg.serving(loader)
    by_state = not prepares or configuration.use_stateful_dataloader
    # With dispatch_batches, Accelerate skips batches of the process that reads for all.
    skipped = leg.done * (leg.plan.world if options.get("dispatch_batches") else 1)
    if leg.plan.resumes:
        accelerator.load_state(str(leg.checkpoint))
    for epoch in range(leg.begin, leg.plan.epochs):
        leg.epoch(epoch)
        batches: Any = loader
        if leg.done and epoch == leg.begin and not by_state:
            batches = accelerator.skip_first_batches(loader, skipped)
        set_epoch(batches, epoch)
        for batch in batches:
            if leg.received(batch):
                accelerator.save_state(str(leg.checkpoint))
                return
