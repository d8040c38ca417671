"""The check of a GPU, as far as it goes without one: on tables that are copied as to a device."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jasper_mmap import JASPERSteeringDataset, create_loader
from jasper_mmap.dataset.device.placement import Placement
from jasper_mmap.rules.names import SPLITS
from tests.publishing import IMPORTING, contents
from tests.serving import Named
from tools.gpu_check.equality import (
    differences,
    differences_of_loaders,
    differences_of_splits,
    differences_of_store,
)
from tools.gpu_check.measures import gather_speeds, kinds_of, preload, waiting_copies
from tools.gpu_check.stores import mixed_store, own_store

CPU = torch.device("cpu")
COPIED = Placement(CPU, copied=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_check_says_that_there_is_no_gpu() -> None:
    """In one line, with exit status 1."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.gpu_check"],
        capture_output=True,
        text=True,
        env=IMPORTING,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: device 'cuda': torch finds no CUDA device")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["plain", "dtypes_of_all_kinds", "no_curriculum_empty_val"])
def test_copied_tables_serve_what_mapped_ones_do(
    name: str, store_named: Named, tmp_path: Path
) -> None:
    """Before and after a reload, and by the loader; the store that was given stays as it is."""
    given = store_named(name)
    before = contents(given)
    store = own_store(given, tmp_path)
    assert list(differences_of_store(store, COPIED)) == []
    assert list(differences_of_loaders(store, CPU)) == []
    assert contents(given) == before
    with JASPERSteeringDataset(store, "train") as dataset:
        assert dataset.generation == 2


@pytest.mark.parametrize("name", ["steering_residual", "test_idx", "negative_tiers"])
def test_one_value_that_differs_is_reported(name: str, demo_store: Path) -> None:
    """With the split, the epoch, the steering and the column."""
    mapped = JASPERSteeringDataset.create_combined_splits(demo_store)
    placed = JASPERSteeringDataset.create_combined_splits(demo_store, placement=COPIED)
    table = getattr(placed["test"], name)
    pair = int(placed["test"].split_indices[3])
    row = 3 if name == "test_idx" else pair
    table[row] = table[row] + 1
    problems = list(differences_of_splits(mapped, placed, "now"))
    assert problems
    assert all(problem.startswith("now, test, epoch ") for problem in problems)
    if name == "steering_residual":
        assert any("steering residual, at 0: steering differs in 32 of " in p for p in problems)


def test_column_elsewhere_or_of_another_form_is_reported() -> None:
    """Also the sign of zero, but not the payload of NaN."""
    column = torch.tensor([0.0, torch.nan])
    other = torch.tensor([0.0, 1.0]).copy_(
        torch.tensor([0, 0x7FC0_0001]).to(torch.int32).view(torch.float32)
    )
    assert list(differences({"a": column}, {"a": other}, CPU, "b")) == []
    for served, device, said in (
        (column, torch.device("cuda", 0), "b: a is on cpu, not on cuda:0"),
        (column.double(), CPU, "b: a is torch.float64 (2,)"),
        (column[:1], CPU, "b: a is torch.float32 (1,)"),
        (-column, CPU, "b: a differs in 1 of 2 values"),
    ):
        assert list(differences({"a": column}, {"a": served}, device, "b")) == [said]


def test_mixed_store_cannot_be_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So steering is selected by masks."""
    monkeypatch.setattr("tools.gpu_check.stores.MIXED_PAIRS", 60)
    splits = JASPERSteeringDataset.create_combined_splits(mixed_store(tmp_path), placement=COPIED)
    assert {split: len(splits[split]) > 0 for split in SPLITS} == dict.fromkeys(SPLITS, True)
    assert splits["train"].reader.served.stack is None


def test_figures_of_a_loader(demo_store: Path) -> None:
    """Rates of both, in the same units, over more than one pass."""
    loader = create_loader(demo_store, "train", 100, pin_memory=False)
    speeds = gather_speeds(loader, 5)
    assert set(speeds) == {
        f"{name}_{unit}"
        for name in ("ours", "index_select")
        for unit in ("samples_per_s", "gb_per_s")
    }
    for name in ("ours", "index_select"):
        bytes_a_sample = 1e9 * speeds[f"{name}_gb_per_s"] / speeds[f"{name}_samples_per_s"]
        assert bytes_a_sample == pytest.approx((3 + 12) * 32 * 4)
    n_bytes, seconds = preload(demo_store, CPU)
    assert n_bytes == loader.dataset_obj.memory_usage_mb * 2**20
    assert seconds > 0


def test_kinds_of_device_work_are_counted() -> None:
    """Kernels together; copies apart, so that one from ordinary memory is seen."""
    pinned, pageable = "Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD (Pageable -> Device)"
    back, fill = "Memcpy DtoH (Device -> Pinned)", "Memset (Device)"
    kinds = kinds_of(["void at::native::indexSelect", "void other", pinned, pageable, back, fill])
    assert kinds == {"kernels": 2, pinned: 1, pageable: 1, back: 1, fill: 1}
    assert [line.rpartition(": ")[2] for line in waiting_copies(kinds)] == [pageable, back]
