"""The Trainer of Transformers: over our dataset, or over a loader of ours."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

from jasper_mmap import set_epoch
from tools.frameworks.leg import Leg


class Model(torch.nn.Module):
    """Records its batches; its loss depends on its only weight."""

    def __init__(self, leg: Leg) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.leg = leg

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """A step."""
        self.leg.received(batch)
        return {"loss": self.weight * batch["relevance"].mean()}


class Stop(TrainerCallback):
    """Has a checkpoint saved, and ends, where the leg says so."""

    def __init__(self, leg: Leg, moves: bool) -> None:
        self.leg = leg
        self.moves = moves

    def on_epoch_begin(self, _: Any, state: Any, __: Any, **others: Any) -> None:
        """Its count of epochs, which is a fraction where it resumes."""
        self.leg.epoch(int(state.epoch or 0))
        if self.moves:
            set_epoch(others["train_dataloader"], int(state.epoch))

    def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
        """The end of a step, where checkpoints are saved."""
        control.should_save = control.should_training_stop = self.leg.stopping


class HookTrainer(Trainer):
    """Has a loader of ours; `leg` is set after it was made."""

    leg: Leg

    def get_train_dataloader(self) -> Any:
        """The loader."""
        return self.leg.loader()


def train(leg: Leg, *, hook: bool = False, moves: bool = False) -> None:
    """Train over a dataset; with `hook` over a loader from `get_train_dataloader`, with `moves` and
    a callback that calls `set_epoch`."""
    arguments = TrainingArguments(
        output_dir=str(leg.checkpoint),
        use_cpu=True,
        per_device_train_batch_size=leg.plan.batch_size,
        num_train_epochs=leg.plan.epochs,
        dataloader_drop_last=True,
        dataloader_num_workers=leg.plan.workers,
        dataloader_persistent_workers=leg.plan.workers > 0,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    kind: type[Trainer] = HookTrainer if hook else Trainer
    trainer = kind(
        model=Model(leg),
        args=arguments,
        train_dataset=None if hook else leg.dataset(),
        data_collator=default_collate,
        callbacks=[Stop(leg, moves)],
    )
    if hook:
        trainer.leg = leg
    if leg.plan.measure_s:
        leg.serving(trainer.get_train_dataloader())
    resumed = next(Path(leg.checkpoint).glob("checkpoint-*"), None) if leg.plan.resumes else None
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
