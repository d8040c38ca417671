"""What a device does for a batch: whether it is waited for, how fast it is, what it runs.

Shape letters: `B` batch, `D` embedding_dim, `N` n_neg.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, repeat
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from jasper_mmap import Batch, JASPERDataLoader, JASPERSteeringDataset, create_loader
from jasper_mmap.rules.schema import WIDE

PROFILED = 40
"""Batches that are profiled."""
TURNS = 3
"""Of which the fastest counts."""
WAITING = ("Pageable", "DtoH")
"""Parts of the profiler's names of copies that nothing should make."""


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Let torch raise an error where it waits for the device (not everywhere, it says itself)."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def waits(name: str, read: Callable[[], object]) -> Iterator[str]:
    """Yield a line if `read` waits for the device; it is called once before, to allocate."""
    read()
    try:
        with refusing_to_wait():
            read()
    except RuntimeError as error:
        yield f"{name} waits for the device: {' '.join(str(error).split()):.200}"


def waits_of_store(store: Path, device: torch.device) -> Iterator[str]:
    """Yield a line for each way to read the store that waits for the device."""
    value = torch.ones(1, device=device)
    if not list(waits("item", value.item)):
        yield "torch does not notice that item() waits: that nothing else does shows nothing"
    size = 16
    loader = create_loader(store, "train", size, device=device, drop_last=False)
    dataset = loader.dataset_obj
    positions = range(min(size, len(dataset)))
    yield from waits("a list of positions", lambda: dataset.__getitems__(positions))
    yield from waits("a sample", lambda: dataset[0])
    yield from waits("a pass", lambda: list(islice(loader, 8)))  # several look-ups
    dataset.close()


def synchronize(device: torch.device) -> None:
    """Wait for all that is queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return how long `work` takes, to the end of what it queues on the device."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def batches_of(loader: JASPERDataLoader) -> Iterator[Batch]:
    """Yield the batches of one pass after the other."""
    for again in repeat(loader):
        yield from again


def consume(batches: Iterable[object]) -> None:
    """Take every batch, and keep none."""
    for _ in batches:
        pass


def preload(store: Path, device: torch.device) -> tuple[float, float]:
    """Return the bytes of the tables and the seconds to open them on the device; the files are in
    memory, and the device is in use, since they were opened once before."""
    JASPERSteeringDataset(store, "train", device=device).close()
    opened: list[JASPERSteeringDataset] = []
    seconds = seconds_of(
        lambda: opened.append(JASPERSteeringDataset(store, "train", device=device)), device
    )
    size = opened[0].memory_usage_mb * 2**20
    opened[0].close()
    return size, seconds


def gather_speeds(loader: JASPERDataLoader, batches: int) -> dict[str, float]:
    """Return samples/s and GB/s of embeddings, of the loader and of a plain `index_select`.

    The latter reads as many rows, at random, from the same table, into the same memory each time.
    The loader must have whole batches only.
    """
    dataset, batch_size = loader.dataset_obj, loader.batch_size or 1
    device, stack = dataset.device, dataset.reader.served.stack
    table = dataset.source_embs if stack is None else stack.table
    rows = batch_size * (len(WIDE) - 1 + dataset.n_neg)
    index = torch.randint(len(table), (rows,), device=device)
    out = torch.empty((rows, dataset.embedding_dim), dtype=table.dtype, device=device)
    coming = batches_of(loader)

    def ours() -> None:
        consume(islice(coming, batches))

    def plain() -> None:
        for _ in range(batches):
            torch.index_select(table, 0, index, out=out)

    written = {ours: rows * dataset.embedding_dim * 4, plain: out.nbytes}
    speeds = {}
    for name, work in (("ours", ours), ("index_select", plain)):
        work()
        rate = batches / min(seconds_of(work, device) for _ in range(TURNS))
        speeds[f"{name}_samples_per_s"] = rate * batch_size
        speeds[f"{name}_gb_per_s"] = rate * written[work] / 1e9
    return speeds


def device_work(loader: JASPERDataLoader) -> dict[str, float]:
    """Return how often a batch runs each of `kinds_of` on the device."""
    device, coming = loader.dataset_obj.device, batches_of(loader)
    consume(islice(coming, PROFILED))
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        consume(islice(coming, PROFILED))
        synchronize(device)
    names = [event.name for event in profiled.events() if event.device_type.name == "CUDA"]
    return {kind: count / PROFILED for kind, count in kinds_of(names).items()}


def kinds_of(names: Iterable[str]) -> Counter[str]:
    """Count what the profiler names on a device: kernels together, each kind of copy and fill."""
    other = ("Memcpy", "Memset")
    return Counter(name if name.startswith(other) else "kernels" for name in names)


def waiting_copies(kinds: Iterable[str]) -> Iterator[str]:
    """Yield a line for each kind of copy that makes the CPU and the device wait for each other."""
    for kind in kinds:
        if any(part in kind for part in WAITING):
            yield f"a batch takes a copy that waits: {kind}"
