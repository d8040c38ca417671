"""A dataset copied to a device serves what the mapped one serves, from one copy of the tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jasper_mmap import JASPERSteeringDataset, create_loader
from jasper_mmap.dataset.device.device_runtime import Runtime
from jasper_mmap.dataset.device.placed_store import PlacedStore
from jasper_mmap.dataset.device.placement import Placement, placement_for
from jasper_mmap.errors import DeviceError, DeviceMemoryError
from jasper_mmap.rules.names import Split, Variant
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.pointer import FOLDER, file_name
from jasper_mmap.store.tables import Ragged
from tests.oracle import assert_batches_equal
from tests.serving import SPLITS


class Free(Runtime):
    """A device with so many bytes free."""

    def __init__(self, free: int) -> None:
        self._free = free

    def free_bytes(self, device: torch.device) -> int:
        return self._free


CPU = torch.device("cpu")
COPIED = Placement(CPU, copied=True)

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
PLACEMENTS = [
    pytest.param(COPIED, id="copied"),
    pytest.param("cuda", id="cuda", marks=needs_gpu),
]
FORCED: tuple[Variant | None, ...] = (None, "zero", "keyword", "residual")


def combined(store: Path, where: Any, epoch: int = 0) -> dict[Split, JASPERSteeringDataset]:
    """Open the three splits in a placement or on the device of that name."""
    if isinstance(where, Placement):
        return JASPERSteeringDataset.create_combined_splits(store, epoch, placement=where)
    return JASPERSteeringDataset.create_combined_splits(store, epoch, where)


@pytest.fixture(params=PLACEMENTS)
def where(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return each placement that copies."""
    yield request.param
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def test_batches_equal_the_mapped_ones_bit_for_bit(any_store: Path, where: Any) -> None:
    """Every split in two epochs, with each variant forced too; all of a batch on the device."""
    mapped, placed = combined(any_store, "cpu"), combined(any_store, where)
    for split in SPLITS:
        one, other = mapped[split], placed[split]
        positions = list(range(len(one)))
        for epoch, variant in ((0, None), *((7, v) for v in FORCED)):
            for dataset in (one, other):
                dataset.set_epoch(epoch)
                dataset.force_steering(variant)
            batch = other.__getitems__(positions).columns
            assert {column.device for column in batch.values()} == {other.device}
            on_cpu = {name: column.cpu() for name, column in batch.items()}
            assert_batches_equal(on_cpu, one.__getitems__(positions).columns)


def test_lent_generation_is_copied_like_any_other(store: Path) -> None:
    """What a copy of a dataset takes from its origin lies where its other tables lie."""
    file = store / FOLDER / file_name(1)
    lent = PlacedStore(store, COPIED).lent(1, file)
    mapped = PlacedStore(store, placement_for("cpu")).lent(1, file)
    for name, table in lent.tables.items():
        assert torch.equal(table, mapped.tables[name])
    assert str(file) in Path("/proc/self/maps").read_text()
    del mapped
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_splits_share_one_copy(demo_store: Path, where: Any) -> None:
    """Tables of the three splits are the same memory, and none of it is the mapped file's."""
    placed, mapped = combined(demo_store, where), combined(demo_store, "cpu")
    first = placed["train"]
    for name, artifact in ARTIFACTS.items():
        if artifact.kind == "ragged":
            continue
        pointers = {getattr(dataset, name).data_ptr() for dataset in placed.values()}
        assert len(pointers) == 1, name
        assert getattr(mapped["train"], name).data_ptr() not in pointers
        assert getattr(first, name).device == first.device
        assert torch.equal(getattr(first, name).cpu(), getattr(mapped["train"], name))
    assert {len(dataset.split_indices) for dataset in placed.values()} == {
        len(dataset) for dataset in mapped.values()
    }


def test_keyword_lists_are_copied_too(demo_store: Path, where: Any) -> None:
    """Row i of the ragged table is the mapped one's, on the device."""
    placed, mapped = combined(demo_store, where)["val"], combined(demo_store, "cpu")["val"]
    assert isinstance(placed.pair_keyword_ids, Ragged)
    for row in (0, 5, len(mapped.pair_keyword_ids) - 1):
        assert placed.pair_keyword_ids[row].device == placed.device
        assert placed.pair_keyword_ids[row].tolist() == mapped.pair_keyword_ids[row].tolist()


def test_writing_to_the_copy_leaves_the_file_alone(demo_store: Path, where: Any) -> None:
    """The copy is the dataset's own."""
    placed = combined(demo_store, where)["train"]
    placed.source_embs.zero_()
    placed.force_steering("centroid")
    assert not placed[0]["target_source_emb"].any()
    with JASPERSteeringDataset(demo_store, "train") as fresh:
        assert fresh.source_embs.any()


def test_memory_usage_counts_the_copy_once(demo_store: Path, where: Any) -> None:
    """The same number as mapped: every table counted in full, in MiB."""
    placed, mapped = combined(demo_store, where)["train"], combined(demo_store, "cpu")["train"]
    assert placed.memory_usage_mb == pytest.approx(mapped.memory_usage_mb, rel=0.2)


@pytest.mark.parametrize("free", [0, 256 << 20])
def test_too_little_memory_is_told_before_anything_is_copied(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Need, free memory and the ways out are named; nothing was allocated by then."""

    def place(*_: Any) -> None:
        raise AssertionError("something was copied")

    monkeypatch.setattr(Placement, "place", place)
    with pytest.raises(DeviceMemoryError, match=r"needs .* MB there, but .* MB are free") as caught:
        combined(demo_store, Placement(CPU, copied=True, runtime=Free(free)))
    assert isinstance(caught.value, MemoryError)
    for way in ("device='cpu'", "float16", "free memory"):
        assert way in str(caught.value)


def test_just_enough_memory_suffices(demo_store: Path) -> None:
    """What is asked for beyond the tables is bounded: half a GB more than they have is enough."""
    mapped = combined(demo_store, "cpu")["train"]
    free = int(mapped.memory_usage_mb * 2**20) + (512 << 20)
    placed = combined(demo_store, Placement(CPU, copied=True, runtime=Free(free)))
    assert len(placed["train"]) == len(mapped)


def test_mapped_placement_asks_for_no_memory(demo_store: Path) -> None:
    """Mapping is possible however little is free."""
    nothing_free = Placement(CPU, copied=False, runtime=Free(0))
    assert len(combined(demo_store, nothing_free)["train"])


# Devices that are not there


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_is_refused_where_there_is_none(demo_store: Path, device: Any) -> None:
    """The error says what to do, and is the builtin that torch would raise."""
    with pytest.raises(DeviceError, match="no CUDA device") as caught:
        JASPERSteeringDataset(demo_store, "train", device=device)
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(DeviceError, match="no CUDA device"):
        create_loader(demo_store, "train", 8, device=device)


@pytest.mark.parametrize("device", ["gpu", "meta", "mps", "cuda:x", 3.5])
def test_device_that_cannot_be_is_refused(device: Any) -> None:
    """Neither a name that torch does not know nor a device that holds no dataset."""
    with pytest.raises(DeviceError, match="device"):
        placement_for(device)


@pytest.mark.parametrize("device", ["cuda", torch.device("cuda", 0)])
def test_workers_with_a_device_are_refused(demo_store: Path, device: Any) -> None:
    """Whether the device is there or not, the way out is told."""
    with pytest.raises(DeviceError, match="num_workers=0"):
        create_loader(demo_store, "train", 8, num_workers=2, device=device)


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tables_lie_on_the_gpu_once(demo_store: Path) -> None:
    """Three splits take what one takes; closing gives it back."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    placed = combined(demo_store, "cuda")
    taken = torch.cuda.memory_allocated() - before
    assert taken < placed["train"].memory_usage_mb * 2**20 * 1.2 + (1 << 20)
    assert placed["train"].device == torch.device("cuda", torch.cuda.current_device())
    for dataset in placed.values():
        dataset.close()
    del placed, dataset
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_loader_on_the_gpu_serves_the_cpu_batches(demo_store: Path) -> None:
    """A shuffled pass on the device equals the same pass on the CPU."""
    loaders = [create_loader(demo_store, "train", 16, device=d) for d in ("cuda", "cpu")]
    for on_gpu, on_cpu in zip(*loaders, strict=True):
        assert_batches_equal({name: column.cpu() for name, column in on_gpu.items()}, on_cpu)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_that_is_not_there_is_refused(demo_store: Path) -> None:
    """A number beyond the devices of this machine is an error that says how many there are."""
    with pytest.raises(DeviceError, match="CUDA devices"):
        JASPERSteeringDataset(demo_store, "train", device=f"cuda:{torch.cuda.device_count()}")
