"""What the checks of a store's files find, and each error by itself."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jasper_mmap.errors import JasperError
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.folder import Store
from jasper_mmap.store.soundness import form_errors, generation_errors, table_errors
from jasper_mmap.store.tables import Ragged, Table


def errors_in(store: Path, name: str, table: Table | None = None, *, quick: bool) -> list[str]:
    """Return what is wrong with one table of a sound store, or with `table` in its place."""
    opened = Store(store)
    table = opened.tables[name] if table is None else table
    found = table_errors(store, ARTIFACTS[name], opened.manifest, table, quick=quick)
    return [str(error) for error in found]


@pytest.mark.parametrize("name", [a for a in ARTIFACTS if not ARTIFACTS[a].generation])
@pytest.mark.parametrize("quick", [True, False])
def test_a_sound_table_has_no_errors(demo_store: Path, name: str, quick: bool) -> None:
    """Quick or in full."""
    assert errors_in(demo_store, name, quick=quick) == []


def test_a_changed_number_inside_its_bounds_is_found_by_its_range(demo_store: Path) -> None:
    """Quick checks know the recorded ranges; each of two columns has its own."""
    table = Store(demo_store).tables["pair_index"].clone()  # type: ignore[union-attr]
    table[table[:, 1] == table[:, 1].max(), 1] = 0
    (error,) = errors_in(demo_store, "pair_index", table, quick=True)
    assert "when it was converted, so it was altered" in error
    assert error.count(" to ") == 4


def test_a_changed_float_is_found_in_full_only(demo_store: Path, tmp_path: Path) -> None:
    """By NaN, and by the checksum of the file."""
    table = Store(demo_store).tables["steering_residual"].clone()  # type: ignore[union-attr]
    table[3, 2] = torch.nan
    assert errors_in(demo_store, "steering_residual", table, quick=True) == []
    (error,) = errors_in(demo_store, "steering_residual", table, quick=False)
    assert "row 3, column 2" in error
    store = Path(shutil.copytree(demo_store, tmp_path / "store"))
    path = store / "steering_residual.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (error,) = errors_in(store, "steering_residual", quick=False)
    assert "its SHA-256 differs from the manifest" in error


def test_offsets_that_go_back_are_found(demo_store: Path) -> None:
    """Quick or in full, and the values are checked all the same."""
    ragged = Store(demo_store).tables["pair_keyword_ids"]
    assert isinstance(ragged, Ragged)
    offsets, values = ragged.offsets.clone(), ragged.values.clone()
    offsets[5] = offsets[7] + 1
    values[0] = -1
    wrong = Ragged(values=values, offsets=offsets)
    found = errors_in(demo_store, "pair_keyword_ids", wrong, quick=True)
    assert len(found) == 2
    assert "-1" in found[1]


def test_a_configuration_of_another_width_is_told_from_the_tables(demo_store: Path) -> None:
    """One error: config.json is wrong, not each of the tables."""
    opened = Store(demo_store)
    config = replace(opened.config, embedding_dim=31)
    (error,) = form_errors(demo_store, config, opened.manifest)
    assert "'embedding_dim' is 31, but the tables of the store have 32 columns" in str(error)
    assert list(form_errors(demo_store, opened.config, opened.manifest)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda negatives, tiers: negatives[7].fill_(10**6), "hard_negatives references source"),
        (lambda negatives, tiers: negatives[7].fill_(-1), "hard_negatives references source -1"),
        (lambda negatives, tiers: tiers[7].fill_(5), "row 7"),
    ],
)
def test_each_table_of_a_generation_is_checked(
    demo_store: Path, change: Callable[[torch.Tensor, torch.Tensor], object], words: str
) -> None:
    """By its own bounds."""
    opened = Store(demo_store)
    _, generation = opened.current_generation()
    tables = {name: table.clone() for name, table in generation.tables.items()}
    assert list(generation_errors(tables, opened.negatives_sizes, Path("here"))) == []
    change(tables["hard_negatives"], tables["negative_tiers"])
    found: list[JasperError] = list(generation_errors(tables, opened.negatives_sizes, Path("here")))
    assert len(found) == 1
    assert words in str(found[0])
