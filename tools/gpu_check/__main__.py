"""Run `python -m tools.gpu_check [DIR]` to check the device path on this machine's GPU.

DIR is a store or a builder's folder and stays as it is; without it random data is made. Batches of
every split and variant must equal the CPU's bit for bit, before and after a reload, also of tables
of different dtypes, and nothing may wait for the device. Then it measures the copy to the device,
the gather beside a plain `torch.index_select`, and what the device runs a batch. The exit status is
1 if a check fails, or if there is no GPU.
"""

import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch

from jasper_mmap import JASPERSteeringDataset, create_loader
from jasper_mmap.console import (
    PATH,
    Command,
    debug_option,
    echo,
    echo_json,
    echo_table,
    json_option,
    run,
)
from jasper_mmap.dataset.device.placement import Placement, placement_for
from jasper_mmap.errors import FURTHER, DeviceError, JasperError
from tools.gpu_check.equality import differences_of_loaders, differences_of_store
from tools.gpu_check.measures import (
    device_work,
    gather_speeds,
    preload,
    waiting_copies,
    waits_of_store,
)
from tools.gpu_check.stores import mixed_store, own_store

BATCHES = 200
"""Batches of a measurement."""
MOST_PROBLEMS = 10
"""Problems that are reported of one store and check."""


def problems_of(store: Path, placement: Placement, name: str) -> list[str]:
    """Return what is wrong with batches of `store` on the device; publishes to it."""
    device = placement.device
    checks = (
        differences_of_store(store, placement),
        differences_of_loaders(store, device),
        waits_of_store(store, device),
    )
    problems = []
    for check in checks:
        problems += [f"{name}: {problem}" for problem in islice(check, MOST_PROBLEMS)]
        torch.cuda.empty_cache()  # what is cached does not count as free
    return problems


def figures_of(store: Path, device: torch.device, batch_size: int) -> dict[str, float]:
    """Return what was measured of one store."""
    n_bytes, seconds = preload(store, device)
    torch.cuda.empty_cache()
    with JASPERSteeringDataset(store, "train") as dataset:
        batch_size = min(batch_size, len(dataset))
    loader = create_loader(store, "train", batch_size, device=device, drop_last=True)
    return {
        "preload_gb": n_bytes / 1e9,
        "preload_gb_per_s": n_bytes / 1e9 / seconds,
        "batch_size": batch_size,
        **gather_speeds(loader, BATCHES),
        **{f"{kind}, a batch": count for kind, count in device_work(loader).items()},
    }


@click.command(cls=Command, help=(__doc__ or "").partition("\n\n")[2])
@click.argument("folder", metavar="[DIR]", type=PATH, required=False)
@click.option("--device", default="cuda", show_default=True, help="E.g. cuda:1.")
@click.option("--batch-size", type=click.IntRange(1), default=512, show_default=True)
@json_option()
@debug_option
def command(folder: Path | None, *, device: str, batch_size: int, as_json: bool) -> None:
    """Check, measure, and print the figures."""
    placement = placement_for(device)
    if not placement.copied:
        raise DeviceError(f"--device {device}: it must be a CUDA device, e.g. cuda:0.")
    with tempfile.TemporaryDirectory(prefix="jasper-gpu-check-") as root:
        store = own_store(folder, Path(root))
        problems = []
        for name, path in (("store", store), ("mixed dtypes", mixed_store(Path(root)))):
            echo(f"comparing {name} ...", err=True)
            problems += problems_of(path, placement, name)
        echo("measuring ...", err=True)
        figures = figures_of(store, placement.device, batch_size)
    problems += waiting_copies(figures)
    answer: dict[str, Any] = {
        "device": torch.cuda.get_device_name(placement.device),
        "torch": torch.__version__,
        "problems": problems,
        "figures": figures,
    }
    if as_json:
        echo_json(answer)
    else:
        echo(f"{answer['device']}, torch {answer['torch']}")
        rows = [(name, f"{value:,.2f}") for name, value in figures.items()]
        echo_table(("figure", "value"), rows, right=(1,))
    if problems:
        raise JasperError(FURTHER.join(problems))
    echo("Batches equal the CPU's bit for bit, and nothing waits for the device.", err=as_json)


if __name__ == "__main__":
    run(command)
