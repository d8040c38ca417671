"""Ranks of torch.distributed serve the same generation in every epoch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle import Oracle
from tests.publishing import DATA, IMPORTING, LONG, own_copy, publish_numbered, publishing
from tests.serving import Named, NamedOracle

pytestmark = pytest.mark.xdist_group("torchrun")  # each test starts ranks with workers
RANKS, EPOCHS = (4, 20) if LONG else (2, 6)

TRAIN = """
import sys, time
import torch, torch.distributed as dist
from torch.utils.data import DataLoader, Subset
from jasper_mmap import create_loader, set_epoch, watch_negatives
store, adopt, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo")
loader = create_loader(store, "train", 32, 1, distributed=True)
watcher = watch_negatives(loader, 0.1, adopt=adopt)
seen = []
setters = [
    lambda epoch: set_epoch(loader, epoch),
    loader.set_epoch,
    loader.sampler_obj.set_epoch,
    lambda epoch: set_epoch(loader.dataset_obj, epoch),
    lambda epoch: set_epoch(DataLoader(Subset(loader.dataset_obj, [0])), epoch),
]
for epoch in range(epochs):
    setters[epoch % len(setters)](epoch)
    number = loader.dataset_obj.generation
    tiers = {tuple(b["negative_tiers"].flatten().tolist()[:4]) for b in loader}
    seen.append((number, loader.dataset_obj.generation))
    time.sleep(0.2 + 0.1 * dist.get_rank())
    patience = time.monotonic() + 30
    while adopt == "epoch" and dist.get_rank() == 0:
        if loader.dataset_obj.adoption.nominee.number > number:
            break  # there is something to switch to, however slow the publisher's disk
        assert time.monotonic() < patience, "nothing was published"
        time.sleep(0.05)
told = [None] * dist.get_world_size()
dist.all_gather_object(told, seen)
if dist.get_rank() == 0:
    print(told)
    if adopt == "epoch":
        watcher.stop()
        val = create_loader(store, "val", 32)
        set_epoch(val, 7)  # one rank alone: must not wait for the others
del loader
dist.destroy_process_group()
"""

AHEAD = """
behind = [loader.dataset_obj.generation]
dist.broadcast_object_list(behind, src=0)
while dist.get_rank() and loader.dataset_obj.generation <= behind[0]:
    loader.dataset_obj.reload_negatives()
set_epoch(loader, 0)
assert loader.dataset_obj.generation == behind[0], "a rank stayed ahead of rank 0"
watcher ="""


@pytest.fixture
def store(store_named: Named, tmp_path: Path) -> Path:
    """Return a store that the test may change."""
    return own_copy(store_named(DATA), tmp_path / "store")


def seen_by_ranks(
    store: Path, adopt: str, program: str = TRAIN, epochs: int = EPOCHS
) -> list[list[tuple[int, int]]]:
    """Train under torchrun; for each rank the generation at begin and end of each epoch."""
    script = store.with_name("train.py")
    script.write_text(program)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    ran = subprocess.run(
        [*command, "--nproc-per-node", str(RANKS), str(script), str(store), adopt, str(epochs)],
        capture_output=True,
        text=True,
        timeout=240,
        env=IMPORTING,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: list[list[tuple[int, int]]] = ast.literal_eval(ran.stdout.splitlines()[-1])
    return found


def test_ranks_agree_in_every_epoch_while_a_publisher_runs(
    store: Path, folder_named: Named
) -> None:
    """With adopt="epoch" all ranks serve rank 0's generation from begin to end of each epoch."""
    publisher = publishing(store, folder_named(DATA), 0.1)
    seen = seen_by_ranks(store, "epoch")
    publisher.terminate()
    publisher.join()
    print(f"{len(seen)} ranks, generation at begin and end of each epoch: {seen[0]}")
    assert all(rank == seen[0] for rank in seen)
    assert all(begin == end for begin, end in seen[0])
    numbers = [begin for begin, _ in seen[0]]
    assert numbers == sorted(set(numbers)), "an epoch switched to nothing"


def test_ranks_agree_at_the_beginning_of_an_epoch_when_adopting_at_once(
    store: Path, folder_named: Named
) -> None:
    """With adopt="now" they start an epoch together, those ahead of rank 0 come back to what it
    serves, and go on as each sees it."""
    publisher = publishing(store, folder_named(DATA), 0.1)
    program = TRAIN.replace("watcher =", AHEAD, 1)
    seen = seen_by_ranks(store, "now", program, EPOCHS if LONG else 3)
    publisher.terminate()
    publisher.join()
    assert all(end >= begin for rank in seen for begin, end in rank)
    assert seen[0][-1][1] > 1


def test_ranks_stay_where_they_are_when_one_cannot_follow(
    store: Path, oracle_named: NamedOracle
) -> None:
    """A generation that is spoilt for the others is not served by rank 0 alone."""
    oracle: Oracle = oracle_named(DATA)
    publish_numbered(store, oracle)
    program = TRAIN.replace(
        "seen = []",
        "import jasper_mmap.dataset.device.placed_store as s, jasper_mmap.errors as e\n"
        "import jasper_mmap as j\n"
        "seen = []\n"
        "dist.barrier()  # all have opened generation 2\n"
        "if dist.get_rank():\n"
        "    def no(self, pointer, validate): raise e.FormatError('spoilt here')\n"
        "    s.PlacedStore.generation = no\n"
        "else:\n"
        "    d = loader.dataset_obj\n"
        "    tables = d.hard_negatives, d.negative_tiers\n"
        "    n = j.publish_negatives(store, *tables, republish=True)\n"
        "    assert n == 3\n"
        "    while d.adoption.nominee.number != n: time.sleep(0.05)\n"
        "dist.barrier()",
    )
    seen = seen_by_ranks(store, "epoch", program)
    assert {number for rank in seen for number in rank} == {(2, 2)}
