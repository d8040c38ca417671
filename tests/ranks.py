"""Ranks of torch.distributed as processes of a test; they meet in a file, without torchrun."""

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE_S = 120


def ranks(world: int, folder: Path, do: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `do(rank, *arguments)` in each of `world` ranks; return what each returned.

    What a rank raises is returned, so that a test sees that none waits. One that was killed has
    returned None.
    """
    folder.mkdir()
    start = multiprocessing.get_context("forkserver")
    processes = [
        start.Process(target=_rank, args=(rank, world, folder, do, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
        assert process.exitcode is not None, "a rank waits"
    answers = [folder / str(rank) for rank in range(world)]
    return [pickle.loads(path.read_bytes()) if path.exists() else None for path in answers]


def _rank(rank: int, world: int, folder: Path, do: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/group",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=PATIENCE_S / 2),
    )
    try:
        answer = do(rank, *arguments)
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        answer = error
    (folder / str(rank)).write_bytes(pickle.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()
