"""Integers of every width become int64 as Python reads them."""

import pytest
import torch

from jasper_mmap.rules.integers import as_int64
from jasper_mmap.rules.schema import INT_DTYPES


@pytest.mark.parametrize("dtype", INT_DTYPES, ids=str)
def test_integers_keep_their_values(dtype: torch.dtype) -> None:
    """Both ends of the range, but for what int64 cannot hold; of a table that is not contiguous."""
    limits = torch.iinfo(dtype)
    values = [[limits.min, 0, 1], [7, limits.max // 2, min(limits.max, 2**63 - 1)]]
    numbers = torch.tensor(values, dtype=dtype).T
    wide = as_int64(numbers)
    assert wide.dtype == torch.int64
    assert wide.T.tolist() == values
    assert numbers.T.tolist() == values, "the table itself was changed"
