"""Measuring the throughput of batches: the floor, our loader, and the method.

The floor is `torch.index_select` of the same rows into preallocated outputs. A cell is one
contender with one number of workers and one batch size; its windows alternate with windows of the
floor, each in its own process, and its ratio is that of the medians.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from ..dataset.dataset import JASPERSteeringDataset
from ..errors import UsageError
from ..files.memory_pages import read_through
from ..loader.create import create_loader
from ..loader.epochs import set_epoch
from ..progress import Progress, Show, errors_of_show_passed_on
from ..rules.integers import as_int64
from ..rules.schema import Batch
from .machine import MB, cores
from .processes import Memory, memory
from .turns import ContenderError, Running, Turns

SPLIT: Final = "train"
_SEED: Final = 7
_FLOOR_POSITIONS: Final = 1 << 20
_PREFETCH: Final = 2
"""Batches in flight per worker by torch's default."""
_TIE: Final = 0.97
"""Fewer workers are preferred if they reach this share of the best rate."""
_SAME_BYTES: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The measurement of one contender; rates in samples per second."""

    contender: str
    workers: int
    batch_size: int
    windows: tuple[float, ...]
    floor_windows: tuple[float, ...]
    open_s: float
    first_batch_s: float
    memory: Memory | None
    """Memory of its process and its workers; None without psutil."""

    @property
    def rate(self) -> float:
        """The median of its windows, in samples per second."""
        return median(self.windows)

    @property
    def floor(self) -> float:
        """The median of the floor's windows between this contender's."""
        return median(self.floor_windows)

    @property
    def ratio(self) -> float:
        """Its rate divided by the floor's."""
        return self.rate / self.floor

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, including derived figures."""
        figures = asdict(self) | {
            "samples_per_s": self.rate,
            "low": min(self.windows),
            "high": max(self.windows),
            "floor_samples_per_s": self.floor,
            "ratio": self.ratio,
        }
        used = figures.pop("memory") or (None, None, None)
        names = ("parent_rss_mb", "workers_pss_mb", "workers_uss_mb")
        return figures | {
            name: None if n_bytes is None else n_bytes / MB
            for name, n_bytes in zip(names, used, strict=True)
        }


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A contender that could not be measured, and why."""

    contender: str
    workers: int
    batch_size: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contender to measure; `open` and `load` as for `Turns`."""

    name: str
    workers: int
    open: Callable[[], Running]
    load: Callable[[], object] | None = None


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Number and length of the windows; one more of each kind comes first and is not counted."""

    count: int
    seconds: float


def measure(
    store: Path,
    batch_size: int,
    entrants: Sequence[Entrant],
    windows: Windows,
    progress: Show | None = None,
) -> Iterator[Cell | Skipped]:
    """Measure each entrant at one batch size, against the floor with all cores.

    `progress` is called with the entrant and its workers, and the windows done and in total.
    """
    counted = Progress(progress)
    counted.total = (windows.count + 1) * len(entrants)
    opened = partial(open_floor, store, batch_size, cores())
    with errors_of_show_passed_on(), Turns(opened) as floor:
        for entrant in entrants:
            try:
                yield _measure_one(entrant, batch_size, floor, windows, counted)
            except ContenderError as error:
                yield Skipped(
                    contender=entrant.name,
                    workers=entrant.workers,
                    batch_size=batch_size,
                    why=str(error),
                )


def _measure_one(
    entrant: Entrant, batch_size: int, floor: Turns, windows: Windows, progress: Progress
) -> Cell:
    name = f"{entrant.name}, {workers_text(entrant.workers)}"
    progress.advance(name, 0)  # opening it takes seconds
    with Turns(entrant.open, entrant.load) as contender:
        rates, floor_rates = [], []
        for _ in range(windows.count + 1):
            floor_rates.append(floor.run(windows.seconds))
            rates.append(contender.run(windows.seconds))
            progress.advance(name, 1)
        used = memory(contender.pid)
    return Cell(
        contender=entrant.name,
        workers=entrant.workers,
        batch_size=batch_size,
        windows=tuple(rates[1:]),
        floor_windows=tuple(floor_rates[1:]),
        open_s=contender.started.open_s,
        first_batch_s=contender.started.first_batch_s,
        memory=used,
    )


class Consumer:
    """A trainer that reads one value of each batch, and holds the batch until the next one."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.batch: Batch | None = None

    def __call__(self) -> int:
        """Take the next batch; return its number of samples."""
        self.batch = batch = next(self._batches)
        batch["negative_embs"][0, 0, 0].item()
        return len(batch["relevance"])


def consuming(batches: Iterator[Batch], workers: int, prefetch: int | None = None) -> Running:
    """A contender that iterates over endless batches of `workers` processes, each with `prefetch`
    in flight (None: torch's default)."""
    return Running(Consumer(batches), workers * ((prefetch or _PREFETCH) + 1))


def endless(
    loader: Iterable[Batch], before_epoch: Callable[[int], object] = lambda _: None
) -> Iterator[Batch]:
    """Yield the batches of `loader`, epoch after epoch."""
    for epoch in itertools.count():
        before_epoch(epoch)
        empty = True
        for batch in loader:
            empty = False
            yield batch
            del batch
        if empty:
            raise UsageError(
                "the train split has fewer pairs than one batch; choose a smaller --batch-size"
            )


def open_ours(store: Path, workers: int, batch_size: int) -> Running:
    """Open the package's own loader, as in the README."""
    loader = create_loader(store, SPLIT, batch_size, num_workers=workers)
    batches = endless(loader, partial(set_epoch, loader))
    return consuming(batches, workers, loader.prefetch_factor)


class _Floor:
    """Batches of a shuffled epoch whose row numbers are computed in advance."""

    def __init__(self, dataset: JASPERSteeringDataset, batch_size: int) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        count = min(len(dataset), _FLOOR_POSITIONS) // batch_size
        if not count:
            raise UsageError(
                f"the train split has fewer pairs than one batch of {batch_size}; choose a smaller"
                " --batch-size"
            )
        order = torch.randperm(len(dataset), generator=generator)[: count * batch_size]
        pairs = as_int64(dataset.split_indices)[order]
        sources = as_int64(dataset.hard_negatives)[pairs]
        ends = as_int64(dataset.pair_index)[pairs]
        rows = [
            (dataset.question_embs, ends[:, :1]),
            (dataset.source_embs, ends[:, 1:]),
            (dataset.source_embs, sources),
            (dataset.steering_centroid, pairs[:, None]),
            (dataset.pair_cluster_id, pairs[:, None]),
            (dataset.pair_relevance, pairs[:, None]),
            (dataset.centroid_distances, pairs[:, None]),
            (dataset.negative_tiers, pairs[:, None]),
        ]
        reads = []
        for table, numbers in rows:
            if not table.dtype.is_floating_point:
                table = table.view(_SAME_BYTES[table.element_size()])
            cut = numbers.reshape(count, -1)  # [batches, rows of a batch]
            out = torch.empty((cut.shape[1], *table.shape[1:]), dtype=table.dtype)
            reads.append([(table, index, out) for index in cut.clone().unbind()])
        self._batches = itertools.cycle(list(zip(*reads, strict=True)))
        self._batch_size = batch_size

    def step(self) -> int:
        for table, index, out in next(self._batches):
            torch.index_select(table, 0, index, out=out)
        return self._batch_size


def open_floor(store: Path, batch_size: int, threads: int) -> Running:
    """Open the floor, read by `threads` threads."""
    torch.set_num_threads(threads)
    return Running(_Floor(JASPERSteeringDataset(store, SPLIT), batch_size).step, 0)


def best(cells: Sequence[Cell]) -> Cell:
    """The cell with the fewest workers among those about as fast as the fastest."""
    limit = _TIE * max(cell.rate for cell in cells)
    return min((c for c in cells if c.rate >= limit), key=lambda cell: cell.workers)


def workers_text(count: int) -> str:
    """A number of workers in words."""
    return f"{count} worker{'' if count == 1 else 's'}"


def ratio_text(ratio: float) -> str:
    """A ratio with two significant digits, which distinguish slow loaders."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"


def floor_spread(cells: Iterable[Cell]) -> float:
    """The factor by which the floor varied during the run, at the batch size where it is largest.

    It reads the same rows each time, so the machine causes the variation, possibly the host of a
    virtual machine, whose load is not visible.
    """
    windows: dict[int, list[float]] = {}
    for cell in cells:
        windows.setdefault(cell.batch_size, []).extend(cell.floor_windows)
    return max((max(rates) / min(rates) for rates in windows.values()), default=1.0)


def warm_up(folder: Path, progress: Show | None = None) -> None:
    """Read all files of `folder` into the page cache, in large blocks if the kernel has them."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    if paths:  # else opening the store raises the error
        read_through(paths, progress)
