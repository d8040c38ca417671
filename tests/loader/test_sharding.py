"""Who divides a loader among ranks, and when that is decided."""

import ast
import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from jasper_mmap import JASPERDataLoader, JASPERSteeringDataset, create_loader, set_epoch
from jasper_mmap.errors import UsageError
from jasper_mmap.loader import sharding
from jasper_mmap.loader.sampler import RankSampler
from tests.loader.test_rebuilt import joined
from tests.publishing import IMPORTING
from tests.serving import loader_of

NAMED = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment names several processes."""
    for name in NAMED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Return what makes this process a group of one."""

    def begin() -> None:
        dist.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)

    yield begin
    if dist.is_initialized():
        dist.destroy_process_group()


DECIDING: dict[str, Callable[[Any], object]] = {
    "sampler": lambda loader: loader.sampler,
    "batch_sampler": lambda loader: loader.batch_sampler,
    "sampler_obj": lambda loader: loader.sampler_obj,
    "len": len,
    "set_epoch": lambda loader: loader.set_epoch(1),
    "function": lambda loader: set_epoch(loader, 1),
    "state_dict": lambda loader: loader.state_dict(),
    "load_state_dict": lambda loader: loader.load_state_dict(copy.copy(STATE)),
    "pass": iter,
}
STATE: dict[str, Any] = {}


@pytest.mark.parametrize("ask", DECIDING)
def test_auto_is_decided_when_first_asked(
    demo_store: Path, group: Callable[[], None], ask: str
) -> None:
    """Made before there is a group, and divided by it; made and used before, and not."""
    STATE.update(loader_of(demo_store, "train", 8).state_dict())
    before = loader_of(demo_store, "train", 8, distributed="auto")
    DECIDING[ask](before)
    after = loader_of(demo_store, "train", 8, distributed="auto")
    assert "batches=" not in repr(after)  # to look at it decides nothing
    copied = copy.deepcopy(after)
    group()
    for loader in (after, copied):
        DECIDING[ask](loader)
        assert isinstance(loader.sampler, DistributedSampler)
        assert loader.dataset_obj.collective
    assert not isinstance(before.sampler, DistributedSampler)
    assert not before.dataset_obj.collective
    assert len(list(before)) == len(list(after)) == len(before)  # both are the whole


@pytest.mark.parametrize("name", NAMED)
def test_auto_refuses_several_processes_without_a_group(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each would serve everything. One process is one, and False asks for it."""
    monkeypatch.setenv(name, "2")
    loader = loader_of(demo_store, "train", 8, distributed="auto")
    for ask in DECIDING.values():
        with pytest.raises(UsageError, match=rf"{name}=2.*init_process_group"):
            ask(loader)
    assert len(loader_of(demo_store, "train", 8)) == 51
    for value in ("1", "", "4(x2)"):
        monkeypatch.setenv(name, value)
        assert len(loader_of(demo_store, "train", 8, distributed="auto")) == 51


def test_true_needs_a_group_at_once(demo_store: Path) -> None:
    """A loader made before ranks are started would serve everything to each."""
    with pytest.raises(UsageError, match="init_process_group"):
        loader_of(demo_store, "train", 8, distributed=True)
    for wrong in ("yes", 1, None):
        with pytest.raises(UsageError, match="distributed must be True, False or 'auto'"):
            loader_of(demo_store, "train", 8, distributed=wrong)


@pytest.mark.parametrize("distributed", ["auto", True])
def test_another_world_is_an_error_at_the_next_pass(
    demo_store: Path,
    group: Callable[[], None],
    distributed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the group is gone; what was decided stays."""
    group()
    loader = loader_of(demo_store, "train", 8, distributed=distributed)
    list(loader)
    for world in (2, 3):
        monkeypatch.setattr(sharding, "rank_and_world", lambda world=world: (1, world))
        with pytest.raises(UsageError, match=rf"a single process.*is rank 1 of {world} now"):
            iter(loader)
    two = loader_of(demo_store, "train", 8, distributed=distributed)
    assert len(two) == 17
    dist.destroy_process_group()
    with pytest.raises(UsageError, match=r"rank 1 of 3, but this process is a single process now"):
        iter(two)
    assert len(list(loader)) == 51


def test_a_given_sampler_decides_by_itself(demo_store: Path, group: Callable[[], None]) -> None:
    """Auto and True divide nothing that was handed in."""
    group()
    dataset = JASPERSteeringDataset(demo_store, "val")
    for distributed in ("auto", True):
        options: Any = {"distributed": distributed}
        given = BatchSampler(SequentialSampler(dataset), 4, drop_last=False)
        loader = JASPERDataLoader(dataset, batch_sampler=given, **options)
        assert loader.batch_sampler is given
        loader = JASPERDataLoader(dataset, 4, sampler=DistributedSampler(dataset, 2, 1), **options)
        assert isinstance(loader.sampler, RankSampler)
        assert (loader.sampler.rank, loader.sampler.num_replicas) == (1, 2)
        assert len(loader) == -(-len(dataset) // 8)


def test_wrappers_that_copy_attributes_find_the_samplers(demo_store: Path) -> None:
    """As Ray's and Fabric's do, of which the former is a DataLoader too."""

    class Wrapped(DataLoader[Any]):
        def __init__(self, loader: DataLoader[Any]) -> None:
            self.__dict__.update(loader.__dict__)
            self._dataloader = loader

    loader = create_loader(demo_store, "train", 8)
    wrapped = Wrapped(loader)
    assert wrapped.sampler is loader.sampler
    assert wrapped.batch_sampler is loader.batch_sampler
    set_epoch(wrapped, 4)
    assert loader.dataset_obj.current_epoch == 4


def test_accelerate_is_kept_from_dividing_again(
    demo_store: Path, group: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks whether a loader is prepared, before it divides the batches of one that is not."""
    group()
    distributed: Any
    for distributed in (True, "auto", False):
        loader = create_loader(demo_store, "train", 8, distributed=distributed)
        assert getattr(loader, "_is_accelerate_prepared", False) is False
    monkeypatch.setattr(sharding, "rank_and_world", lambda: (1, 2))
    for distributed in (True, "auto"):
        loader = create_loader(demo_store, "train", 8, distributed=distributed)
        with pytest.raises(UsageError, match="distributed=False"):
            getattr(loader, "_is_accelerate_prepared", False)
    assert not create_loader(demo_store, "train", 8)._is_accelerate_prepared


def test_too_few_pairs_for_all_ranks_are_a_warning(
    demo_store: Path,
    group: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ranks without a last batch would keep the others waiting; padding helps."""
    group()
    pairs = len(JASPERSteeringDataset(demo_store, "val"))
    monkeypatch.setattr(sharding, "rank_and_world", lambda: (1, pairs + 1))
    create_loader(demo_store, "val", 8, distributed=True, pad=True)
    assert not caplog.records
    loader = create_loader(demo_store, "val", 8, distributed=True)
    (record,) = caplog.records
    assert f"{pairs} pairs, fewer than {pairs + 1} ranks times 1 batches" in record.getMessage()
    assert len(loader) == 1


# Real ranks

RANK = """
import os, sys
import torch, torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
from jasper_mmap import JASPERDataLoader, create_loader, set_epoch
torch.set_num_threads(1)
store = sys.argv[1]
loader = create_loader(store, "train", 16, 1, distributed="auto")
val, padded = (create_loader(store, "val", 6, distributed="auto", pad=p) for p in (None, True))
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
assert rank == int(os.environ["RANK"])
again = JASPERDataLoader(
    loader.dataset, 16, sampler=DistributedSampler(loader.dataset), drop_last=True
)
def served(loader):
    parts = [None] * world
    dist.all_gather_object(parts, [b["relevance"].tolist() for b in loader])
    return parts
report = {"local": int(os.environ["LOCAL_RANK"]), "lengths": [len(loader), len(val), len(padded)]}
for epoch in (0, 2):
    set_epoch(loader, epoch)
    report[f"train {epoch}"] = served(loader)
    set_epoch(loader, epoch)
    assert served(again) == report[f"train {epoch}"]
report["val"] = served(val)
report["padded"] = served(padded)
report["padding"] = [None] * world
dist.all_gather_object(report["padding"], [padded.padding(k) for k in range(len(padded))])
reports = [None] * world
dist.all_gather_object(reports, report)
if rank == 0:
    print(repr(reports))
dist.destroy_process_group()
"""


def run_ranks(store: Path, folder: Path, nodes: int, per_node: int) -> list[dict[str, Any]]:
    """Run ranks on so many groups of processes, as nodes are; return what each reports."""
    script = folder / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
    command += ["--nnodes", str(nodes), "--nproc-per-node", str(per_node)]
    if nodes == 1:
        command.append("--standalone")
    else:
        port = 20_000 + os.getpid() % 20_000
        command += ["--rdzv-backend", "static", "--master-addr", "127.0.0.1"]
        command += ["--master-port", str(port)]
    running = [
        subprocess.Popen(
            [*command, *(["--node-rank", str(node)] if nodes > 1 else []), str(script), str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=IMPORTING,
        )
        for node in range(nodes)
    ]
    ended = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0] * nodes, ended
    reports: list[dict[str, Any]] = ast.literal_eval(ended[0][0].splitlines()[-1])
    return reports


@pytest.mark.xdist_group("torchrun")
@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (2, 2)])
def test_ranks_divide_an_order(demo_store: Path, tmp_path: Path, nodes: int, per_node: int) -> None:
    """By their rank in the group, not on the node: every pair once, in the order of one process."""
    world = nodes * per_node
    reports = run_ranks(demo_store, tmp_path, nodes, per_node)
    assert sorted(r["local"] for r in reports) == sorted([*range(per_node)] * nodes)
    alone = create_loader(demo_store, "train", 16 * world)
    for epoch in (0, 2):
        set_epoch(alone, epoch)
        parts = reports[0][f"train {epoch}"]
        together = [joined(k) for k in zip(*parts, strict=True)]
        assert together == [batch["relevance"].tolist() for batch in alone]
    val = [batch["relevance"].tolist() for batch in create_loader(demo_store, "val", 6 * world)]
    parts = reports[0]["val"]
    assert [joined(k) for k in zip(*parts, strict=True)] == val
    assert {tuple(r["lengths"]) for r in reports} == {(len(alone), len(val), len(val))}
    padded, padding = reports[0]["padded"], reports[0]["padding"]
    assert len({len(batch) for part in padded for batch in part[-1:]}) == 1
    real = [
        [batch[: len(batch) - pad] for batch, pad in zip(part, pads, strict=True)]
        for part, pads in zip(padded, padding, strict=True)
    ]
    assert [joined(k) for k in zip(*real, strict=True)] == val
