"""Run `python -m tools.bench.lint` to compare the speed of the lint with reading its rows.

The floor is `torch.index_select` of the rows of embeddings that the lint needs (of each pair its
question, right source, negatives and steering), in blocks of 100 pairs into reused buffers. Lint
and floor take turns. The lint is that of a generation with the norms of all rows; it is not kept.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from converters import convert
from jasper_mmap.console import PATH, Command, debug_option, echo, run
from jasper_mmap.printable import size
from jasper_mmap.progress import Progress
from jasper_mmap.rules.integers import as_int64
from jasper_mmap.rules.schema import STEERING
from jasper_mmap.similarity.lint import Linting, LintOptions
from jasper_mmap.store.folder import Store
from jasper_mmap.store.tables import table_tensor

from .inputs import make_folder, make_once

BLOCK = 100
PAIRS = 200_000
TURNS = 5
_SAMPLING_S = 0.01


def floor_of(store: Store, negatives: torch.Tensor) -> Callable[[], None]:
    """Return a function that reads every row that the lint needs, once."""
    tables = {name: table_tensor(table) for name, table in store.tables.items()}
    questions, sources = as_int64(tables["pair_index"]).unbind(1)
    given = torch.cat((sources.unsqueeze(1), as_int64(negatives)), 1)
    pairs = torch.arange(len(questions))
    reads = [("question_embs", questions), ("source_embs", given)]
    reads += [(name, pairs) for name in STEERING if name is not None]
    indices = [(tables[name], rows.reshape(len(pairs), -1)) for name, rows in reads]
    outs = [
        torch.empty((BLOCK * rows.shape[1], table.shape[1]), dtype=table.dtype)
        for table, rows in indices
    ]

    def read() -> None:
        for begin in range(0, len(pairs), BLOCK):
            for (table, rows), out in zip(indices, outs, strict=True):
                index = rows[begin : begin + BLOCK].flatten()
                torch.index_select(table, 0, index, out=out[: len(index)])

    return read


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def anonymous_bytes() -> int:
    """Return the memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


@contextmanager
def peak_memory(peaks: list[int]) -> Iterator[None]:
    """Add to `peaks` how much memory the block took at most, beyond what was in use before."""
    before, ended = anonymous_bytes(), threading.Event()
    most = before

    def watch() -> None:
        nonlocal most
        while not ended.wait(_SAMPLING_S):
            most = max(most, anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        peaks.append(most - before)


@click.command(cls=Command)
@click.option("--store", type=PATH, help="A store.  [default: a random one, kept in --cache]")
@click.option("--pairs", type=click.IntRange(1), default=PAIRS, show_default=True)
@click.option("--turns", type=click.IntRange(1), default=TURNS, show_default=True)
@click.option("--cache", type=PATH, default=Path("build/bench"), show_default=True)
@debug_option
def command(store: Path | None, pairs: int, turns: int, cache: Path) -> None:
    """Measure the lint of a store against the floor."""
    if store is None:
        work, store = cache / f"lint_{pairs}", cache / f"lint_{pairs}" / "store"
        make_once(work / "pt", str(pairs), lambda dst: make_folder(dst, pairs, rows=pairs))
        convert(work / "pt", store)
    opened = Store(store)
    _, generation = opened.current_generation()
    floor = floor_of(opened, generation.tables["hard_negatives"])

    def lint() -> None:
        Linting(opened, LintOptions(), Progress(None)).of_generation(generation.tables)

    peaks: list[int] = []
    floor()  # the first read
    with peak_memory(peaks):
        lint()
    ratios = []
    for turn in range(turns):
        floor_s, lint_s = seconds(floor), seconds(lint)
        ratios.append(lint_s / floor_s)
        echo(f"turn {turn + 1}: floor {floor_s:.2f} s, lint {lint_s:.2f} s, {ratios[-1]:.2f}")
    echo(f"median ratio {statistics.median(ratios):.2f}; the lint took {size(peaks[0])} of memory")


if __name__ == "__main__":
    run(command)
