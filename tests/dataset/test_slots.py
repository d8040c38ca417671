"""Slots: what is leased is not overwritten, what is dropped is used again, nothing is left over."""

import gc
import mmap
import os
import random
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jasper_mmap import JASPERSteeringDataset, create_loader, publish_negatives
from jasper_mmap.dataset.batch_layout import Columns, Layout, empty_plain
from jasper_mmap.dataset.slots import Extents, Slots
from jasper_mmap.rules.schema import COLUMNS, WIDE


def new_slots(count: int = 2, *, shared: bool = False, rows: int = 5) -> Slots:
    """Slots of `rows` rows for D=3 and N=2."""
    return Slots(Layout(rows, 3, 2), count, shared=shared)


def taken(slots: Slots, rows: int = 5) -> dict[str, torch.Tensor]:
    """A batch in the next free slot."""
    slot = slots.take()
    return slots.lease(slots.take_grown() if slot is None else slot, rows)


def test_columns_have_the_shapes_of_the_schema_and_begin_on_64_bytes() -> None:
    """Each column is contiguous, aligned, and overlaps no other."""
    batch = taken(new_slots())
    sizes = {"B": 5, "D": 3, "N": 2}
    spans = []
    for column in COLUMNS.values():
        tensor = batch[column.name]
        assert tuple(tensor.shape) == tuple(sizes[d] for d in column.shape)
        assert tensor.dtype == column.dtype
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        spans.append((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes))
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_columns_adjoin_where_they_fill_64_bytes() -> None:
    """Then one tensor covers all embeddings of a batch, and one all plain columns."""
    for rows, dim, adjoin in ((5, 3, False), (5, 16, True), (16, 3, True), (1, 768, True)):
        layout = Layout(rows, dim, 2)
        target = layout.target(np.zeros(layout.nbytes, np.uint8), rows)
        assert (target.wide is not None) == adjoin
        if target.wide is not None:
            target.wide.copy_(torch.arange(5 * rows)[:, None])
            wide = [target.columns[c.name].flatten(0, -2)[:, 0] for c in WIDE]
            assert torch.cat(wide).tolist() == list(range(5 * rows))
        packed, plain = empty_plain(3, rows, 2, torch.device("cpu"))
        for number, column in enumerate(plain.values()):
            column.copy_(torch.arange(column.numel()).view(column.shape) + number)
        assert target.plain is not None
        target.plain.copy_(packed[1])
        assert all(torch.equal(target.columns[name], plain[name][1]) for name in plain)


def test_a_partial_batch_has_its_own_number_of_rows() -> None:
    """Two rows of a slot for five are tensors of two rows."""
    assert {len(tensor) for tensor in taken(new_slots(), rows=2).values()} == {2}


@pytest.mark.parametrize("shared", [False, True])
def test_a_slot_is_free_again_when_the_last_tensor_over_it_dies(shared: bool) -> None:
    """One column, a view of one, or a numpy array is enough to hold the slot."""
    slots = new_slots(1, shared=shared)
    holders = [
        lambda batch: batch["relevance"],
        lambda batch: batch["negative_embs"][1:2, 0],
        lambda batch: batch["question_emb"].numpy()[0],
        lambda batch: batch["steering"].detach().requires_grad_(),
    ]
    for hold in holders:
        batch = taken(slots)
        held: Any = hold(batch)
        del batch
        assert slots.take() is None
        del held
        free = slots.take()
        assert free == 0
        slots.give_back(free)


def test_a_slot_may_be_freed_in_another_thread() -> None:
    """The last reference dies in a thread that never saw the slots."""
    slots = new_slots(1)
    box = [taken(slots)]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert slots.take() == 0


@pytest.mark.parametrize("shared", [False, True])
def test_threads_that_take_slots_at_once_share_none(shared: bool) -> None:
    """Nor do they map the same memory twice, so that one would look elsewhere than the other."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            slots = new_slots(1, shared=shared)
            together = threading.Barrier(2)

            def take_some(slots: Slots, together: threading.Barrier) -> list[Columns]:
                together.wait()
                return [taken(slots) for _ in range(6)]

            with ThreadPoolExecutor(2) as pool:
                both = [pool.submit(take_some, slots, together) for _ in range(2)]
            batches = [batch for done in both for batch in done.result()]
            for number, batch in enumerate(batches):
                batch["question_emb"].fill_(number)
            assert all(bool((b["question_emb"] == i).all()) for i, b in enumerate(batches))
    finally:
        sys.setswitchinterval(interval_s)


def test_an_extent_mapped_late_takes_nothing_from_the_ones_behind_it() -> None:
    """A worker that comes late to an extent must not shorten what others have gone on to."""
    slots = new_slots(1, shared=True)
    assert slots.memory is not None
    late = Extents(slots.layout, 1, slots.memory)
    slots.extents.bytes_of(7)[:] = 7
    size = os.fstat(slots.memory.fd).st_size
    late.bytes_of(1)[:] = 1
    assert os.fstat(slots.memory.fd).st_size == size
    assert (slots.extents.bytes_of(7) == 7).all()
    assert (slots.extents.bytes_of(1) == 1).all()
    assert (late.bytes_of(7) == 7).all()


def test_the_slot_freed_last_is_handed_out_first() -> None:
    """It is the one that is still in the processor's cache."""
    slots = new_slots(3)
    batches = [taken(slots) for _ in range(3)]
    addresses = [batch["relevance"].data_ptr() for batch in batches]
    for number in (0, 2, 1):
        batches[number] = {}
    assert [taken(slots)["relevance"].data_ptr() for _ in range(2)] == [addresses[1]] * 2


@pytest.mark.parametrize("shared", [False, True])
def test_kept_batches_grow_the_memory_and_give_it_back(shared: bool, tmp_path: Path) -> None:
    """Slots beyond the regular ones are counted, distinct, and empty their pages when freed."""
    slots = new_slots(2, shared=shared, rows=4096)
    kept = [taken(slots, rows=4096) for _ in range(20)]
    for number, batch in enumerate(kept):
        batch["question_emb"].fill_(number)
    assert all(bool((b["question_emb"] == i).all()) for i, b in enumerate(kept))
    assert slots.fallbacks == 18
    del batch
    if slots.memory is not None:
        file = Path(f"/proc/self/fd/{slots.memory.fd}")
        grown = file.stat().st_blocks
        kept.clear()
        ends_of_extents = 5 * mmap.PAGESIZE // 512
        assert file.stat().st_blocks <= grown * 2 // 20 + ends_of_extents
    kept.clear()
    again = [taken(slots) for _ in range(3)]
    assert bool((again[2]["question_emb"] == 0).all())


def test_what_a_user_does_to_a_tensor_reaches_no_later_batch() -> None:
    """Gradients, in-place shapes and shared memory stay with the tensor they were asked of."""
    slots = new_slots(1)
    batch = taken(slots)
    batch["question_emb"].fill_(1.0).requires_grad_()
    (batch["question_emb"] * 2).sum().backward()
    batch["steering"].unsqueeze_(0)
    batch["relevance"].share_memory_()
    batch.pop("cluster_id")
    del batch
    gc.collect()
    later = taken(slots)
    assert set(later) == set(COLUMNS)
    assert not later["question_emb"].requires_grad
    assert later["question_emb"].grad is None
    assert later["steering"].ndim == 2
    assert not later["relevance"].is_shared()


def test_columns_are_independent_of_each_other(tmp_path: Path) -> None:
    """Autograd sees no change of one in a change of another, and a saved one is saved alone."""
    batch = taken(new_slots())
    weight = torch.ones(3, requires_grad=True)
    loss = (batch["question_emb"] * weight).sum()
    for name, column in batch.items():
        if name != "question_emb":
            column.zero_()
    loss.backward()
    torch.save(batch["relevance"], tmp_path / "relevance.pt")
    torch.save(torch.zeros(5), tmp_path / "alone.pt")
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert max(sizes) - min(sizes) < 64


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_is_held_is_never_overwritten(demo_store: Path, workers: int) -> None:
    """Batches kept and dropped at random still hold what they held when they came."""
    dice = random.Random(5)
    prefetch = 2 if workers else None
    loader = create_loader(demo_store, "train", 16, num_workers=workers, prefetch_factor=prefetch)
    oracle = JASPERSteeringDataset(demo_store, "train")
    held: list[tuple[Mapping[str, Any], list[int], int]] = []
    for epoch in range(8):
        loader.dataset_obj.set_epoch(epoch)
        positions = list(loader.sampler_obj)
        for number, batch in enumerate(loader):
            held.append((batch, positions[16 * number : 16 * number + 16], epoch))
            if len(held) > 12 or dice.random() < 0.5:
                columns, where, drawn = held.pop(dice.randrange(len(held)))
                oracle.set_epoch(drawn)
                want = oracle.__getitems__(where).columns
                assert all(torch.equal(columns[name], want[name]) for name in want)
    assert loader.slot_fallbacks > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_each_column_alone_holds_its_slot(store: Path, workers: int) -> None:
    """Of every batch one column is kept, another one each time; none is overwritten."""
    with JASPERSteeringDataset(store, "train") as dataset:
        negatives = dataset.hard_negatives.clone()
    # The tiers that the builder wrote are the same ones in every row.
    tiers = torch.randint(1, 5, negatives.shape, generator=torch.Generator().manual_seed(3))
    publish_negatives(store, negatives, tiers)
    loader = create_loader(store, "train", 8, num_workers=workers)
    order = list(loader.sampler_obj)
    batches: Any = loader
    kept = [batch[name] for batch, name in zip(batches, cycle(COLUMNS), strict=False)]
    assert len(kept) > 2 * len(COLUMNS) + loader.num_workers * (loader.prefetch_factor or 0)
    with JASPERSteeringDataset(store, "train") as dataset:
        for number, (column, name) in enumerate(zip(kept, cycle(COLUMNS), strict=False)):
            want = dataset.__getitems__(order[8 * number : 8 * number + 8]).columns[name]
            assert torch.equal(column, want), f"{name} of batch {number}"
