"""Batches that are looked up together are those that are read one by one."""

import random
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.dataset.batch_layout import Target
from jasper_mmap.dataset.split_reader import SplitReader, _EpochVariants
from tests.oracle import assert_batches_equal


def test_batches_of_one_look_up_are_those_read_alone(any_store: Path) -> None:
    """Of any shape, in what an earlier look-up of that shape or of another has left."""
    dice = random.Random(7)
    with JASPERSteeringDataset(any_store, "train", epoch=2) as dataset:
        reader: SplitReader = dataset.reader
        for _ in range(20):
            batches, size = dice.choice([(1, 4), (3, 4), (4, 3), (2, 16)])
            positions = np.array([dice.randrange(len(dataset)) for _ in range(batches * size)])
            lookup = reader.look_up(positions, size, reader.words.read())
            for number in dice.sample(range(batches), batches):
                filled = reader.new_batch(size)
                lookup.fill(number, Target(filled))
                alone = reader.read(positions[number * size : (number + 1) * size])
                assert_batches_equal(filled, alone)
            reader.spare(lookup)


def test_tables_are_those_of_the_moment(any_store: Path) -> None:
    """The split's own numbers under one name, and every artifact under its own."""
    with JASPERSteeringDataset(any_store, "val") as dataset:
        reader = dataset.reader
        assert reader.table("split_indices") is reader.table("val_idx")
        negatives = dataset.adoption.current(dataset.generation).tables
        assert isinstance(negatives["hard_negatives"], torch.Tensor)
        assert reader.table("hard_negatives") is negatives["hard_negatives"]


def test_variants_that_are_kept_are_those_that_are_drawn() -> None:
    """Draws of few positions are counted, and end once all were drawn together."""
    n = 20_000
    calls: list[int] = []

    def draw(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        calls.append(len(positions))
        return positions % 4

    variants = _EpochVariants(0, n, draw)
    for first in range(0, n, 100):
        positions = (np.arange(first, first + 100) * 7) % n
        assert variants.of(positions).tolist() == (positions % 4).tolist()
    assert calls == [100] * 13 + [n]
