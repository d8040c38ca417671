"""The benchmark: its figures follow from its windows, its contenders make true batches, it ends."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
import torch
from click.testing import CliRunner

from jasper_mmap.bench.measure import (
    Cell,
    Consumer,
    Entrant,
    Skipped,
    Windows,
    best,
    floor_spread,
    measure,
    open_floor,
)
from jasper_mmap.bench.processes import Memory
from jasper_mmap.bench.report import table_of, windows_text
from jasper_mmap.bench.turns import ContenderError, Running, Turns, in_own_process
from jasper_mmap.commands.main import command
from jasper_mmap.errors import UsageError
from jasper_mmap.rules.schema import COLUMNS
from tests.oracle import Oracle
from tests.publishing import until
from tools.bench import __main__ as program
from tools.bench.contenders import Contender
from tools.bench.inputs import Inputs, inputs_of
from tools.bench.plot import plot
from tools.bench.table import markdown

ROOT = Path(__file__).parents[2]
# A run takes long: those who look at its answer share it.
once = pytest.mark.xdist_group("bench")
TINY = ("--windows", "2", "--seconds", "0.02")
MODULES = {"datasets", "tensordict", "litdata", "streaming"}


def a_cell(**changes: Any) -> Cell:
    """Return a cell of made-up figures."""
    settings: dict[str, Any] = {
        "contender": "ours",
        "workers": 0,
        "batch_size": 32,
        "windows": (90.0, 80.0, 300.0),
        "floor_windows": (100.0, 400.0, 120.0),
        "open_s": 0.1,
        "first_batch_s": 0.2,
        "memory": Memory(parent_rss=1 << 20, workers_pss=2 << 20, workers_uss=3 << 20),
    }
    return Cell(**settings | changes)


@pytest.fixture(scope="module")
def answer(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the JSON of a quick run on a tiny store."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = [str(demo_store), "--quick", "--batch-sizes", "32", *TINY]
    files = ["--cache", str(folder), "--json", str(folder / "j"), "--plot", str(folder / "p.svg")]
    program.command.main([*arguments, *files], standalone_mode=False)
    assert ElementTree.parse(folder / "p.svg").getroot().tag.endswith("svg")
    found: dict[str, Any] = json.loads((folder / "j").read_text())
    return found


@once
def test_quick_run_measures_every_cell(answer: dict[str, Any]) -> None:
    """The floor of one thread, ours and the per-sample dataset, with and without workers."""
    assert answer["skipped"] == []
    cells = [(c["contender"], c["workers"], c["batch_size"]) for c in answer["cells"]]
    measured = [(name, n, 32) for name in ("ours", "per-sample") for n in (0, 2)]
    assert cells == [("floor-1", 0, 32), *measured]


@once
def test_quick_run_tells_finite_positive_figures(answer: dict[str, Any]) -> None:
    """Rates, times and memory of each cell; a loader without workers has none in workers."""
    for cell in answer["cells"]:
        always = ("samples_per_s", "low", "high", "ratio", "open_s", "first_batch_s")
        figures = [cell[name] for name in (*always, "floor_samples_per_s", "parent_rss_mb")]
        figures += [*cell["windows"], *cell["floor_windows"]]
        if cell["workers"]:
            figures += [cell["workers_pss_mb"], cell["workers_uss_mb"]]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures), cell
        assert len(cell["windows"]) == len(cell["floor_windows"]) == 2
    assert all(used["bytes_per_pair"] > 0 for used in answer["disk"].values())


@once
def test_ratio_is_that_of_the_medians(answer: dict[str, Any]) -> None:
    """Computed again from the windows in the JSON, by sorting."""
    for cell in answer["cells"]:
        low, high = sorted(cell["windows"])
        floor_low, floor_high = sorted(cell["floor_windows"])
        assert cell["ratio"] == pytest.approx((low + high) / (floor_low + floor_high))
    assert a_cell().ratio == 90 / 120


def test_bench_command_names_a_setting_of_workers(demo_store: Path) -> None:
    """Its JSON holds the fastest cell's number of workers, and whether data limits a step."""
    arguments = ["bench", str(demo_store), "--batch-size", "32", "--workers", "0,1", *TINY]
    told = CliRunner().invoke(command, [*arguments, "--step-ms", "5", "--json"])
    assert told.exit_code == 0, told.output
    answer = json.loads(told.output)
    assert [cell["workers"] for cell in answer["cells"]] == [0, 1]
    rates = {cell["workers"]: cell["samples_per_s"] for cell in answer["cells"]}
    best_rate = max(rates.values())
    assert answer["best_workers"] == min(n for n, rate in rates.items() if rate >= 0.97 * best_rate)
    assert answer["step"]["sentence"].startswith("a training step of 5 ms, batches of 32: data")
    assert [cell["workers"] for cell in answer["step"]["measured"]] in ([0], [0, 1])


WITHOUT_PSUTIL = """
import sys
sys.modules["psutil"] = None
from jasper_mmap.__main__ import main
main()
"""


def test_bench_command_works_without_psutil(demo_store: Path) -> None:
    """It knows neither memory nor load then, and says so."""
    arguments = ["bench", str(demo_store), "--batch-size", "32", "--workers", "1", *TINY]
    command = [sys.executable, "-c", WITHOUT_PSUTIL, *arguments]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "ours" in told
    assert "best here: num_workers=1" in told
    assert "unknown without psutil" in told
    assert "PSS" not in told
    assert a_cell(memory=None).to_dict()["parent_rss_mb"] is None


def test_table_shows_memory_as_sizes_where_it_is_known() -> None:
    """That of workers only where there are any."""
    table = table_of([a_cell(), a_cell(workers=2), a_cell(memory=None)])
    assert table.header[-3:] == ("parent", "workers PSS", "USS")
    assert [row[-3:] for row in table.rows] == [
        ("1.0 MiB", "", ""),
        ("1.0 MiB", "2.0 MiB", "3.0 MiB"),
        ("", "", ""),
    ]
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert table_of([a_cell(memory=None)]).header[-1] == "first ms"


def test_bench_command_says_that_a_batch_is_larger_than_the_split(demo_store: Path) -> None:
    """The reason of a failure in a process of its own reaches the user."""
    arguments = ["bench", str(demo_store), "--batch-size", "100000", *TINY]
    told = CliRunner().invoke(command, arguments)
    assert isinstance(told.exception, ContenderError)
    assert "fewer pairs than one batch" in str(told.exception)


def test_best_prefers_fewer_workers_at_equal_speed() -> None:
    """A cell within three percent of the fastest is as good."""
    cells = [a_cell(workers=n, windows=(rate,)) for n, rate in ((0, 90.0), (1, 99.0), (2, 100.0))]
    assert best(cells).workers == 1


def test_floor_spread_is_that_of_one_batch_size() -> None:
    """Other batch sizes have other floors; cells of one have the same."""
    cells = [
        a_cell(batch_size=size, floor_windows=rates)
        for size, rates in ((32, (100.0, 110.0)), (32, (130.0, 90.0)), (512, (900.0, 1000.0)))
    ]
    assert floor_spread(cells) == 130 / 90


def test_floor_reads_all_rows_of_a_batch(demo_store: Path, demo_folder: Path) -> None:
    """Its outputs hold, in turn, what the oracle says of the pairs of one batch."""
    floor = open_floor(demo_store, 8, torch.get_num_threads()).step
    assert floor() == 8
    made = next(floor.__self__._batches)  # type: ignore[attr-defined]
    for table, index, out in made:
        torch.index_select(table, 0, index, out=out)
    question, target, negatives, *_ = (out for _, _, out in made)
    oracle = Oracle(demo_folder)
    pairs = made[3][1].tolist()
    positions = [oracle.splits["train"].index(pair) for pair in pairs]
    batch = oracle.batch("train", positions, [1] * 8)
    assert torch.equal(question, batch["question_emb"])
    assert torch.equal(target, batch["target_source_emb"])
    assert torch.equal(negatives, batch["negative_embs"].flatten(0, 1))
    assert torch.equal(made[3][2], batch["steering"])


@pytest.fixture(scope="module")
def inputs(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Return the tiny store as the benchmark's input."""
    return inputs_of(demo_store, tmp_path_factory.mktemp("cache"), 0)


@pytest.fixture
def sharing() -> Iterator[None]:
    """Undo a contender's choice of how torch shares tensors."""
    before = torch.multiprocessing.get_sharing_strategy()
    yield
    torch.multiprocessing.set_sharing_strategy(before)


@pytest.mark.usefixtures("sharing")
@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize("contender", program.ALL.values(), ids=list(program.ALL))
def test_contenders_make_true_batches(contender: Contender, inputs: Inputs) -> None:
    """Every row of a batch is one pair of the split with all that belongs to it."""
    if contender.name in MODULES and importlib.util.find_spec(contender.name) is None:
        pytest.skip(f"{contender.name} is not installed")
    if contender.load is not None:
        contender.load()
    folder = contender.folder(inputs)
    if contender.prepare is not None:
        folder.mkdir(exist_ok=True)
        in_own_process(partial(contender.prepare, folder, inputs.store, 100))
    step = contender.open(folder, 0, 16).step
    assert step() == 16
    assert isinstance(step, Consumer)
    batch: Any = step.batch
    assert batch.keys() == COLUMNS.keys()
    oracle = Oracle(inputs.pt)
    for row in range(16):
        sample = {name: column[row] for name, column in batch.items()}
        variant = int(sample["steering_variant"])
        assert any(
            all(torch.equal(sample[name], true[name]) for name in COLUMNS)
            for position in range(len(oracle.splits["train"]))
            if torch.equal(
                sample["target_source_emb"],
                (true := oracle.sample("train", position, variant))["target_source_emb"],
            )
        )


def _failing() -> Running:
    raise RuntimeError("no such thing")


def _dying() -> Running:
    os._exit(3)


def test_a_contender_that_fails_is_told_and_left_out(demo_store: Path) -> None:
    """One raises and one ends its process; the next is measured all the same."""
    floor = partial(open_floor, demo_store, 8, 1)
    wanted = [
        Entrant(name=name, workers=0, open=opened)
        for name, opened in (("fails", _failing), ("dies", _dying), ("floor", floor))
    ]
    shown: list[tuple[str, int, int]] = []
    windows = Windows(count=1, seconds=0.01)
    fails, dies, good = measure(demo_store, 8, wanted, windows, lambda *now: shown.append(now))
    assert isinstance(fails, Skipped)
    assert "no such thing" in fails.why
    assert isinstance(dies, Skipped)
    assert "exit code 3" in dies.why
    assert isinstance(good, Cell)
    names = [f"{name}, 0 workers" for name in ("fails", "dies", "floor", "floor", "floor")]
    assert shown == [(n, d, 6) for n, d in zip(names, (0, 0, 0, 1, 2), strict=True)]


def test_windows_are_counted_in_words() -> None:
    """Of one there is no median."""
    assert windows_text(Windows(count=1, seconds=0.5)) == "one window of 0.5 s"
    assert windows_text(Windows(count=5, seconds=1.0)) == "medians of 5 windows of 1 s"


def tree(pid: int) -> list[int]:
    """Return a process and all under it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def test_closing_ends_the_process_and_its_workers(demo_store: Path) -> None:
    """Of a contender with two workers nothing is left."""
    with Turns(partial(program.ALL["stock"].open, demo_store, 2, 8)) as turns:
        started = tree(turns.pid)
        assert len(started) >= 3
    until(lambda: not [pid for pid in started if Path(f"/proc/{pid}").exists()])


def test_interrupt_ends_all_processes(demo_store: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a run leaves none of its processes behind."""
    arguments = [str(demo_store), "--only", "per-sample", "--workers", "2", "--batch-sizes", "8"]
    windows = ("--windows", "5", "--seconds", "0.5")  # 6 s for the cell that is interrupted
    run = subprocess.Popen(
        [sys.executable, "-m", "tools.bench", *arguments, *windows, "--cache", tmp_path],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background of a shell, the tests ignore Ctrl-C, and so would it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stderr is not None
    # After its progress the first cell is there: the second is starting or running.
    assert any("samples/s" in line for line in iter(run.stderr.readline, ""))
    time.sleep(1)
    started = tree(run.pid)
    assert len(started) >= 4  # with multiprocessing's two servers, the floor and a contender
    run.send_signal(signal.SIGINT)
    with run:
        assert run.wait(60) == 130
    until(lambda: not [pid for pid in started if Path(f"/proc/{pid}").exists()])


def test_plot_has_a_bar_a_cell(tmp_path: Path) -> None:
    """Each with its ratio, in groups that are named, below a legend of all contenders."""
    cells = [
        a_cell(contender=name, batch_size=size, windows=(rate,))
        for name, rate in (("ours", 90.0), ("a<b", 12.0))
        for size in (32, 512)
    ]
    plot(
        [*cells, a_cell(contender="late", workers=2)],
        {"ours": "our own & only"},
        "title",
        tmp_path / "p",
    )
    texts = [e.text for e in ElementTree.parse(tmp_path / "p").iter() if e.tag.endswith("text")]
    counts = {text: texts.count(text) for text in ("0.75", "0.10", "B=32", "B=512", "2 workers")}
    assert counts == {"0.75": 3, "0.10": 2, "B=32": 2, "B=512": 1, "2 workers": 1}
    assert {"title", "our own & only", "a<b", "late"} <= set(texts)


def test_plot_without_matplotlib_says_so_before_anything_is_measured(
    demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = [str(demo_store), "--plot", str(tmp_path / "p.svg"), "--cache", str(tmp_path / "c")]
    with pytest.raises(UsageError, match=r"--plot needs matplotlib .*pip install -e '\.\[bench\]'"):
        program.command.main(arguments, standalone_mode=False)
    assert not any(tmp_path.iterdir())


@once
def test_table_holds_every_cell(answer: dict[str, Any]) -> None:
    """A row for each loader and number of workers; the fastest of a number of workers in bold."""
    lines = markdown(answer).splitlines()[2:]
    rows = {(c["contender"], c["workers"]): c for c in answer["cells"]}
    assert len(lines) == len(rows)
    for line in lines:
        workers, contender, figure = (part.strip() for part in line.strip("|").split("|"))
        cell = rows.pop((contender, int(workers)))
        assert f"{cell['samples_per_s']:,.0f}" in figure
    assert sum("**" in line for line in lines) == 2
