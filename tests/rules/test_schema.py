"""What is declared for type checkers is what the tables say."""

from typing import get_type_hints

import torch

from jasper_mmap.rules.schema import COLUMNS, Batch


def test_declared_keys_of_a_batch_are_the_columns() -> None:
    """Each column is a declared tensor, in the order of the table."""
    assert list(get_type_hints(Batch).items()) == [(name, torch.Tensor) for name in COLUMNS]
    assert not Batch.__optional_keys__
