"""One training by a tool: what it is to serve, where it is to stop, and what a rank received.

The process that runs the tool writes a JSON file for each rank, which `verdict` reads. Nothing here
depends on a tool.
"""

import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.distributed as dist

from jasper_mmap import (
    JASPERDataLoader,
    JASPERSteeringDataset,
    create_loader,
    publish_negatives,
    set_epoch,
)
from jasper_mmap.errors import JasperError
from jasper_mmap.rules.names import Split

Distributed = bool | Literal["auto"]


class MeasuredError(Exception):
    """Ends a training whose loader was measured before its first step."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a leg is to do; plain values, so that it can be sent to the process that does it."""

    name: str
    store: str
    folder: str
    """For what the ranks write, and for the tool's checkpoint."""
    world: int
    distributed: Distributed
    split: Split = "train"
    batch_size: int = 8
    drop_last: bool | None = None
    workers: int = 0
    epochs: int = 3
    stop_at: tuple[int, int] | None = None
    """Epoch, and batch in it, after which to save a checkpoint and stop."""
    resumes: bool = False
    """Whether to begin with the checkpoint of an earlier leg in the same folder."""
    publish_at: tuple[int, int] | None = None
    """Epoch, and batch in it, after which to publish new negatives and have them reloaded."""
    measure_s: float = 0.0
    """Above 0: instead of training, measure the loader that the tool iterates, for so long."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return what `to_dict` made, also after JSON."""
        pairs = {
            key: tuple(values[key]) for key in ("stop_at", "publish_at") if values[key] is not None
        }
        return cls(**{**values, **pairs})


@dataclass(kw_only=True)
class Leg:
    """A plan, and the record of this process, which is one rank."""

    plan: Plan
    stopping: bool = False
    """Whether the tool should save its checkpoint and stop now."""
    _epoch: int = 0
    _batch: int = 0
    _loader: JASPERDataLoader | None = None
    _batches: list[dict[str, Any]] = field(default_factory=list)
    _published_at: int | None = None
    _speed: dict[str, float] | None = None

    @property
    def checkpoint(self) -> Path:
        """Where the tool saves its checkpoint."""
        return Path(self.plan.folder) / "checkpoint"

    @property
    def begin(self) -> int:
        """The epoch to begin with, for a tool whose loop is the user's."""
        return self.plan.stop_at[0] if self.plan.resumes and self.plan.stop_at else 0

    @property
    def done(self) -> int:
        """How many batches of that epoch were trained before, by each rank."""
        return self.plan.stop_at[1] if self.plan.resumes and self.plan.stop_at else 0

    def loader(self, **changes: Any) -> JASPERDataLoader:
        """Return a loader of `create_loader` as the plan says."""
        plan = self.plan
        self._loader = create_loader(
            plan.store,
            plan.split,
            plan.batch_size,
            plan.workers,
            **{"distributed": plan.distributed, "drop_last": plan.drop_last, **changes},
        )
        return self._loader

    def dataset(self) -> JASPERSteeringDataset:
        """Return the bare dataset, for a tool that makes its own loader."""
        return self.loader(distributed=False).dataset_obj

    def epoch(self, number: int) -> None:
        """Begin an epoch, as the tool counts them."""
        self._epoch, self._batch = number, 0

    def received(self, batch: Mapping[str, Any]) -> bool:
        """Record a batch that the tool gave to a training step; return `stopping`."""
        question = batch["question_emb"]
        self._batches.append(
            {
                "epoch": self._epoch,
                "pairs": question[:, 0].long().tolist(),
                "variants": batch["steering_variant"].tolist(),
                "generation": int(batch["negative_tiers"].max()),
                "device": str(question.device),
            }
        )
        self._batch += 1
        place = (self._epoch, self._batch)
        if place == self.plan.publish_at:
            self._publish()
        if place == self.plan.stop_at and not self.plan.resumes:
            self.stopping = True
        return self.stopping

    def _publish(self) -> None:
        assert self._loader is not None
        dataset = self._loader.dataset_obj
        if rank() == 0:
            tiers = torch.full_like(dataset.negative_tiers, 2)
            publish_negatives(self.plan.store, dataset.hard_negatives.clone(), tiers)
        if dist.is_initialized():
            dist.barrier()
        dataset.reload_negatives()
        self._published_at = len(self._batches)

    def serving(self, loader: Iterable[Any]) -> None:
        """Say which iterable the tool takes its batches from; a leg that measures does it here and
        raises `MeasuredError`."""
        if not self.plan.measure_s:
            return
        own = self.loader(distributed=False)
        rates: dict[str, list[float]] = {"ours": [], "tool": []}
        for _ in range(3):
            rates["ours"].append(_rate(own, self.plan.measure_s / 6))
            rates["tool"].append(_rate(loader, self.plan.measure_s / 6))
        self._speed = {name: sorted(measured)[1] for name, measured in rates.items()}
        raise MeasuredError

    def run(self, train: Callable[["Leg"], None]) -> bool:
        """Train, and write what came; return whether there was no error."""
        error = None
        if self.plan.resumes is False and self.plan.stop_at:
            shutil.rmtree(self.checkpoint, ignore_errors=True)
        try:
            train(self)
        except MeasuredError:
            pass
        except Exception as failure:  # noqa: BLE001 - whatever a tool raises is an answer
            traceback.print_exc()
            error = _described(failure)
        self._write(error)
        return error is None

    @property
    def _file(self) -> Path:
        return Path(self.plan.folder) / f"{self.plan.name}.{rank()}.json"

    def _write(self, error: dict[str, Any] | None) -> None:
        record = {
            "batches": self._batches,
            "published_at": self._published_at,
            "speed": self._speed,
            "error": error,
        }
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(record))
        part.replace(self._file)


def rank() -> int:
    """Return this process's rank, as torchrun and Ray tell it."""
    return int(os.environ.get("RANK", "0"))


def _described(failure: BaseException) -> dict[str, Any]:
    """What an error says, and whether it is one of ours, even inside a tool's."""
    cause: BaseException | None = failure
    while cause is not None and not isinstance(cause, JasperError):
        cause = cause.__cause__ or cause.__context__
    told = cause or failure
    return {"type": type(told).__name__, "text": str(told), "ours": cause is not None}


def _rate(loader: Iterable[Any], seconds: float) -> float:
    """Samples per second of a loader, in passes that go on for `seconds`, after a first batch."""
    samples, began = 0, 0.0
    for batch in chain.from_iterable(repeat(loader)):
        if not began:
            began = time.perf_counter()
            continue
        samples += len(batch["question_emb"])
        if time.perf_counter() - began > seconds:
            break
    return samples / (time.perf_counter() - began)


def loop_of_ones_own(leg: Leg, loader: Any, own: JASPERDataLoader) -> None:
    """Train over `loader`, which a tool may have made of `own`; the state is that of `own`."""
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
