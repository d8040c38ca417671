"""The tables that a dataset declares as attributes are those of the schema."""

from typing import get_type_hints

import torch

from jasper_mmap.dataset.artifacts import Artifacts
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.tables import Ragged


def test_declared_tables_are_the_artifacts() -> None:
    """Each artifact is declared as what it is served as, and nothing else but the split's own."""
    served = {a.name: Ragged if a.kind == "ragged" else torch.Tensor for a in ARTIFACTS.values()}
    declared = {n: kind for n, kind in get_type_hints(Artifacts).items() if not n.startswith("_")}
    assert declared == {**served, "split_indices": torch.Tensor}
