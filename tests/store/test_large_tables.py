"""Tables of more than one chunk are checked to their end: at conversion, at open, by `verify`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from converters import convert
from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.errors import ContentError, IndexRangeError, JasperError
from jasper_mmap.files import safetensors
from jasper_mmap.negatives.renewal import verify_store
from tests.converting import SMALL, change, edit
from tests.damage import forge_generation, rewrite
from tests.oracle import Oracle
from tests.publishing import numbered, with_value
from tools.demo.folder import make_builder_folder

PAIRS = 1_100_000
"""Of train, where each stands many times; 8 bytes each."""
QUESTIONS = 270_000
"""32 bytes each."""
SPOILT: dict[str, tuple[float, type[JasperError], str]] = {
    "train_idx": (60, IndexRangeError, f"reference pair 60 in row {PAIRS - 1}"),
    "question_embs": (torch.nan, ContentError, f"nan in row {QUESTIONS - 1}, column 7"),
}
"""Name of a large table -> what is put into its last place, and what is said of it."""


def put_last(name: str) -> Callable[[torch.Tensor], object]:
    """Return what spoils the last value of a table."""
    return lambda table: table.view(-1)[-1].fill_(SPOILT[name][0])


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a builder's folder in which a table of numbers and one of floats are large."""
    folder = make_builder_folder(tmp_path_factory.mktemp("large") / "built", **SMALL)
    edit(folder, "train_idx", lambda pairs: torch.arange(PAIRS) % SMALL["n_pairs"])
    edit(folder, "question_embs", lambda table: table[torch.arange(QUESTIONS) % len(table)])
    for name in SPOILT:
        table = torch.load(folder / f"{name}.pt", weights_only=True)
        assert table.nbytes > safetensors.CHUNK_BYTES
    return folder


@pytest.fixture(scope="module")
def large_store(large_folder: Path) -> Path:
    """Return its store."""
    convert(large_folder, large_folder.with_name("store"))
    return large_folder.with_name("store")


@pytest.mark.parametrize("name", SPOILT)
def test_conversion_checks_to_the_end(name: str, large_folder: Path, tmp_path: Path) -> None:
    """A wrong value in the last row is refused."""
    folder = Path(shutil.copytree(large_folder, tmp_path / "built"))
    change(folder, name, put_last(name))
    _, error, words = SPOILT[name]
    with pytest.raises(error, match=words):
        convert(folder, tmp_path / "store")


@pytest.mark.parametrize("name", SPOILT)
def test_store_is_checked_to_the_end(name: str, large_store: Path, tmp_path: Path) -> None:
    """A wrong value that came into the last row is found by a full look, at open and by verify;
    a number by the quick ones too."""
    store = Path(shutil.copytree(large_store, tmp_path / "store"))
    rewrite(store / f"{name}.safetensors", lambda t: put_last(name)(t[name]), touch=True)
    _, error, words = SPOILT[name]
    with pytest.raises(error, match=words):
        JASPERSteeringDataset(store, "val", validate="full")
    assert words in verify_store(store).problems[0].message
    if error is IndexRangeError:
        with pytest.raises(error, match=words):
            JASPERSteeringDataset(store, "val")
        assert words in verify_store(store, quick=True).problems[0].message


def test_negatives_are_checked_to_the_end(
    store: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When they are published, and when a generation of another time is opened."""
    monkeypatch.setattr(safetensors, "CHUNK_BYTES", 1 << 10)
    pairs = len(oracle.hard_negatives)
    for at, words in enumerate(("hard_negatives references source", "negative_tiers holds")):
        spoilt = with_value(numbered(oracle, 2), at, -1, -1, 10**6)
        with pytest.raises(JasperError, match=f"{words} 1000000 in row {pairs - 1}"):
            publish_negatives(store, *spoilt)
    forge_generation(store, lambda tables: tables["hard_negatives"][-1, -1].fill_(10**6))
    with pytest.raises(IndexRangeError, match=f"1000000 in row {pairs - 1}"):
        JASPERSteeringDataset(store, "train")
