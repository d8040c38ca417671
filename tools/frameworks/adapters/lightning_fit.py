"""Lightning: a loader given to `fit` or `predict`, or returned by the hook of a module."""

import logging
from typing import Any

import lightning.pytorch as pl
import torch

from tools.frameworks.leg import Leg


class Module(pl.LightningModule):
    """Records its batches; its loss depends on its only weight."""

    def __init__(self, leg: Leg, hook: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.leg = leg
        if hook:
            self.train_dataloader = leg.loader

    def on_train_start(self) -> None:
        """Lightning knows where it resumes."""
        self.leg.epoch(self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Its count of epochs."""
        self.leg.epoch(self.current_epoch)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """A step."""
        self.leg.received(batch)
        return self.weight * batch["relevance"].mean()

    def on_train_batch_end(self, *_: Any) -> None:
        """The end of a step, where checkpoints are saved."""
        if self.leg.stopping:
            self.trainer.save_checkpoint(self.leg.checkpoint)
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """No pass is under way, which would compete for the loader's workers."""
        self.leg.serving(self.trainer.train_dataloader)

    def predict_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        """A step of `predict`."""
        self.leg.received(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any optimiser."""
        return torch.optim.SGD(self.parameters(), 0.01)


def train(leg: Leg, *, hook: bool = False, predicts: bool = False, **options: Any) -> None:
    """Fit or predict."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=leg.plan.world,
        strategy="ddp" if leg.plan.world > 1 else "auto",
        max_epochs=leg.plan.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=leg.plan.folder,
        **options,
    )
    module = Module(leg, hook)
    if predicts:
        trainer.predict(module, leg.loader())
        return
    resumed = leg.checkpoint if leg.plan.resumes else None
    trainer.fit(module, None if hook else leg.loader(), ckpt_path=resumed)
