"""Hand loaders to the public functions of tools that make a loader again or wrap one.

`python -m tests.frameworks.handing_over STORE ANSWERS PACKAGE...` is two ranks on gloo; each tries
every function of the packages with every value of `distributed`, and rank 0 writes what both
received in one epoch: the pairs of each rank, or the error.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

from jasper_mmap import JASPERDataLoader, create_loader
from jasper_mmap.errors import JasperError

WORLD = 2
BATCH_SIZE = 8
SKIPPED = 3
VALUES = (False, True, "auto")
Function = Callable[[JASPERDataLoader], Iterable[Any]]


def by_torch() -> Iterator[tuple[str, Function]]:
    """Loaders and samplers made by hand."""
    yield "loader", lambda own: own
    yield "sampler", lambda own: DataLoader(own.dataset_obj, BATCH_SIZE, sampler=own.sampler)
    yield "batch_sampler", lambda own: DataLoader(own.dataset_obj, batch_sampler=own.batch_sampler)

    def divided(own: JASPERDataLoader) -> DistributedSampler[Any]:
        return DistributedSampler(own.dataset_obj, drop_last=True)

    yield (
        "DistributedSampler",
        lambda own: DataLoader(own.dataset_obj, BATCH_SIZE, sampler=divided(own), drop_last=True),
    )
    yield (
        "DistributedSampler, ours",
        lambda own: JASPERDataLoader(
            own.dataset_obj,
            BATCH_SIZE,
            sampler=divided(own),
            drop_last=True,
            distributed=own.distributed,
        ),
    )


def by_torchdata() -> Iterator[tuple[str, Function]]:
    """The loader with a state."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    yield (
        "sampler",
        lambda own: StatefulDataLoader(own.dataset_obj, BATCH_SIZE, sampler=own.sampler),
    )
    yield (
        "batch_sampler",
        lambda own: StatefulDataLoader(own.dataset_obj, batch_sampler=own.batch_sampler),
    )


def by_accelerate() -> Iterator[tuple[str, Function]]:
    """What `Accelerator.prepare` calls, and what it is called with."""
    from accelerate import Accelerator
    from accelerate.data_loader import prepare_data_loader, skip_first_batches

    accelerator = Accelerator(cpu=True)
    cpu = torch.device("cpu")
    ways: dict[str, dict[str, Any]] = {
        "": {},
        "put_on_device": {"device": cpu, "put_on_device": True},
        "split_batches": {"split_batches": True},
        "dispatch_batches": {"dispatch_batches": True, "put_on_device": True},
        "uneven": {"even_batches": False},
        "seedable": {"use_seedable_sampler": True},
        "stateful": {"use_stateful_dataloader": True},
        "one process": {"num_processes": 1, "process_index": 0},
    }
    for name, options in ways.items():
        yield f"prepare_data_loader {name}".strip(), partial(prepare_data_loader, **options)
    yield "prepare", accelerator.prepare
    yield (
        "prepare of torch's",
        lambda own: accelerator.prepare(
            DataLoader(own.dataset_obj, batch_sampler=own.batch_sampler)
        ),
    )
    yield "skip_first_batches", lambda own: skip_first_batches(own, SKIPPED)
    yield (
        "skip_first_batches of prepared",
        lambda own: skip_first_batches(prepare_data_loader(own), SKIPPED),
    )
    yield (
        "prepared skip_first_batches",
        lambda own: prepare_data_loader(
            skip_first_batches(own, WORLD * SKIPPED), even_batches=False
        ),
    )


def by_lightning() -> Iterator[tuple[str, Function]]:
    """Fabric's; the Trainer's are in the matrix."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=WORLD)
    fabric.launch()
    yield "setup_dataloaders", fabric.setup_dataloaders
    yield (
        "setup_dataloaders, undivided",
        partial(fabric.setup_dataloaders, use_distributed_sampler=False),
    )


def by_transformers() -> Iterator[tuple[str, Function]]:
    """The Trainer's over our dataset."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        TemporaryDirectory().name,
        use_cpu=True,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        report_to=[],
    )

    def trainer(own: JASPERDataLoader) -> Any:
        return Trainer(
            torch.nn.Linear(1, 1),
            arguments,
            data_collator=torch.utils.data.default_collate,
            train_dataset=own.dataset_obj,
            eval_dataset=own.dataset_obj,
        )

    yield "get_train_dataloader", lambda own: trainer(own).get_train_dataloader()
    yield "get_eval_dataloader", lambda own: trainer(own).get_eval_dataloader()
    yield "get_test_dataloader", lambda own: trainer(own).get_test_dataloader(own.dataset_obj)


FUNCTIONS = {
    "torch": by_torch,
    "torchdata": by_torchdata,
    "accelerate": by_accelerate,
    "lightning": by_lightning,
    "transformers": by_transformers,
}


def received(store: str, function: Function, distributed: Any) -> list[int] | str:
    """The pairs of this rank in one epoch, or the error."""
    own = create_loader(store, "train", BATCH_SIZE, distributed=distributed)
    try:
        return [
            int(pair) for batch in function(own) for pair in batch["question_emb"][:, 0].tolist()
        ]
    except JasperError as error:
        return f"{error}"
    except Exception as error:  # noqa: BLE001 - an answer too
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def be(rank: int, store: str, folder: str, packages: list[str]) -> None:
    """Be a rank."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=WORLD)
    answers: dict[str, Any] = {}
    for package in packages:
        for name, function in FUNCTIONS[package]():
            for distributed in VALUES:
                gathered: list[Any] = [None] * WORLD
                dist.all_gather_object(gathered, received(store, function, distributed))
                answers[f"{package} {name} {distributed}"] = gathered
    if rank == 0:
        Path(folder, "answers.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


def main(store: str, folder: str, packages: list[str]) -> int:
    """Import the tools once, and be the parent of the ranks."""
    os.environ.update(
        WORLD_SIZE=str(WORLD),
        LOCAL_WORLD_SIZE=str(WORLD),
        MASTER_ADDR="localhost",
        MASTER_PORT="29500",
        TORCHELASTIC_RUN_ID="none",
    )
    for package in packages:
        __import__(package)
    ranks = [
        get_context("fork").Process(target=be, args=(rank, store, folder, packages))
        for rank in range(WORLD)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return max(abs(process.exitcode or 0) for process in ranks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
